//! What a row can mean, whatever file and format it came from, and what it becomes for the model.

use serde_json::{Map, Value};

/// One row of data after its format has read it.
#[derive(Debug, Clone, PartialEq)]
pub enum Row {
    /// A conversation to be rendered by the chat template.
    Chat(Conversation),
    /// A prompt and its completion, both verbatim: no template is applied, only the completion is trained.
    Completion {
        /// What the model is given.
        prompt: String,
        /// What it should answer.
        completion: String,
    },
    /// Messages as prompt and messages as completion: rendered by the template, only the completion is trained.
    ChatCompletion {
        /// The conversation so far, with its tools.
        prompt: Conversation,
        /// The turns to learn.
        completion: Vec<Message>,
    },
    /// A document, trained on as a whole.
    Text(String),
    /// Token ids prepared by the user.
    Tokens {
        /// The tokens, in order.
        ids: Vec<u32>,
        /// As many labels; [`crate::IGNORE`] masks a token. Absent: every token is trained.
        labels: Option<Vec<i64>>,
    },
}

/// Messages and the tools that were offered in them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Conversation {
    /// The turns, in order.
    pub messages: Vec<Message>,
    /// Tool declarations, as a list of JSON objects.
    pub tools: Option<Value>,
}

/// One turn: an object as the chat template sees it. Null fields are left out, because templates commonly test only
/// whether a key is there; a string in `arguments` that is a JSON object has been parsed.
#[derive(Debug, Clone, PartialEq)]
pub struct Message(Map<String, Value>);

impl Message {
    /// A turn of plain text.
    #[must_use]
    pub fn new(role: &str, content: &str) -> Self {
        let mut fields = Map::new();
        fields.insert("role".into(), role.into());
        fields.insert("content".into(), content.into());
        Self(fields)
    }

    /// The fields in their order; `role` is a string, `content` a string or a list of parts.
    pub(crate) fn from_fields(fields: Map<String, Value>) -> Self {
        Self(fields)
    }

    /// Who speaks.
    #[must_use]
    pub fn role(&self) -> &str {
        self.0.get("role").and_then(Value::as_str).unwrap_or_default()
    }

    /// The content where it is one string.
    #[must_use]
    pub fn content(&self) -> Option<&str> {
        self.0.get("content").and_then(Value::as_str)
    }

    /// All fields, as the template sees them.
    #[must_use]
    pub fn fields(&self) -> &Map<String, Value> {
        &self.0
    }

    pub(crate) fn fields_mut(&mut self) -> &mut Map<String, Value> {
        &mut self.0
    }
}

/// Where a sample came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Origin {
    /// Index of the `[[data]]` entry.
    pub source: usize,
    /// Index of the file within the source, in sorted order.
    pub file: usize,
    /// Row of that file, from 0.
    pub row: u64,
}

/// Tokens of one document and which of them carry loss.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The tokens.
    pub ids: Vec<u32>,
    /// `trained[i]`: token `i` carries loss as a target. Never true at 0: nothing predicts the first token.
    pub trained: Vec<bool>,
    /// The row it was made from.
    pub origin: Origin,
}

impl Sample {
    /// How many tokens carry loss.
    #[must_use]
    pub fn num_trained(&self) -> usize {
        self.trained.iter().filter(|t| **t).count()
    }
}
