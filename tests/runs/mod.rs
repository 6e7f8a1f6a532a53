//! The binary from outside: recipes that train, run directories, exit codes, resuming.

mod bad_step;
mod base;
mod changed;
mod compact;
mod disk;
mod key_layout;
mod kill;
mod many;
mod quantised;
mod scene;
mod smoke;
mod stop;
mod threads;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Runs `qwen-tune` in the repository's root.
pub fn qwen_tune(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_qwen-tune"))
        .args(args)
        .current_dir(root())
        .env("NO_COLOR", "1")
        // Every thread has buffers of its own: what a run holds does not depend on this machine.
        .env("RAYON_NUM_THREADS", "2")
        .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
        .output()
        .unwrap()
}

#[track_caller]
pub fn succeed(args: &[&str]) -> String {
    let output = qwen_tune(args);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{args:?} ended with {}\n{err}", output.status);
    assert!(!err.contains("panicked"), "{err}");
    out
}

#[track_caller]
pub fn fail(args: &[&str], code: i32) -> String {
    let output = qwen_tune(args);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}\n{err}");
    assert!(!err.contains("panicked"), "{err}");
    err
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Events of `metrics.jsonl` without what depends on the clock.
fn metrics(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| {
            let mut event: Value = serde_json::from_str(line).unwrap();
            let fields = event.as_object_mut().unwrap();
            fields.remove("seconds");
            fields.remove("data_seconds");
            fields.remove("tokens_per_second");
            event
        })
        .collect()
}

fn losses(run: &Path, kind: &str) -> Vec<f64> {
    metrics(run).iter().filter(|e| e["event"] == kind).map(|e| e["loss"].as_f64().unwrap()).collect()
}

struct Scratch(TempDir);

impl Scratch {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn dir(&self, name: &str) -> String {
        format!("run.dir={}", self.path(name).display())
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

const LORA: &str = "recipes/smoke/qwen3-lora.toml";
const FULL: &str = "recipes/smoke/qwen3-full.toml";
const MODEL: &str = "datasets/tiny-qwen3";

#[test]
fn the_lora_smoke_recipe_learns_and_its_adapter_merged_model_and_log_probabilities_agree() {
    let scratch = Scratch::new();
    succeed(&["train", LORA, "--set", &scratch.dir("run")]);
    let run = scratch.path("run");
    let evals = losses(&run, "eval");
    assert_eq!(evals.len(), 2);
    assert!(evals[1] < evals[0] - 0.05, "held-out loss {evals:?}");
    for file in ["recipe.toml", "recipe.resolved.toml", "plan.json", "adapter/adapter_model.safetensors"] {
        assert!(run.join(file).is_file(), "{file} is missing");
    }
    assert!(run.join("checkpoints/step-000020/state.json").is_file());

    let adapter = run.join("adapter").display().to_string();
    let merged = run.join("export/merged").display().to_string();
    let data = "datasets/shakespeare_chat_eval.parquet";
    let eval = |args: &[&str]| -> f64 {
        let fixed = ["--data", data, "--json", "--set", "eval.limit=16", "--set", "tokens.max_length=512"];
        let out = succeed(&[&["eval"], args, &fixed].concat());
        serde_json::from_str::<Value>(&out).unwrap()["loss"].as_f64().unwrap()
    };
    let adapted = eval(&["--model", MODEL, "--adapter", &adapter]);
    let folded = eval(&["--model", &merged]);
    let base = eval(&["--model", MODEL]);
    // The merged weights are rounded to the base's bf16.
    assert!((adapted - folded).abs() < 2e-2, "adapter {adapted}, merged {folded}");
    assert!(adapted < base - 0.05, "adapter {adapted}, base {base}");

    let table = scratch.path("logprobs.parquet").display().to_string();
    let with_table = eval(&["--model", MODEL, "--adapter", &adapter, "--logprobs", &table]);
    assert!((with_table - adapted).abs() < 1e-5);
    assert!(Path::new(&table).is_file());

    let say = |args: &[&str]| {
        let fixed = ["--prompt", "What say you?", "--set", "generate.max_tokens=24"];
        succeed(&[&["generate", "--model", MODEL], args, &fixed].concat())
    };
    let (before, after) = (say(&[]), say(&["--adapter", &adapter]));
    assert_ne!(before, after, "the adapter changes nothing that is said");
    assert_eq!(after, say(&["--adapter", &adapter]), "greedy generation is deterministic");
    assert!(succeed(&["inspect", &run.display().to_string()]).contains("20 of 20"));
}

#[test]
fn training_goes_on_from_an_adapter() {
    let scratch = Scratch::new();
    let short = ["--set", "run.steps=3", "--set", "eval.limit=8"];
    succeed(&[&["train", LORA, "--set", &scratch.dir("first")], &short[..]].concat());
    let init = format!("lora.init={}", scratch.path("first/adapter").display());
    succeed(&[&["train", LORA, "--set", &scratch.dir("second"), "--set", &init], &short[..]].concat());
    let (first, second) = (losses(&scratch.path("first"), "eval"), losses(&scratch.path("second"), "eval"));
    assert!((first[1] - second[0]).abs() < 1e-6, "{first:?} then {second:?}");
    assert!(second[1] < second[0]);
}

#[test]
fn evaluations_that_stop_improving_end_the_run() {
    let scratch = Scratch::new();
    let set = ["optimizer.learning_rate=1e-30", "eval.every=1", "eval.early_stop=2", "eval.limit=2", "run.steps=50"];
    let dir = scratch.dir("run");
    let mut args = vec!["train", LORA, "--set", &dir];
    args.extend(set.iter().flat_map(|s| ["--set", s]));
    succeed(&args);
    assert_eq!(losses(&scratch.path("run"), "step").len(), 2);
    assert!(scratch.path("run/adapter/adapter_model.safetensors").is_file());
}

#[test]
fn the_full_smoke_recipe_learns_and_leaves_a_merged_model() {
    let scratch = Scratch::new();
    succeed(&["train", FULL, "--set", &scratch.dir("run")]);
    let run = scratch.path("run");
    let evals = losses(&run, "eval");
    assert!(evals[1] < evals[0], "held-out loss {evals:?}");
    let merged = run.join("export/merged").display().to_string();
    assert!(succeed(&["inspect", &merged, "--json"]).contains("\"model\""));
    let again = scratch.path("again").display().to_string();
    succeed(&["export", &run.display().to_string(), "--to", "merged", "--out", &again]);
    let bytes = |dir: &str| std::fs::read(Path::new(dir).join("model.safetensors")).unwrap();
    assert_eq!(bytes(&merged), bytes(&again));
    assert_ne!(bytes(&merged), bytes(MODEL));
}

#[test]
fn the_same_seed_gives_the_same_numbers_and_another_seed_others() {
    let scratch = Scratch::new();
    let train = |name: &str, seed: &str| {
        let (dir, seed) = (scratch.dir(name), format!("run.seed={seed}"));
        let set = ["--set", &dir, "--set", &seed, "--set", "run.steps=4", "--set", "lora.dropout=0.1"];
        succeed(&[&["train", LORA], &set[..]].concat());
        metrics(&scratch.path(name))
    };
    let first = train("a", "1");
    assert_eq!(first, train("b", "1"));
    assert_ne!(first, train("c", "2"));
}

#[test]
fn a_resumed_run_is_the_uninterrupted_one_bit_for_bit() {
    let scratch = Scratch::new();
    for recipe in [LORA, FULL] {
        let name = Path::new(recipe).file_stem().unwrap().to_str().unwrap();
        let set = ["run.steps=6", "checkpoint.every=2", "checkpoint.keep=9", "eval.every=3"];
        let mut args: Vec<String> = vec!["train".into(), recipe.into()];
        args.extend(set.iter().flat_map(|s| ["--set".to_owned(), (*s).to_owned()]));
        let with = |name: &str, more: &[&str]| {
            let dir = scratch.dir(name);
            let mut all: Vec<&str> = args.iter().map(String::as_str).collect();
            all.extend(["--set", &dir]);
            all.extend(more);
            succeed(&all);
        };
        with(name, &[]);
        // As if killed after its second step had been saved and the third had been reported.
        let whole = scratch.path(name);
        let cut = format!("{name}-cut");
        let broken = scratch.path(&cut);
        copy(&whole, &broken);
        for gone in ["checkpoints/step-000004", "checkpoints/step-000006"] {
            std::fs::remove_dir_all(broken.join(gone)).unwrap();
        }
        for gone in ["adapter", "export"] {
            let _ = std::fs::remove_dir_all(broken.join(gone));
        }
        let text = std::fs::read_to_string(whole.join("metrics.jsonl")).unwrap();
        let lines: Vec<&str> = text.lines().take(5).collect();
        std::fs::write(broken.join("metrics.jsonl"), lines.join("\n") + "\n{\"event\":\"st").unwrap();
        with(&cut, &["--resume"]);
        assert_eq!(metrics(&whole), metrics(&broken), "{recipe}");
        for file in ["checkpoints/step-000006/optimizer.safetensors", "checkpoints/step-000006/state.json"] {
            assert_eq!(std::fs::read(whole.join(file)).unwrap(), std::fs::read(broken.join(file)).unwrap(), "{file}");
        }
        let merged = "export/merged/model.safetensors";
        assert_eq!(std::fs::read(whole.join(merged)).unwrap(), std::fs::read(broken.join(merged)).unwrap());
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

#[test]
fn micro_batch_packing_and_recomputation_do_not_change_a_run() {
    let scratch = Scratch::new();
    let run = |name: &str, set: &[&str]| {
        let dir = scratch.dir(name);
        let mut args = vec!["train", LORA, "--set", &dir, "--set", "run.steps=4"];
        args.extend(set.iter().flat_map(|s| ["--set", s]));
        succeed(&args);
        losses(&scratch.path(name), "step")
    };
    let plain = run("plain", &["tokens.packing=none", "run.micro_batch=4"]);
    for (name, set) in [
        ("packed", &["tokens.packing=best_fit", "run.micro_batch=4"][..]),
        ("single", &["tokens.packing=none", "run.micro_batch=1"]),
        ("again", &["tokens.packing=none", "run.micro_batch=4", "run.recompute=all"]),
    ] {
        for (a, b) in plain.iter().zip(run(name, set)) {
            assert!((a - b).abs() < 2e-5, "{name}: {a} and {b}");
        }
    }
}

#[test]
fn a_run_directory_is_not_overwritten() {
    let scratch = Scratch::new();
    let dir = scratch.dir("run");
    let args = ["train", LORA, "--set", &dir, "--set", "run.steps=1"];
    succeed(&args);
    let before = std::fs::read(scratch.path("run/metrics.jsonl")).unwrap();
    assert!(fail(&args, 2).contains("--resume"));
    assert_eq!(before, std::fs::read(scratch.path("run/metrics.jsonl")).unwrap());
}

#[test]
fn an_interrupt_finishes_the_step_and_leaves_a_checkpoint() {
    let scratch = Scratch::new();
    let dir = scratch.dir("run");
    let mut child = Command::new(env!("CARGO_BIN_EXE_qwen-tune"))
        .args(["train", LORA, "--set", &dir, "--set", "run.steps=100000", "--set", "eval.limit=1"])
        .current_dir(root())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let metrics_file = scratch.path("run/metrics.jsonl");
    let steps = || std::fs::read_to_string(&metrics_file).unwrap_or_default().matches("\"step\":").count();
    while steps() < 3 && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let last =
        *metrics(&scratch.path("run")).iter().filter_map(|e| e["step"].as_u64()).collect::<Vec<_>>().last().unwrap();
    assert!(scratch.path(&format!("run/checkpoints/step-{last:06}/state.json")).is_file());
}

#[test]
fn mistakes_in_data_name_file_row_and_column_before_anything_is_written() {
    let scratch = Scratch::new();
    let dir = scratch.dir("run");
    let good = r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#;
    let cases = [
        ("null.jsonl", format!("{good}\n{{\"messages\":null}}\n"), "null.jsonl"),
        ("broken.jsonl", format!("{good}\n{{\"messages\": [\n"), "broken.jsonl"),
        ("column.jsonl", "{\"massages\":[]}\n".to_owned(), "massages"),
    ];
    for (name, text, expected) in cases {
        let path = format!("data[0].path={}", scratch.write(name, &text));
        let err = fail(&["train", LORA, "--set", &path, "--set", &dir], 2);
        assert!(err.contains(expected), "{name}: {err}");
        assert!(!scratch.path("run").exists(), "{name}: something was written");
    }
    let err = fail(&["train", LORA, "--set", "data[0].path=nowhere/*.parquet", "--set", &dir], 2);
    assert!(err.contains("nowhere/*.parquet"), "{err}");
    let whole = std::fs::read(root().join("datasets/shakespeare_chat.parquet")).unwrap();
    let cut = scratch.path("cut.parquet");
    std::fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    let err = fail(&["train", LORA, "--set", &format!("data[0].path={}", cut.display()), "--set", &dir], 2);
    assert!(err.contains("cut.parquet"), "{err}");
}

#[test]
fn every_mistake_of_a_recipe_is_told_at_once_with_its_line() {
    let scratch = Scratch::new();
    let recipe = scratch.write(
        "bad.toml",
        "[model]\nbase = \"datasets/tiny-qwen3\"\n\n[lora]\nrnk = 8\ntarget = [\"q_prj\"]\n\n[[data]]\npath = \"datasets/shakespeare_chat.parquet\"\n\n[optimizer]\nlearning_rate = \"fast\"\n",
    );
    let err = fail(&["train", &recipe], 2);
    for part in ["rnk", "rank", "learning_rate", "bad.toml:5", "bad.toml:12"] {
        assert!(err.contains(part), "{part} is missing in\n{err}");
    }
    let target = scratch.write(
        "target.toml",
        "[model]\nbase = \"datasets/tiny-qwen3\"\n\n[lora]\ntarget = [\"q_prj\"]\n\n[[data]]\npath = \"datasets/shakespeare_chat.parquet\"\n",
    );
    let err = fail(&["check", &target], 2);
    assert!(err.contains("q_prj") && err.contains("q_proj"), "{err}");
}

#[test]
fn models_that_are_not_supported_are_refused_by_name() {
    let scratch = Scratch::new();
    let err = fail(&["inspect", &scratch.path("none").display().to_string()], 2);
    assert!(err.contains("none"));
    std::fs::create_dir(scratch.path("moe")).unwrap();
    scratch.write("moe/config.json", r#"{"model_type":"qwen3_5_moe"}"#);
    let base = format!("model.base={}", scratch.path("moe").display());
    let err = fail(&["check", LORA, "--set", &base], 2);
    assert!(err.contains("qwen3_5_moe"), "{err}");
}

#[test]
fn every_recipe_that_is_shipped_is_well_formed() {
    let mut seen = 0;
    for dir in ["recipes", "recipes/smoke", "recipes/8gb", "recipes/12gb", "recipes/24gb", "recipes/80gb"] {
        for entry in std::fs::read_dir(root().join(dir)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "toml") {
                let read = qwen_tune::recipe::Recipe::load(Some(&path), &[], qwen_tune::recipe::Purpose::Train);
                assert!(read.is_ok(), "{}: {}", path.display(), read.unwrap_err());
                seen += 1;
            }
        }
    }
    assert!(seen >= 8, "{seen} recipes");
}

#[test]
fn smoke_recipes_check_and_plan() {
    for recipe in [LORA, FULL, "recipes/smoke/qwen3_5-lora.toml", "recipes/smoke/qwen3_moe-lora.toml"] {
        succeed(&["check", recipe]);
        assert!(succeed(&["plan", recipe]).contains("run.micro_batch"));
        let rows = succeed(&["data", recipe, "--rows", "2", "--json"]);
        assert_eq!(rows.lines().count(), 2);
        let row: Value = serde_json::from_str(rows.lines().next().unwrap()).unwrap();
        assert_eq!(row["token_ids"].as_array().unwrap().len(), row["trained"].as_array().unwrap().len());
    }
}
