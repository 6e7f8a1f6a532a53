//! `messages`: a list of role and content per row, as OpenAI's API and most data sets have it.

use serde_json::{Map, Value};

use super::{Cells, ReadError, Reads, may, needs, text_or_objects};
use crate::chat::REASONING;
use crate::error::RowError;
use crate::row::{Conversation, Message, Row};
use crate::source::kind;

pub(super) const EXPECTED: &str = "a list of objects with `role` and `content`, or the same as JSON text";
const EXPECTED_TOOLS: &str = "a list of tool declarations, or the same as JSON text";

pub(super) const READS: [Reads; 2] =
    [needs("messages", EXPECTED, text_or_objects), may("tools", EXPECTED_TOOLS, text_or_objects)];

pub(super) fn read(cells: &Cells) -> Result<Row, ReadError> {
    let value = cells.required("messages", EXPECTED)?;
    let messages = messages(value).map_err(|error| ("messages", error))?;
    Ok(Row::Chat(Conversation { messages, tools: tools(cells)? }))
}

/// The `tools` column; null and empty lists mean that there are none.
pub(super) fn tools(cells: &Cells) -> Result<Option<Value>, ReadError> {
    let value = parsed(cells.optional("tools")?).map_err(|error| ("tools", error))?;
    match value {
        Value::Null => Ok(None),
        Value::Array(items) if items.is_empty() => Ok(None),
        Value::Array(items) => match items.iter().position(|tool| !tool.is_object()) {
            None => Ok(Some(Value::Array(items))),
            Some(index) => Err(("tools", wrong(format!("tool {index}"), &items[index], "an object"))),
        },
        other => Err(("tools", wrong("the cell".into(), &other, EXPECTED_TOOLS))),
    }
}

/// A list of messages, or JSON text of one.
pub(super) fn messages(value: Value) -> Result<Vec<Message>, RowError> {
    let items = match parsed(value)? {
        Value::Array(items) => items,
        other => return Err(wrong("the cell".into(), &other, EXPECTED)),
    };
    if items.is_empty() {
        return Err(RowError::Empty { what: "the conversation" });
    }
    items.into_iter().enumerate().map(|(index, item)| message(index, item)).collect()
}

fn message(index: usize, item: Value) -> Result<Message, RowError> {
    let Value::Object(fields) = item else {
        return Err(wrong(format!("message {index}"), &item, "an object with `role` and `content`"));
    };
    let missing = |fields: &Map<String, Value>, field| RowError::MissingField {
        index,
        field,
        found: fields.keys().cloned().collect(),
    };
    let mut kept = Map::with_capacity(fields.len());
    for (key, value) in fields {
        let value = match key.as_str() {
            "content" => content(index, value)?,
            "tool_calls" => calls(index, value)?,
            "role" | "name" | "tool_call_id" | "reasoning_content" | "thinking" | "reasoning"
                if !(value.is_string() || value.is_null()) =>
            {
                return Err(wrong(format!("`{key}` of message {index}"), &value, "text"));
            }
            _ => value,
        };
        if !value.is_null() {
            kept.insert(key, value);
        }
    }
    match kept.get("role").and_then(Value::as_str) {
        None => return Err(missing(&kept, "role")),
        Some("") => {
            let expected = "system, user, assistant or tool";
            return Err(RowError::UnknownRole { index, role: String::new(), expected });
        }
        Some(_) => {}
    }
    if !kept.contains_key("content") {
        // A turn that only calls tools, or only reasons, has null or no content; templates expect text.
        let silent = kept.contains_key("tool_calls") || REASONING.iter().any(|name| kept.contains_key(*name));
        if !silent {
            return Err(missing(&kept, "content"));
        }
        kept.insert("content".into(), "".into());
    }
    Ok(Message::from_fields(kept))
}

/// Text; a list of text parts is joined, as templates that take parts do, since the others drop them in silence.
fn content(index: usize, value: Value) -> Result<Value, RowError> {
    let Value::Array(parts) = value else {
        return match value {
            Value::String(_) | Value::Null => Ok(value),
            other => Err(wrong(format!("`content` of message {index}"), &other, "text or a list of text parts")),
        };
    };
    let mut text = String::new();
    for (i, part) in parts.iter().enumerate() {
        let kind = part.get("type").and_then(Value::as_str).unwrap_or("text");
        match (kind, part.as_str().or_else(|| part.get("text").and_then(Value::as_str))) {
            ("text", Some(part)) => text.push_str(part),
            _ => {
                return Err(RowError::WrongType {
                    what: format!("part {i} of message {index}"),
                    found: format!("of the type `{kind}`"),
                    expected: "`text` (images, audio and video cannot be trained on)",
                });
            }
        }
    }
    Ok(text.into())
}

/// Tool calls with their `arguments` parsed: templates of one family print a string raw and those of another quote it.
fn calls(index: usize, value: Value) -> Result<Value, RowError> {
    let expected = "a list of tool calls";
    let what = || format!("`tool_calls` of message {index}");
    let mut items = match parsed(value)? {
        Value::Null => return Ok(Value::Null),
        // Templates may ask only whether the key is there.
        Value::Array(items) if items.is_empty() => return Ok(Value::Null),
        Value::Array(items) => items,
        other => return Err(wrong(what(), &other, expected)),
    };
    for item in &mut items {
        if !item.is_object() {
            return Err(wrong(what(), item, "a list of objects"));
        }
        let call = if item.get("function").is_some_and(Value::is_object) { &mut item["function"] } else { item };
        parse_arguments(call);
    }
    Ok(Value::Array(items))
}

/// Replaces `arguments` that is JSON text of an object by that object; other text is left to the template.
pub(super) fn parse_arguments(call: &mut Value) {
    if let Some(Value::String(text)) = call.get("arguments")
        && let Ok(object @ Value::Object(_)) = serde_json::from_str(text)
    {
        call["arguments"] = object;
    }
}

/// JSON text is parsed; anything else stays.
fn parsed(value: Value) -> Result<Value, RowError> {
    match value {
        Value::String(text) => {
            serde_json::from_str(&text).map_err(|error| RowError::Json { message: error.to_string() })
        }
        other => Ok(other),
    }
}

pub(super) fn wrong(what: String, found: &Value, expected: &'static str) -> RowError {
    RowError::WrongType { what, found: kind(found).into(), expected }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn null_fields_vanish_and_arguments_are_parsed_in_order() {
        let read = messages(json!([
            {"role": "user", "content": "hi", "name": null},
            {"role": "assistant", "content": null, "tool_calls": [
                {"type": "function", "function": {"name": "f", "arguments": "{\"b\": 1, \"a\": null}"}}]},
            {"role": "tool", "content": [{"type": "text", "text": "o"}, {"type": "text", "text": "k"}]},
            {"role": "assistant", "content": "done", "tool_calls": []},
        ]))
        .unwrap();
        assert!(!read[0].fields().contains_key("name"));
        let call = &read[1].fields()["tool_calls"][0]["function"]["arguments"];
        assert_eq!(call.to_string(), r#"{"b":1,"a":null}"#);
        assert_eq!(read[1].content(), Some(""));
        assert_eq!(read[2].content(), Some("ok"));
        assert!(!read[3].fields().contains_key("tool_calls"));
    }

    #[test]
    fn json_text_is_read_like_a_list() {
        let read = messages(json!(r#"[{"role": "user", "content": "hi"}]"#)).unwrap();
        assert_eq!(read, [Message::new("user", "hi")]);
    }

    #[test]
    fn what_is_wrong_with_a_message_is_said() {
        let error = |value| messages(value).unwrap_err().to_string();
        assert_eq!(error(json!([])), "the conversation is empty");
        assert_eq!(error(json!([3])), "message 0 is a number, expected an object with `role` and `content`");
        assert_eq!(error(json!([{"content": "x"}])), "message 0 has no `role`; it has `content`");
        assert_eq!(error(json!([{"role": "user"}])), "message 0 has no `content`; it has `role`");
        assert_eq!(
            error(json!([{"role": "user", "content": 3}])),
            "`content` of message 0 is a number, expected text or a list of text parts"
        );
        assert_eq!(
            error(json!([{"role": "user", "content": [{"type": "image"}]}])),
            "part 0 of message 0 is of the type `image`, expected `text` (images, audio and video cannot be trained on)"
        );
        assert!(error(json!("[{")).starts_with("not valid JSON: EOF"));
    }
}
