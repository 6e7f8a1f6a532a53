use qwen_tune_weights::gguf::{Metadata, Value as Key};

use super::*;
use crate::family;
use crate::gguf::metadata;

/// One key a line, as `name = value`.
fn keys(config: &Value) -> String {
    let spec = family::resolve(config).unwrap();
    let mut keys = Metadata::new();
    metadata::put(&mut keys, Architecture::of(&spec).unwrap(), &spec, config);
    let shown = |value: &Key| match value {
        Key::U32(value) => value.to_string(),
        Key::F32(value) => format!("{value:?}f"),
        Key::String(text) => format!("{text:?}"),
        Key::Array(array) => format!("{array:?}"),
        other => format!("{other:?}"),
    };
    keys.iter().map(|(key, value)| format!("{key} = {}\n", shown(value))).collect()
}

#[test]
fn all() {
    for config in models() {
        println!("{}", keys(&config));
    }
}
