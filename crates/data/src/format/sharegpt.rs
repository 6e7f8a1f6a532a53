//! `conversations`: a list of `from` and `value` per row, as ShareGPT dumps have it.

use serde_json::{Map, Value};

use super::messages::{parse_arguments, tools, wrong};
use super::{Cells, ReadError, Reads, may, needs, text_or_objects, text_shape};
use crate::error::RowError;
use crate::row::{Conversation, Message, Row};

const EXPECTED: &str = "a list of objects with `from` and `value`, or the same as JSON text";
const ROLES: &str = "human, user, gpt, assistant, system, tool, observation, function_call or function_response";

pub(super) const READS: [Reads; 3] = [
    needs("conversations", EXPECTED, text_or_objects),
    may("system", "text", text_shape),
    may("tools", "a list of tool declarations, or the same as JSON text", text_or_objects),
];

pub(super) fn read(cells: &Cells) -> Result<Row, ReadError> {
    let at = |error| ("conversations", error);
    let value = match cells.required("conversations", EXPECTED)? {
        Value::String(text) => {
            serde_json::from_str(&text).map_err(|error| at(RowError::Json { message: error.to_string() }))?
        }
        value => value,
    };
    let Value::Array(items) = value else {
        return Err(at(wrong("the cell".into(), &value, EXPECTED)));
    };
    if items.is_empty() {
        return Err(at(RowError::Empty { what: "the conversation" }));
    }
    let mut messages = Vec::with_capacity(items.len() + 1);
    if let Some(system) = cells.optional_text("system")?.filter(|s| !s.is_empty()) {
        messages.push(Message::new("system", &system));
    }
    for (index, item) in items.iter().enumerate() {
        messages.push(turn(index, item).map_err(at)?);
    }
    Ok(Row::Chat(Conversation { messages, tools: tools(cells)? }))
}

fn turn(index: usize, item: &Value) -> Result<Message, RowError> {
    let Value::Object(fields) = item else {
        return Err(wrong(format!("message {index}"), item, "an object with `from` and `value`"));
    };
    let from = text(index, fields, "from")?;
    let value = text(index, fields, "value")?;
    let role = match from {
        "human" | "user" => "user",
        "gpt" | "assistant" | "chatgpt" | "model" | "bot" => "assistant",
        "system" => "system",
        "tool" | "observation" | "function_response" => "tool",
        "function_call" => return call(value),
        other => return Err(RowError::UnknownRole { index, role: other.to_owned(), expected: ROLES }),
    };
    Ok(Message::new(role, value))
}

/// A turn that is nothing but tool calls, as JSON of one call or of a list.
fn call(value: &str) -> Result<Message, RowError> {
    let parsed = serde_json::from_str(value).map_err(|error| RowError::Json { message: error.to_string() })?;
    let mut calls = match parsed {
        Value::Array(calls) => calls,
        one => vec![one],
    };
    let mut wrapped = Vec::with_capacity(calls.len());
    for call in &mut calls {
        if !call.is_object() {
            return Err(wrong("a function call".into(), call, "an object with `name` and `arguments`"));
        }
        parse_arguments(call);
        let mut function = Map::new();
        function.insert("type".into(), "function".into());
        function.insert("function".into(), call.take());
        wrapped.push(Value::Object(function));
    }
    let mut message = Message::new("assistant", "");
    message.fields_mut().insert("tool_calls".into(), Value::Array(wrapped));
    Ok(message)
}

fn text<'a>(index: usize, fields: &'a Map<String, Value>, field: &'static str) -> Result<&'a str, RowError> {
    match fields.get(field) {
        Some(Value::String(text)) => Ok(text),
        None | Some(Value::Null) => {
            Err(RowError::MissingField { index, field, found: fields.keys().cloned().collect() })
        }
        Some(other) => Err(wrong(format!("`{field}` of message {index}"), other, "text")),
    }
}
