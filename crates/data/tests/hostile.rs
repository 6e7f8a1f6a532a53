//! Damaged data files, tokenizers and templates: errors, or other text; never a panic, and no more memory than the file
//! warrants.

#![allow(clippy::unwrap_used, clippy::needless_pass_by_value, missing_docs, unreachable_pub)]

#[path = "../../../tests/hostile/damage.rs"]
mod damage;
#[allow(dead_code)]
#[path = "it/fixture.rs"]
mod fixture;
#[path = "../../../tests/hostile/memory.rs"]
mod memory;

use std::path::Path;
use std::sync::Arc;

use damage::Damage;
use proptest::prelude::*;
use qwen_tune_data::{AuditLimits, Dataset, Encoder, SourceConfig, TokensConfig};
use serde_json::json;

use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};

use fixture::{VOCAB, conversations, messages, model_dir, shared, write_arrow, write_compressed_parquet};

/// Readers keep buffers of a fixed size; a length in a file can claim gigabytes.
const LITTLE: usize = 128 << 20;

/// Leaves out the reports of panics that become errors, each of which costs more than a test's case.
fn quiet() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !qwen_tune_data::panics_are_contained() {
                report(panic);
            }
        }));
    });
}

/// Reads everything; true where nothing was wrong.
fn read(path: &Path, encoder: &Arc<Encoder>) -> bool {
    quiet();
    let source = SourceConfig::new(path.to_str().unwrap());
    let (sound, grown) = memory::growth(|| match Dataset::open(&[source], encoder.clone(), &[]) {
        Ok(dataset) => {
            drop(dataset.audit(AuditLimits::START));
            dataset.samples().take(1000).all(|sample| sample.is_ok())
        }
        Err(errors) => {
            assert!(errors.iter().all(|error| error.to_string().contains("rows.")), "{errors:?}");
            false
        }
    });
    assert!(grown < LITTLE, "{grown} bytes");
    sound
}

/// Damages a data file many times over.
fn damaged(path: &Path, seed: u64, times: usize) {
    let encoder = shared(TokensConfig::default());
    let whole = std::fs::read(path).unwrap();
    assert!(read(path, &encoder), "the whole file is sound");
    let mut damage = Damage::new(seed);
    let sound = (0..times)
        .filter(|_| {
            std::fs::write(path, damage.apply(&whole)).unwrap();
            read(path, &encoder)
        })
        .count();
    assert!(sound < times * 7 / 10, "{sound}");
}

fn rows() -> Vec<(&'static str, arrow::array::ArrayRef)> {
    let cells: Vec<_> = (0..5).map(|_| Some(vec![("user", "a question"), ("assistant", "an answer")])).collect();
    vec![("messages", conversations(&cells))]
}

#[test]
fn damaged_parquet_files_are_errors_or_other_text() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.parquet");
    write_compressed_parquet(&path, rows(), 2, Compression::UNCOMPRESSED);
    damaged(&path, 1, 1000);
}

#[test]
fn damaged_compressed_files_are_errors_or_other_text() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.parquet");
    for (by, seed) in [
        (Compression::SNAPPY, 8),
        (Compression::ZSTD(ZstdLevel::default()), 9),
        (Compression::GZIP(GzipLevel::default()), 10),
        (Compression::BROTLI(BrotliLevel::default()), 11),
        (Compression::LZ4_RAW, 12),
    ] {
        write_compressed_parquet(&path, rows(), 5, by);
        damaged(&path, seed, 200);
    }
}

#[test]
fn damaged_arrow_files_are_errors_or_other_text() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.arrow");
    for (stream, seed) in [(false, 2), (true, 3)] {
        write_arrow(&path, rows(), 2, stream);
        damaged(&path, seed, 500);
    }
}

#[test]
fn damaged_jsonl_files_are_errors_or_other_text() {
    let dir = tempfile::tempdir().unwrap();
    let line = json!({"messages": [{"role": "user", "content": "é"}, {"role": "assistant", "content": null,
        "tool_calls": [{"function": {"name": "f", "arguments": "{\"a\": [1]}"}}]}], "tools": "[{\"a\": 1}]"});
    let path = dir.path().join("rows.jsonl");
    std::fs::write(&path, format!("{line}\n").repeat(4)).unwrap();
    damaged(&path, 4, 1000);
}

/// Opens the encoder of a model directory and uses it.
fn encode(dir: &Path) -> bool {
    quiet();
    let (opened, grown) = memory::growth(|| {
        let encoder = Encoder::from_dir(dir, &TokensConfig::default(), VOCAB).ok()?;
        let turns = messages(&[("user", "x"), ("assistant", "y")]);
        let _ = encoder.render_chat(&turns, None, true, &serde_json::Map::new());
        let _ = encoder.decode(&encoder.encode_text("some text<|im_end|>").ok()?, false);
        Some(())
    });
    assert!(grown < LITTLE, "{grown} bytes");
    opened.is_some()
}

#[test]
fn damaged_tokenizers_and_templates_are_errors_or_other_tokens() {
    let dir = model_dir(&json!({"eos_token": "<|im_end|>", "chat_template": fixture::CHATML}));
    for (name, seed) in [("tokenizer.json", 5), ("tokenizer_config.json", 6), ("chat_template.jinja", 7)] {
        let path = dir.path().join(name);
        if name.ends_with("jinja") {
            std::fs::write(&path, fixture::GENERATION).unwrap();
        }
        let whole = std::fs::read(&path).unwrap();
        assert!(encode(dir.path()));
        let mut damage = Damage::new(seed);
        let sound = (0..1000)
            .filter(|_| {
                std::fs::write(&path, damage.apply(&whole)).unwrap();
                encode(dir.path())
            })
            .count();
        assert!(sound < 900, "{name}: {sound}");
        std::fs::write(&path, whole).unwrap();
    }
}

#[test]
fn json_nested_without_end_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    let encoder = shared(TokensConfig::default());
    for deep in [r#"{"messages":"#.to_owned() + &"[".repeat(1_000_000), r#"{"a":"#.repeat(300_000)] {
        std::fs::write(&path, deep).unwrap();
        assert!(!read(&path, &encoder));
    }
    // Text that is JSON within JSON has levels of its own.
    let inner = "[".repeat(100_000);
    std::fs::write(&path, json!({"messages": inner, "tools": inner}).to_string()).unwrap();
    assert!(!read(&path, &encoder));
}

/// JSON of about the shape of a row, and of any other.
fn anything() -> impl Strategy<Value = serde_json::Value> {
    let text =
        prop::sample::select(vec!["user", "assistant", "", "é\u{fdd0}", "[]", "{\"a\":1}", "<|im_end|>", "<think>"]);
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        text.prop_map(Into::into),
    ];
    let keys = vec![
        "role",
        "content",
        "tool_calls",
        "function",
        "name",
        "arguments",
        "type",
        "text",
        "reasoning_content",
        "messages",
        "tools",
        "prompt",
        "completion",
        "conversations",
        "from",
        "value",
        "input_ids",
        "labels",
        "instruction",
        "output",
    ];
    leaf.prop_recursive(5, 32, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::btree_map(prop::sample::select(keys.clone()), inner, 0..4).prop_map(|fields| fields
                .into_iter()
                .map(|(k, v)| (k.to_owned(), v))
                .collect::<serde_json::Map<_, _>>()
                .into()),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn rows_of_any_shape_are_rows_or_errors(rows in prop::collection::vec(anything(), 1..4)) {
        thread_local!(static ENCODER: Arc<Encoder> = shared(TokensConfig::default()));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        let lines: Vec<String> = rows.iter().map(|row| json!({"messages": row, "tools": row, "input_ids": row}).to_string()).collect();
        std::fs::write(&path, lines.join("\n")).unwrap();
        ENCODER.with(|encoder| read(&path, encoder));
        let lines: Vec<String> = rows.iter().map(ToString::to_string).collect();
        std::fs::write(&path, lines.join("\n")).unwrap();
        ENCODER.with(|encoder| read(&path, encoder));
    }
}
