#![no_main]
//! `tokenizer.json`: an encoder that encodes and decodes, or an error.

use libfuzzer_sys::fuzz_target;
use qwen_tune_data::{Encoder, TokensConfig};

fuzz_target!(|data: &[u8]| {
    let dir = qwen_tune_fuzz::home().join("tokenizer");
    std::fs::create_dir_all(&dir).expect("a directory");
    std::fs::write(dir.join("tokenizer.json"), data).expect("room");
    let Ok(encoder) = Encoder::from_dir(&dir, &TokensConfig::default(), qwen_tune_fuzz::VOCAB) else { return };
    if let Ok(ids) = encoder.encode_text("<|im_start|>user\nnäive 12 text<|im_end|>") {
        let _ = encoder.decode(&ids, true);
    }
});
