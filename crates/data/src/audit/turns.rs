//! Messages that the chat template leaves out, and answers without anything in them.
//!
//! Whether a message's text is in the rendering cannot be read off the rendering alone: templates trim, quote and
//! reassemble text, and a short text is found by chance. So where it is in doubt the conversation is rendered once more
//! with words in place of the messages that no template can have written itself.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::chat::REASONING;
use crate::encode::Encoder;
use crate::row::{Conversation, Message, Row};
use crate::tokens::LossOn;

const ASSISTANT: &str = "assistant";
const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// The turns of a conversation, held against its rendering.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Turns {
    /// Messages with text by role, and how many of them are not in the rendering.
    pub(super) roles: BTreeMap<String, Missing>,
    /// Turns of the assistant.
    pub(super) answers: u64,
    /// Those without text, reasoning or calls.
    pub(super) empty: u64,
    /// Trained turns whose reasoning is not in the rendering.
    pub(super) unreasoned: u64,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Missing {
    pub(super) messages: u64,
    pub(super) missing: u64,
    /// The first missing text.
    pub(super) text: String,
}

impl Turns {
    /// None for rows that are no conversation. With `probe` every message is looked for by a word of its own, not only
    /// those whose text is not found.
    pub(super) fn of(encoder: &Encoder, row: &Row, rendered: &str, probe: bool) -> Option<Self> {
        let conversation = match row {
            Row::Chat(conversation) => conversation.clone(),
            Row::ChatCompletion { prompt, completion } => {
                let messages = prompt.messages.iter().chain(completion).cloned().collect();
                Conversation { messages, tools: prompt.tools.clone() }
            }
            Row::Completion { .. } | Row::Text(_) | Row::Tokens { .. } => return None,
        };
        let mut turns = Self::default();
        let messages = &conversation.messages;
        let last = messages.iter().rposition(|m| m.role() == ASSISTANT);
        for (index, message) in messages.iter().enumerate().filter(|(_, m)| m.role() == ASSISTANT) {
            turns.answers += 1;
            turns.empty += u64::from(is_empty(message));
            let trained = encoder.config().loss_on != LossOn::Last || Some(index) == last;
            let lost = reasoning(message).is_some_and(|text| !is_in(text, rendered));
            turns.unreasoned += u64::from(trained && lost);
        }
        let doubtful = probe || messages.iter().any(|m| !is_in(said(m), rendered));
        let found = if doubtful { found(encoder, &conversation) } else { None };
        for (index, message) in messages.iter().enumerate().filter(|(_, m)| !said(m).is_empty()) {
            let entry = turns.roles.entry(message.role().to_owned()).or_default();
            entry.messages += 1;
            // Text that is there is never missing, whatever the template does with a word in its place.
            let long = said(message).len() > 40 && is_in(said(message), rendered);
            if !long && found.as_ref().is_some_and(|found| !found.contains(&index)) {
                if entry.missing == 0 {
                    entry.text = said(message).to_owned();
                }
                entry.missing += 1;
            }
        }
        Some(turns)
    }
}

/// Messages by index whose text the template writes; none if it fails.
fn found(encoder: &Encoder, conversation: &Conversation) -> Option<BTreeSet<usize>> {
    let word = |index: usize| format!("qw{index}look{index}forme");
    let probed: Vec<Message> = conversation
        .messages
        .iter()
        .enumerate()
        .map(|(index, message)| {
            let mut fields = message.fields().clone();
            if !said(message).is_empty() {
                fields.insert("content".into(), word(index).into());
            }
            Message::from_fields(fields)
        })
        .collect();
    let text = encoder.render_chat(&probed, conversation.tools.as_ref(), false, &Map::new()).ok()?;
    Some((0..probed.len()).filter(|index| text.contains(&word(*index))).collect())
}

/// What a message says after its reasoning.
fn said(message: &Message) -> &str {
    let content = message.content().unwrap_or_default();
    content.rsplit_once(CLOSE).map_or(content, |(_, said)| said).trim()
}

/// The reasoning of a message, in a field of its own or at the start of its text.
fn reasoning(message: &Message) -> Option<&str> {
    let field = REASONING.iter().find_map(|name| message.fields().get(*name).and_then(Value::as_str));
    let inline = || {
        let (before, _) = message.content()?.split_once(CLOSE)?;
        Some(before.split_once(OPEN).map_or(before, |(_, inner)| inner))
    };
    field.or_else(inline).map(str::trim).filter(|text| !text.is_empty())
}

/// Whether a text, or a line of it, is in the rendering; templates trim lines and join them anew.
fn is_in(text: &str, rendered: &str) -> bool {
    rendered.contains(text) || text.lines().map(str::trim).any(|line| line.len() >= 8 && rendered.contains(line))
}

fn is_empty(message: &Message) -> bool {
    let calls = message.fields().get("tool_calls").and_then(Value::as_array).is_some_and(|calls| !calls.is_empty());
    said(message).is_empty() && reasoning(message).is_none() && !calls
}
