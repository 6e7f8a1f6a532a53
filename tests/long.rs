//! A row of 65,536 tokens on a CPU, in the memory that the plan says: the plans of long rows on cards are made with the same
//! formula, and a tiny width leaves nothing out of it.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::made_model;
use crate::runs::succeed;

const TOKENS: usize = 65_536;

/// Two layers of one narrow head, so that attention over the row takes seconds.
fn write_model(directory: &Path) {
    let mut config = made_model::config("qwen3");
    for (key, value) in [
        ("hidden_size", 64),
        ("intermediate_size", 192),
        ("num_hidden_layers", 2),
        ("num_attention_heads", 1),
        ("num_key_value_heads", 1),
        ("head_dim", 16),
        ("max_position_embeddings", TOKENS),
    ] {
        config[key] = value.into();
    }
    made_model::write(directory, &config, "model.");
}

fn write_row(path: &Path) {
    let ids: Vec<usize> = (0..TOKENS).map(|i| i * 7919 % 2000).collect();
    std::fs::write(path, json!({ "input_ids": ids }).to_string()).unwrap();
}

#[test]
#[cfg(target_os = "linux")]
fn a_row_of_65536_tokens_trains_in_the_memory_that_its_plan_says() {
    let home = tempdir().unwrap();
    let (base, row) = (home.path().join("base"), home.path().join("row.jsonl"));
    write_model(&base);
    write_row(&row);
    let settings = [
        format!("model.base={}", base.display()),
        format!("data[0].path={}", row.display()),
        format!("run.dir={}", home.path().join("run").display()),
    ];
    let mut words = ["model.quantize=nf4", "data[0].format=tokens", "run.steps=1", "run.global_batch=1", "lora.rank=8"]
        .map(str::to_owned)
        .to_vec();
    words.push(format!("tokens.max_length={TOKENS}"));
    words.push("run.memory=270MB".to_owned());
    words.extend(settings);
    let settings: Vec<&str> = words.iter().flat_map(|word| ["--set", word]).collect();
    let plan: Value = serde_json::from_str(&succeed(&[&["plan", "--json"], &settings[..]].concat())).unwrap();
    assert_eq!((&plan["micro_batch_tokens"], &plan["recompute"]), (&json!(TOKENS), &json!(2)), "{plan}");
    assert!(plan["ffn_chunk"].as_u64().is_some_and(|chunk| chunk <= 4096), "{plan}");

    let out = succeed(&[&["train", "--json"], &settings[..]].concat());
    let events: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let step = events.iter().find(|event| event["event"] == "step").unwrap();
    assert_eq!(step["trained_tokens"], TOKENS - 1);
    assert!(step["loss"].as_f64().unwrap().is_finite() && step["grad_norm"].as_f64().unwrap() > 0.0, "{step}");
    let (planned, held) =
        (plan["memory_bytes"].as_f64().unwrap(), events[events.len() - 1]["peak_memory"].as_f64().unwrap());
    let off = planned / held - 1.0;
    eprintln!("planned {planned:.3e}, held {held:.3e} ({off:+.3}), {} s", step["seconds"]);
    assert!(held < 270e6 && off.abs() < 0.05, "planned {planned:.3e} bytes, held {held:.3e} ({off:+.3})");
}
