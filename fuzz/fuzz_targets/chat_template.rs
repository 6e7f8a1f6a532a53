#![no_main]
//! A chat template: compiled, and rendered with a conversation of each kind of message.

use libfuzzer_sys::fuzz_target;
use qwen_tune_data::{Encoder, TokensConfig};
use serde_json::Map;

fuzz_target!(|template: &str| {
    let dir = qwen_tune_fuzz::model_dir();
    std::fs::write(dir.join("chat_template.jinja"), template).expect("room");
    let Ok(encoder) = Encoder::from_dir(&dir, &TokensConfig::default(), qwen_tune_fuzz::VOCAB) else { return };
    let (messages, tools) = qwen_tune_fuzz::conversation();
    if let Ok(text) = encoder.render_chat(&messages, Some(&tools), true, &Map::new()) {
        assert!(text.len() <= 64 << 20);
    }
});
