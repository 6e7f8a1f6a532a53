//! Runs on quantised bases: what they export, how they resume, what is refused.

use std::fs;

use serde_json::Value;

use super::{LORA, MODEL, Scratch, fail, losses, metrics, succeed};

/// The trained model is the adapter on the stored base, so that merging stays exact; what quantising changed is noted beside.
#[test]
fn exports_of_a_quantised_run_are_made_of_the_stored_base() {
    let scratch = Scratch::new();
    let data = ["--data", "datasets/shakespeare_chat_eval.parquet", "--json", "--set", "eval.limit=16"];
    let loss = |args: &[&str]| -> f64 {
        let out = succeed(&[&["eval"], args, &data, &["--set", "tokens.max_length=512"]].concat());
        serde_json::from_str::<Value>(&out).unwrap()["loss"].as_f64().unwrap()
    };
    for quantize in ["nf4", "int8", "q4_0"] {
        let set = format!("model.quantize={quantize}");
        succeed(&["train", LORA, "--set", &scratch.dir(quantize), "--set", &set]);
        let run = scratch.path(quantize);
        let evals = losses(&run, "eval");
        assert!(evals[1] < evals[0] - 0.05, "{quantize}: held-out loss {evals:?}");
        let verified: Value =
            serde_json::from_slice(&fs::read(run.join("export/merged/verify.json")).unwrap()).unwrap();
        let trained_on = &verified["trained_on"];
        assert_eq!(trained_on["quantize"], quantize);
        let kl = trained_on["mean_kl"].as_f64().unwrap();
        assert!(kl > 1e-7 && kl < 0.2, "{quantize}: {kl}");
        assert!(verified["files"][0]["mean_kl"].as_f64().unwrap() < 2e-3, "{verified}");

        let (adapter, merged) = (run.join("adapter"), run.join("export/merged"));
        let (adapter, merged) = (adapter.display().to_string(), merged.display().to_string());
        let as_trained = loss(&["--model", MODEL, "--adapter", &adapter, "--set", &set]);
        let on_stored = loss(&["--model", MODEL, "--adapter", &adapter]);
        assert!((as_trained - evals[1]).abs() < 1e-5, "{quantize}: {as_trained} after {evals:?}");
        assert_ne!(as_trained, on_stored, "{quantize}");
        assert!((loss(&["--model", &merged]) - on_stored).abs() < 2e-2, "{quantize}");
        let again = scratch.path(&format!("{quantize}-again")).display().to_string();
        succeed(&["export", &run.display().to_string(), "--to", "merged", "--out", &again]);
        let bytes = |dir: &str| fs::read(format!("{dir}/model.safetensors")).unwrap();
        assert_eq!(bytes(&merged), bytes(&again));
    }
}

#[test]
fn a_resumed_run_on_a_quantised_base_is_the_uninterrupted_one() {
    let scratch = Scratch::new();
    let set = ["model.quantize=nf4", "run.steps=4", "checkpoint.every=2", "eval.limit=4"];
    let set: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).collect();
    succeed(&[&["train", LORA, "--set", &scratch.dir("whole")], &set[..]].concat());
    succeed(&[&["train", LORA, "--set", &scratch.dir("half")], &set[..], &["--set", "run.steps=2"]].concat());
    succeed(&[&["train", LORA, "--resume", "--set", &scratch.dir("half")], &set[..]].concat());
    let steps = |name: &str| losses(&scratch.path(name), "step");
    assert_eq!(steps("whole")[..2], steps("half")[..2]);
    let refused = fail(
        &[&["train", LORA, "--resume", "--set", &scratch.dir("half")], &set[..], &["--set", "model.quantize=int8"]]
            .concat(),
        2,
    );
    assert!(refused.contains("model.quantize"), "{refused}");
}

#[test]
fn a_gguf_base_is_trained_as_its_f32_copy_is_and_not_quantised_again() {
    let scratch = Scratch::new();
    let files = scratch.path("files").display().to_string();
    succeed(&["export", "--model", MODEL, "--to", "gguf", "--quant", "q8_0,f32", "--out", &files, "--no-verify"]);
    let file = |quant: &str| {
        let found = fs::read_dir(&files).unwrap().map(|entry| entry.unwrap().path());
        let name =
            found.into_iter().find(|path| path.display().to_string().ends_with(&format!("{quant}.gguf"))).unwrap();
        format!("model.base={}", name.display())
    };
    let short = ["--set", "run.steps=3", "--set", "eval.limit=4", "--set", "export=[]"];
    succeed(&[&["train", LORA, "--set", &file("Q8_0"), "--set", &scratch.dir("blocks")], &short[..]].concat());
    let plan = succeed(&["plan", LORA, "--set", &file("Q8_0")]);
    assert!(plan.contains("the file's own blocks are trained in place, q8_0"), "{plan}");
    assert!(!metrics(&scratch.path("blocks")).is_empty());
    let twice = fail(&["check", LORA, "--set", &file("Q8_0"), "--set", "model.quantize=nf4"], 2);
    assert!(twice.contains("in blocks already") && twice.contains("trained in place"), "{twice}");
    // Whole numbers in a GGUF file are quantised as any others.
    let set = ["--set", "model.quantize=nf4"];
    succeed(&[&["train", LORA, "--set", &file("F32"), "--set", &scratch.dir("f32")], &short[..], &set].concat());
    succeed(&[&["train", LORA, "--set", &scratch.dir("stored")], &short[..], &set].concat());
    assert_eq!(losses(&scratch.path("f32"), "step"), losses(&scratch.path("stored"), "step"));
}
