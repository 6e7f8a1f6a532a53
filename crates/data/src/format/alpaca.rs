//! `instruction`, `input`, `output`: one exchange a row, turned into a user's and an assistant's turn.
//!
//! Alpaca's own "### Instruction" frame is for models without a chat template; here the model's template frames it.

use serde_json::Value;

use super::messages::wrong;
use super::{Cells, ReadError, Reads, may, needs, text_shape};
use crate::row::{Conversation, Message, Row};
use crate::source::Shape;

pub(super) const READS: [Reads; 5] = [
    needs("instruction", "text", text_shape),
    may("input", "text", text_shape),
    needs("output", "text", text_shape),
    may("system", "text", text_shape),
    may("history", "a list of pairs of text", pairs_shape),
];

fn pairs_shape(shape: &Shape) -> bool {
    match shape {
        Shape::Unknown => true,
        Shape::List(inner) => matches!(**inner, Shape::List(_) | Shape::Unknown),
        _ => false,
    }
}

pub(super) fn read(cells: &Cells) -> Result<Row, ReadError> {
    let mut messages = Vec::new();
    if let Some(system) = cells.optional_text("system")?.filter(|s| !s.is_empty()) {
        messages.push(Message::new("system", &system));
    }
    history(cells.optional("history")?, &mut messages)?;
    let mut user = cells.required_text("instruction")?;
    if let Some(input) = cells.optional_text("input")?.filter(|s| !s.is_empty()) {
        user.push('\n');
        user.push_str(&input);
    }
    messages.push(Message::new("user", &user));
    messages.push(Message::new("assistant", &cells.required_text("output")?));
    Ok(Row::Chat(Conversation { messages, tools: None }))
}

/// Earlier exchanges, as pairs of question and answer.
fn history(value: Value, messages: &mut Vec<Message>) -> Result<(), ReadError> {
    let Value::Array(pairs) = value else {
        return match value {
            Value::Null => Ok(()),
            other => Err(("history", wrong("the cell".into(), &other, "a list of pairs of text"))),
        };
    };
    for pair in pairs {
        let texts = pair.as_array().map(|items| items.iter().filter_map(Value::as_str).collect::<Vec<_>>());
        let Some([question, answer]) = texts.as_deref() else {
            return Err(("history", wrong("an entry".into(), &pair, "a pair of text")));
        };
        messages.push(Message::new("user", question));
        messages.push(Message::new("assistant", answer));
    }
    Ok(())
}
