//! Damaged files give errors: never a panic, never more memory than the file warrants.

use std::path::Path;

use qwen_tune_data::{AuditLimits, Dataset, Encoder, SourceConfig, TokensConfig};
use serde_json::json;

use crate::fixture::{VOCAB, conversations, model_dir, shared, write_arrow, write_parquet};

/// A small deterministic generator for damage.
struct Damage(u64);

impl Damage {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below
    }

    /// Cuts the bytes short or flips some bits.
    fn apply(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        if self.next(3) == 0 {
            bytes.truncate(self.next(bytes.len()));
        } else {
            for _ in 0..=self.next(4) {
                let at = self.next(bytes.len());
                bytes[at] ^= 1 << self.next(8);
            }
        }
        bytes
    }
}

/// Reads everything; errors are fine.
fn read(path: &Path) {
    let source = SourceConfig::new(path.to_str().unwrap());
    if let Ok(dataset) = Dataset::open(&[source], shared(TokensConfig::default()), &[]) {
        dataset.samples().take(1000).for_each(drop);
        drop(dataset.audit(AuditLimits::START));
    }
}

#[test]
fn damaged_parquet_files_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let cells: Vec<_> = (0..20).map(|_| Some(vec![("user", "a question"), ("assistant", "an answer")])).collect();
    write_parquet(&path, vec![("messages", conversations(&cells))], 6);
    let whole = std::fs::read(&path).unwrap();
    let mut damage = Damage(1);
    for _ in 0..300 {
        std::fs::write(&path, damage.apply(&whole)).unwrap();
        read(&path);
    }
}

#[test]
fn damaged_arrow_files_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.arrow");
    let cells: Vec<_> = (0..20).map(|_| Some(vec![("user", "a question"), ("assistant", "an answer")])).collect();
    let mut damage = Damage(4);
    for stream in [false, true] {
        write_arrow(&path, vec![("messages", conversations(&cells))], 6, stream);
        let whole = std::fs::read(&path).unwrap();
        for _ in 0..200 {
            std::fs::write(&path, damage.apply(&whole)).unwrap();
            read(&path);
        }
    }
}

#[test]
fn damaged_jsonl_files_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let line = json!({"messages": [{"role": "user", "content": "é"}, {"role": "assistant", "content": null,
        "tool_calls": [{"function": {"name": "f", "arguments": "{\"a\": [1]}"}}]}], "tools": "[{\"a\": 1}]"});
    let whole = format!("{line}\n").repeat(4).into_bytes();
    let path = dir.path().join("a.jsonl");
    let mut damage = Damage(2);
    for _ in 0..300 {
        std::fs::write(&path, damage.apply(&whole)).unwrap();
        read(&path);
    }
}

#[test]
fn damaged_tokenizers_and_templates_are_errors() {
    let dir = model_dir(&json!({"eos_token": "<|im_end|>", "chat_template": crate::fixture::CHATML}));
    let mut damage = Damage(3);
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let path = dir.path().join(name);
        let whole = std::fs::read(&path).unwrap();
        for _ in 0..150 {
            std::fs::write(&path, damage.apply(&whole)).unwrap();
            if let Ok(encoder) = Encoder::from_dir(dir.path(), &TokensConfig::default(), VOCAB) {
                let turns = crate::fixture::messages(&[("user", "x"), ("assistant", "y")]);
                let _ = encoder.render_chat(&turns, None, true, &serde_json::Map::new());
                let _ = encoder.encode_text("some text");
            }
        }
        std::fs::write(&path, whole).unwrap();
    }
}
