//! Rows to tokens: the tokenizer and the chat template of a model, and the rules of `[tokens]`.

mod load;
mod rows;
mod text_stream;

use std::collections::BTreeSet;

use serde_json::{Map, Value};
use tokenizers::Tokenizer;

pub use text_stream::{Piece, TextStream};

use crate::chat::{ChatTemplate, Mask, SpecialTexts, marks};
use crate::error::RowError;
use crate::row::{Message, Origin, Row, Sample};
use crate::tokens::{LossOn, Overlong, TokensConfig};

/// The tokenizer and the chat template of a model, with the rules of `[tokens]`.
#[derive(Debug)]
pub struct Encoder {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    config: TokensConfig,
    /// Variables that every rendering gets: special tokens, then the recipe's.
    vars: Map<String, Value>,
    vocab: usize,
    special: SpecialTexts,
    chatml: Mask,
    /// Put before documents, where the tokenizer says so; chat templates write their own.
    bos: Option<u32>,
    eos: Option<u32>,
    /// Ends a document.
    document_end: Option<u32>,
    /// What the tokenizer's settings call the beginning of a sequence, whether or not it is put anywhere.
    begin: Option<u32>,
    pad: Option<u32>,
    /// Tokens that were added to the vocabulary: control tokens and tags, never made of smaller ones.
    added: BTreeSet<u32>,
}

/// A row as tokens, whole.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tokenised {
    /// What was tokenised: the whole rendering. Empty for rows of token ids.
    pub text: String,
    /// The tokens.
    pub ids: Vec<u32>,
    /// Which tokens carry loss as targets; never the first.
    pub trained: Vec<bool>,
}

/// Tokenised text.
struct Pieces {
    /// Without marks.
    text: String,
    ids: Vec<u32>,
    /// The byte range of the text that each token came from.
    offsets: Vec<(usize, usize)>,
}

/// A row as samples of at most `max_length` tokens.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Encoded {
    /// None where the row was dropped as too long, several where it was split. A sample may have nothing to train on;
    /// training passes over those.
    pub samples: Vec<Sample>,
    /// Tokens of the whole row.
    pub tokens: usize,
    /// Whether the row's end was cut off.
    pub truncated: bool,
}

impl Encoder {
    /// The settings in use.
    #[must_use]
    pub fn config(&self) -> &TokensConfig {
        &self.config
    }

    /// The chat template in use; none if the model has none and its tokenizer does not know ChatML.
    #[must_use]
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// A row as samples, with `max_length` and `overlong` applied.
    pub fn encode(&self, row: &Row, origin: Origin) -> Result<Encoded, RowError> {
        self.cut(&self.tokenise(row)?, origin)
    }

    /// A whole row as samples of at most `max_length` tokens, as `overlong` says.
    pub(crate) fn cut(&self, row: &Tokenised, origin: Origin) -> Result<Encoded, RowError> {
        let Tokenised { ids, trained, .. } = row;
        let (tokens, max) = (ids.len(), self.config.max_length);
        let mut encoded = Encoded { samples: Vec::new(), tokens, truncated: false };
        if tokens == 0 {
            return Ok(encoded);
        }
        let mut push = |ids: &[u32], trained: &[bool]| {
            let mut trained = trained.to_vec();
            trained[0] = false;
            encoded.samples.push(Sample { ids: ids.to_vec(), trained, origin });
        };
        if tokens <= max {
            push(ids, trained);
            return Ok(encoded);
        }
        match self.config.overlong {
            Overlong::Truncate => {
                push(&ids[..max], &trained[..max]);
                encoded.truncated = true;
            }
            Overlong::Drop => {}
            Overlong::Split => {
                for (ids, trained) in ids.chunks(max).zip(trained.chunks(max)) {
                    push(ids, trained);
                }
            }
            Overlong::Error => return Err(RowError::Overlong { tokens, max }),
        }
        Ok(encoded)
    }

    /// A row as tokens, however many.
    pub fn tokenise(&self, row: &Row) -> Result<Tokenised, RowError> {
        let mut tokenised = match row {
            Row::Chat(conversation) => self.chat(conversation),
            Row::ChatCompletion { prompt, completion } => self.chat_completion(prompt, completion),
            Row::Completion { prompt, completion } => self.completion(prompt, completion),
            Row::Text(text) => self.document(text),
            Row::Tokens { ids, labels } => rows::given(ids, labels.as_deref()),
        }?;
        if let Some(first) = tokenised.trained.first_mut() {
            *first = false;
        }
        match tokenised.ids.iter().position(|&id| id as usize >= self.vocab) {
            None => Ok(tokenised),
            Some(position) => {
                let id = i64::from(tokenised.ids[position]);
                Err(RowError::TokenId { position, id, limit: self.vocab })
            }
        }
    }

    /// Renders messages as the template does; `vars` add to the recipe's and override them.
    pub fn render_chat(
        &self,
        messages: &[Message],
        tools: Option<&Value>,
        add_generation_prompt: bool,
        vars: &Map<String, Value>,
    ) -> Result<String, RowError> {
        let mut all = self.vars.clone();
        all.extend(vars.iter().map(|(k, v)| (k.clone(), v.clone())));
        let template = self.template.as_ref().ok_or(RowError::NoTemplate)?;
        Ok(template.render(messages, tools, add_generation_prompt, &all)?.text.replace(marks::SPLIT, ""))
    }

    /// Text as tokens, special tokens included, nothing added.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>, RowError> {
        Ok(self.pieces(text)?.ids)
    }

    /// Tokens as text; bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, RowError> {
        self.tokenizer.decode(ids, skip_special).map_err(tokenizer_error)
    }

    /// The id of a token by its text, if it is one token.
    #[must_use]
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// The text of a token by its id, as the vocabulary spells it.
    #[must_use]
    pub fn token(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    /// The model's vocabulary: ids are below it. The tokenizer may know fewer.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.vocab
    }

    /// The tokenizer's end-of-sequence token.
    #[must_use]
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    /// The token that ends a document of continued pre-training.
    #[must_use]
    pub fn document_end_id(&self) -> Option<u32> {
        self.document_end
    }

    /// The token that the tokenizer's settings name as the beginning of a sequence.
    #[must_use]
    pub fn begin_id(&self) -> Option<u32> {
        self.begin
    }

    /// The token that the tokenizer's settings name as padding. Nothing here pads.
    #[must_use]
    pub fn pad_id(&self) -> Option<u32> {
        self.pad
    }

    /// Whether a token stands for itself, as control tokens and tags do, and is never made of smaller ones.
    #[must_use]
    pub fn is_added(&self, id: u32) -> bool {
        self.added.contains(&id)
    }

    /// The control token that the template writes behind an answer.
    #[must_use]
    pub fn turn_end_id(&self) -> Option<u32> {
        const ANSWER: &str = "AnAnswerToLookFor";
        let turns = [Message::new("user", "x"), Message::new("assistant", ANSWER)];
        let text = self.render_chat(&turns, None, false, &Map::new()).ok()?;
        let behind = &text[text.rfind(ANSWER)? + ANSWER.len()..];
        // Some templates put a space before it.
        self.encode_text(behind).ok()?.into_iter().take(3).find(|id| self.is_added(*id))
    }

    /// Tokens that end a generated answer: the tokenizer's end of sequence and the ends of a turn and of a document in
    /// ChatML, as far as the vocabulary has them. A model's generation settings may name more.
    #[must_use]
    pub fn stop_ids(&self) -> Vec<u32> {
        let chatml = ["<|im_end|>", "<|endoftext|>"].map(|t| self.added_id(t));
        let mut ids: Vec<u32> = self.eos.into_iter().chain(chatml.into_iter().flatten()).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Decodes tokens one by one, as they are generated.
    #[must_use]
    pub fn text_stream(&self, skip_special: bool) -> TextStream<'_> {
        TextStream::new(self, skip_special)
    }

    /// A template for conversations says itself what is trained, or we must find out.
    fn mask(&self, template: &ChatTemplate, tools: bool) -> Mask {
        if template.has_generation(tools) { Mask::Generation } else { self.chatml }
    }

    fn masks_empty_think(&self, mask: Mask) -> bool {
        self.config.mask_empty_think.unwrap_or(mask != Mask::Generation)
    }

    fn all_trained(&self) -> bool {
        self.config.loss_on == LossOn::All
    }

    /// Tokenises text, honouring the marks where special tokens must not be read.
    fn pieces(&self, text: &str) -> Result<Pieces, RowError> {
        let mut pieces = Pieces { text: String::with_capacity(text.len()), ids: Vec::new(), offsets: Vec::new() };
        for piece in text.split(marks::SPLIT) {
            if piece.is_empty() {
                continue;
            }
            let encoding = self.tokenizer.encode(piece, false).map_err(tokenizer_error)?;
            let before = pieces.text.len();
            pieces.ids.extend_from_slice(encoding.get_ids());
            pieces.offsets.extend(encoding.get_offsets().iter().map(|&(from, to)| (from + before, to + before)));
            pieces.text.push_str(piece);
        }
        Ok(pieces)
    }

    fn added_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that `map_err` wants")]
fn tokenizer_error(error: tokenizers::Error) -> RowError {
    RowError::Tokenizer { message: error.to_string() }
}
