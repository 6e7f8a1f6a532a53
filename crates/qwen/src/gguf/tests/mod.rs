#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

mod adapters;
mod keys;
mod layouts;
mod round_trip;
mod tokenizers;
mod types;

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::{ModelDir, fixture::Fixture};

/// A small model of every architecture, with everything in it that its files rearrange.
fn models() -> Vec<Value> {
    let of = |model_type: &str, more: Value| {
        let mut config = json!({
            "model_type": model_type, "vocab_size": 24, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "rms_norm_eps": 1e-6,
            "max_position_embeddings": 64, "eos_token_id": 2,
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    };
    let experts = json!({ "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 6 });
    let shared = json!({ "shared_expert_intermediate_size": 10 });
    let delta = json!({ "linear_num_key_heads": 2, "linear_num_value_heads": 6, "linear_key_head_dim": 4,
        "linear_value_head_dim": 4, "linear_conv_kernel_dim": 3, "num_hidden_layers": 4, "full_attention_interval": 4,
        "head_dim": 8 });
    let joined = |parts: &[&Value]| {
        let mut all = json!({});
        parts.iter().for_each(|part| all.as_object_mut().unwrap().extend(part.as_object().unwrap().clone()));
        all
    };
    vec![
        of("qwen2", json!({ "tie_word_embeddings": true })),
        of(
            "qwen2",
            json!({ "rope_scaling": { "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16 } }),
        ),
        of("qwen2_moe", joined(&[&experts, &shared, &json!({ "tie_word_embeddings": true })])),
        of("qwen3", json!({ "num_attention_heads": 4, "num_key_value_heads": 2 })),
        of("qwen3_moe", joined(&[&experts, &json!({ "norm_topk_prob": true })])),
        of("qwen3_next", joined(&[&experts, &shared, &delta])),
        of("qwen3_5_text", joined(&[&delta, &json!({ "tie_word_embeddings": true })])),
        of("qwen3_5_moe_text", joined(&[&experts, &shared, &delta])),
        of("mistral", json!({ "sliding_window": null })),
        of(
            "llama",
            json!({ "attention_bias": true, "mlp_bias": true,
            "rope_scaling": { "rope_type": "linear", "factor": 2.0 } }),
        ),
        of(
            "llama",
            json!({ "rope_theta": 1000.0, "rope_scaling": { "rope_type": "llama3", "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64 } }),
        ),
    ]
}

/// A directory with such a model and a tokenizer of 20 tokens.
fn stored(config: &Value) -> (TempDir, ModelDir) {
    let fixture = Fixture { config: config.clone(), ..Fixture::new("qwen3") };
    let home = fixture.write();
    fs::write(home.path().join("tokenizer.json"), tokenizer().to_string()).unwrap();
    let settings =
        json!({ "eos_token": "<|im_end|>", "pad_token": { "content": "<|endoftext|>" }, "chat_template": "hello" });
    fs::write(home.path().join("tokenizer_config.json"), settings.to_string()).unwrap();
    let model = ModelDir::open(home.path()).unwrap();
    (home, model)
}

/// `a`..`n` and pairs of them, then three added tokens, one of them visible.
fn tokenizer() -> Value {
    let mut vocab: Vec<String> = ('a'..='n').map(String::from).collect();
    vocab.extend(["ab", "cd", "abcd"].map(str::to_owned));
    let vocab: serde_json::Map<String, Value> =
        vocab.into_iter().enumerate().map(|(id, text)| (text, id.into())).collect();
    let pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    json!({
        "added_tokens": [
            { "id": 17, "content": "<|endoftext|>", "special": true },
            { "id": 18, "content": "<|im_end|>", "special": true },
            { "id": 20, "content": "<think>", "special": false },
        ],
        "normalizer": { "type": "NFC" },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
        ] },
        "post_processor": { "type": "ByteLevel" },
        "decoder": { "type": "ByteLevel" },
        "model": { "type": "BPE", "vocab": vocab, "merges": [["a", "b"], "c d", ["ab", "cd"]], "ignore_merges": false },
    })
}

fn options(quants: &[Quant]) -> WriteOptions {
    let about = About { name: "Test".to_owned(), base: Some("Qwen/Base".to_owned()), ..About::default() };
    WriteOptions { name: "test".to_owned(), quants: quants.to_vec(), about, shard_bytes: u64::MAX }
}

fn texts(faults: Vec<GgufError>) -> Vec<String> {
    faults.iter().map(ToString::to_string).collect()
}
