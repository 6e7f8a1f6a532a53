//! The base's lock: written with what is made from a base, asked for when that is used.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::scene::Scene;

/// A run on a copy of the model.
fn trained(make: fn() -> Scene) -> Scene {
    let scene = make();
    scene.copy_model();
    scene.succeed(scene.train(false, &SETTINGS));
    scene
}

const SETTINGS: [&str; 2] = ["model.base=model", "run.steps=4"];

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Changes one byte of one weight.
fn change_base(scene: &Scene) {
    let path = scene.path("model/model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn the_lock_is_that_of_sha256sum_and_stands_in_all_that_is_made() {
    let scene = trained(Scene::lora);
    let plan = json(&scene.path("run/plan.json"));
    let lock = &plan["lock"];
    let names: Vec<&str> = lock["files"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        names,
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    );
    let sums = Command::new("sh")
        .arg("-c")
        .arg(format!("sha256sum {} | sha256sum", names.join(" ")))
        .current_dir(scene.path("model"))
        .output()
        .unwrap();
    assert!(super::text(&sums.stdout).starts_with(lock["digest"].as_str().unwrap()));
    for adapter in ["adapter", "export/adapter", "checkpoints/step-000004"] {
        let config = json(&scene.run().join(adapter).join("adapter_config.json"));
        assert_eq!(&config["auto_mapping"]["qwen_tune_base_lock"], lock, "{adapter}");
    }
    let merged = json(&scene.path("run/export/merged/qwen_tune.lock.json"));
    assert_eq!(&merged["base"], lock);
    assert_ne!(merged["model"]["files"]["model.safetensors"], lock["files"]["model.safetensors"]);
    assert_eq!(merged["model"]["files"]["tokenizer.json"], lock["files"]["tokenizer.json"]);
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!("base_verified", scene.succeed(scene.command(&["inspect", "run/adapter", "--verify"])));
    });
    for made in ["run", "run/adapter", "run/export/merged"] {
        let told = scene.succeed(scene.command(&["inspect", made, "--verify"]));
        assert!(told.contains("as locked") && !told.contains("CHANGED"), "{told}");
    }
}

#[test]
fn a_changed_base_is_named_and_refused_until_that_is_meant() {
    let scene = trained(Scene::lora);
    change_base(&scene);
    let merge_run = ["export", "run", "--to", "merged", "--out", "again"];
    let adapter = ["--model", "model", "--adapter", "run/adapter"];
    let generate = [&["generate"], &adapter[..], &["--prompt", "Ho!", "--set", "generate.max_tokens=2"]].concat();
    let data = super::root().join("datasets/shakespeare_chat_eval.parquet").display().to_string();
    let eval = [&["eval"], &adapter[..], &["--data", &data, "--set", "eval.limit=1"]].concat();
    let merge = [&["export"], &adapter[..], &["--to", "merged", "--out", "other"]].concat();
    let further =
        ["train", "recipe.toml", "--set", "run.dir=further", "--set", "lora.init=run/adapter", "--set", SETTINGS[0]];
    let resume = ["train", "recipe.toml", "--resume", "--set", SETTINGS[0], "--set", "run.steps=5"];
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!("base_changed", scene.fail(scene.command(&generate), 2));
        insta::assert_snapshot!("base_verify", scene.fail(scene.command(&["inspect", "run/export/adapter", "--verify"]), 1));
    });
    let verified = scene.command(&["inspect", "run/export/adapter", "--verify", "--json"]).output().unwrap();
    let verified: Value = serde_json::from_slice(&verified.stdout).unwrap();
    assert_eq!(verified["matches"], false);
    assert_eq!(verified["verified"][0]["differences"][0]["file"], "model.safetensors");
    for arguments in [&merge_run[..], &generate, &eval, &merge, &further, &resume] {
        let told = scene.fail(scene.command(arguments), 2);
        assert!(told.contains("base-changed") && told.contains("`model.safetensors`"), "{arguments:?}\n{told}");
        scene.succeed(scene.command(&[arguments, &["--set", "model.lock=false"]].concat()));
    }
    assert!(!scene.path("again/qwen_tune.lock.json").exists(), "nobody vouches for this base");
}

#[test]
fn a_full_run_is_exported_onto_its_own_base_only() {
    let scene = trained(Scene::full);
    change_base(&scene);
    let told = scene.fail(scene.command(&["export", "run", "--to", "merged", "--out", "again"]), 2);
    assert!(told.contains("the run was started with"), "{told}");
    assert!(!scene.path("again").exists());
}

#[test]
fn a_damaged_merged_model_is_found_out() {
    let scene = trained(Scene::full);
    let weights = scene.path("run/export/merged/model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() - 1]).unwrap();
    let told = scene.fail(scene.command(&["inspect", "run/export/merged", "--verify"]), 1);
    assert!(told.contains("lock-differs") && told.contains("model.safetensors"), "{told}");
}
