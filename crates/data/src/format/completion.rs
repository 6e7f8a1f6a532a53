//! `prompt` and `completion`: only the completion is trained.

use serde_json::Value;

use super::messages::{messages, tools, wrong};
use super::{Cells, ReadError, Reads, may, needs, text_or_objects};
use crate::row::{Conversation, Message, Row};

const EXPECTED: &str = "text, or a list of messages";

pub(super) const READS: [Reads; 3] = [
    needs("prompt", EXPECTED, text_or_objects),
    needs("completion", EXPECTED, text_or_objects),
    may("tools", "a list of tool declarations, or the same as JSON text", text_or_objects),
];

pub(super) fn read(cells: &Cells) -> Result<Row, ReadError> {
    let completion = cells.required("completion", EXPECTED)?;
    match cells.required("prompt", EXPECTED)? {
        Value::String(prompt) => match completion {
            Value::String(completion) => Ok(Row::Completion { prompt, completion }),
            other => Err(("completion", wrong("the cell".into(), &other, "text, as `prompt` is"))),
        },
        prompt => {
            let prompt = messages(prompt).map_err(|error| ("prompt", error))?;
            let completion = match completion {
                Value::String(text) => vec![Message::new("assistant", &text)],
                list => messages(list).map_err(|error| ("completion", error))?,
            };
            Ok(Row::ChatCompletion { prompt: Conversation { messages: prompt, tools: tools(cells)? }, completion })
        }
    }
}
