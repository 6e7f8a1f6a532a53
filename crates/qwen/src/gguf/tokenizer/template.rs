//! The settings beside a tokenizer, and the chat templates, wherever a directory has them.

use std::{fs, path::Path};

use qwen_tune_weights::WeightError;
use serde_json::Value;

use crate::gguf::GgufError;

const CONFIG_FILE: &str = "tokenizer_config.json";
/// The name of the template that is used unless another one is asked for.
pub(super) const DEFAULT: &str = "default";

/// `tokenizer_config.json`; null where there is none.
pub(super) fn config(directory: &Path) -> Result<Value, GgufError> {
    read_json(&directory.join(CONFIG_FILE)).map(Option::unwrap_or_default)
}

/// Templates by name, from wherever they lie.
pub(super) fn templates(directory: &Path, config: &Value) -> Result<Vec<(String, String)>, GgufError> {
    let default = |text: &str| vec![(DEFAULT.to_owned(), text.to_owned())];
    match &config["chat_template"] {
        Value::String(text) => return Ok(default(text)),
        Value::Array(several) => {
            let text = |entry: &Value, field: &str| entry[field].as_str().map(str::to_owned);
            let named = |entry: &Value| text(entry, "name").zip(text(entry, "template"));
            return Ok(several.iter().filter_map(named).collect());
        }
        _ => {}
    }
    let path = directory.join("chat_template.jinja");
    if path.is_file() {
        return Ok(default(&fs::read_to_string(&path).map_err(WeightError::io("read", &path))?));
    }
    let file = read_json(&directory.join("chat_template.json"))?.unwrap_or_default();
    Ok(file["chat_template"].as_str().map(default).unwrap_or_default())
}

fn read_json(path: &Path) -> Result<Option<Value>, GgufError> {
    if !path.is_file() {
        return Ok(None);
    }
    let text = fs::read(path).map_err(WeightError::io("read", path))?;
    let wrong = |error: serde_json::Error| GgufError::Tokenizer { path: path.to_owned(), reason: error.to_string() };
    serde_json::from_slice(&text).map(Some).map_err(wrong)
}
