//! What every command prints when nothing is wrong, whole: with what depends on the machine and its clock replaced.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::{ROUNDING, command, output_of};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A directory with the smoke run made in it.
fn trained() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    let output = output_of(&root(), &["train", LORA, "--set", "run.steps=4", "--set", &dir(home.path())]);
    assert!(output.contains("exit code 0"), "{output}");
    home
}

fn dir(home: &Path) -> String {
    format!("run.dir={}", home.join("run").display())
}

/// The output of a command in the repository's root, with the paths of `home` replaced.
fn shown(home: &Path, arguments: &[&str]) -> String {
    output_of(&root(), arguments).replace(&home.display().to_string(), "HOME")
}

const LORA: &str = "recipes/smoke/qwen3-lora.toml";
const MODEL: &str = "datasets/tiny-qwen3";
const HYBRID: &str = "datasets/tiny-qwen3_5";
const EXPERTS: &str = "datasets/tiny-qwen3_moe";

/// Replaces times, speeds, sizes in memory, digests and anything else that another machine shows otherwise.
const FILTERS: [(&str, &str); 22] = [
    (r"(model\.dtype +\S+ +)[^\n]+", "${1}REASON"),
    (r#"("model\.dtype","value":"\w+","reason":)"[^"]+""#, r#"$1"REASON""#),
    (r"built in: \d+ cores?; products by [^\n]+", "STATE: CORES AND INSTRUCTIONS"),
    (r"\d\.\de-\d+(   1\.0e-\d)", "ROUNDING$1"),
    (r"run\.threads +\d+ +[^\n]+", "run.threads  COUNT  REASON"),
    (r#""run\.threads","value":\d+,"reason":"[^"]+""#, r#""run.threads","value":N,"reason":"REASON""#),
    (r"\d[\d,.]* (tok/s|tokens a second)", "SPEED $1"),
    (r"(eta|about) \d+:\d\d(:\d\d)?", "$1 TIME"),
    (r"tokens  \d+:\d\d", "tokens  TIME"),
    (r"\d+\.\d\d s (a step|an evaluation)", "TIME $1"),
    (r" *\d+(\.\d)? [KMG]iB", " SIZE"),
    // Products round differently on other processors.
    (r"(loss|perplexity|->|since step \d+|\(-) ?(\d+\.\d)\d+", "$1 $2.."),
    (r"((last loss|evaluation) +\d+\.\d)\d+", "$1.."),
    (r"(\d\.\d)\d\d  (\d\.\d)\d\d\n", "$1..  $2..\n"),
    (r#"("(loss|perplexity|grad_norm)"):(\d+\.\d)\d+"#, "$1:$3.."),
    (r"\d\.\d\de-\d+ +\d\.\d\de-\d+ +\d+\.\d% +(\d+\.\d)\d+", "KL  DIFFERENCE  SHARE  $1.."),
    (r"((base|trained) {20,}\d+\.\d)\d+", "$1.."),
    (r"built in|build with `--features \w+`|no GPU backend is compiled in", "STATE"),
    (r"[0-9a-f]{64}", "SHA256"),
    // A path is underlined for as long as it is here.
    (r"\^{2,}", "^"),
    (r"measured now on [\d,]+ tokens", "measured now on SOME tokens"),
    (r#"("(seconds|tokens_per_second|[a-z_]*bytes|[a-z_]*_seconds|peak_memory|measured_tokens)"):[\d.e-]+"#, "$1:N"),
];

#[track_caller]
fn snapshot(name: &str, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_omit_expression(true);
    settings.set_prepend_module_to_snapshot(false);
    for (from, to) in FILTERS.into_iter().chain(ROUNDING) {
        settings.add_filter(from, to);
    }
    settings.bind(|| insta::assert_snapshot!(format!("outputs_{name}"), text));
}

#[test]
fn commands_that_look() {
    let home = tempfile::tempdir().unwrap();
    for (name, arguments) in [
        ("check", vec!["check", LORA]),
        ("check_json", vec!["check", LORA, "--json"]),
        ("plan", vec!["plan", LORA]),
        ("plan_of_full_fine_tuning", vec!["plan", "recipes/smoke/qwen3-full.toml"]),
        ("plan_json", vec!["plan", LORA, "--json"]),
        ("plan_with_too_little_memory", vec!["plan", LORA, "--set", "run.memory=30MB"]),
        ("plan_that_would_fit", vec!["plan", LORA, "--set", "run.memory=60MB", "--set", "run.recompute=none"]),
        ("inspect_model", vec!["inspect", MODEL]),
        ("inspect_model_json", vec!["inspect", MODEL, "--json"]),
        ("inspect_a_hybrid", vec!["inspect", HYBRID]),
        ("inspect_experts", vec!["inspect", EXPERTS]),
        (
            "eval_of_a_model",
            vec!["eval", "--model", MODEL, "--data", "datasets/shakespeare_chat_eval.parquet", "--set", "eval.limit=8"],
        ),
        ("generate", vec!["generate", "--model", MODEL, "--prompt", "Speak.", "--set", "generate.max_tokens=12"]),
        ("check_of_a_recipe_for_another_machine", vec!["check", LORA, "--set", "run.device=cuda:0"]),
    ] {
        snapshot(name, &shown(home.path(), &arguments));
    }
}

#[test]
fn commands_that_talk() {
    let home = tempfile::tempdir().unwrap();
    snapshot("devices", &shown(home.path(), &["devices"]));
    snapshot("init", &output_of(home.path(), &["init", "new.toml", "--set", "lora.rank=4"]));
    snapshot("init_writes", &std::fs::read_to_string(home.path().join("new.toml")).unwrap());
    snapshot("init_over_something", &output_of(home.path(), &["init", "new.toml"]));
    let chat = ["chat", "--model", MODEL, "--set", "generate.max_tokens=8"];
    let mut child =
        command(&root(), &chat).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"Who's there?\nSpeak on.\n\nunheard\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    snapshot("chat", &String::from_utf8(output.stdout).unwrap());
    let words = shown(home.path(), &["completions", "bash"]);
    assert!(words.contains("exit code 0") && words.contains("_qwen__tune() {"), "{words}");
}

#[test]
fn a_run_from_beginning_to_end() {
    let home = tempfile::tempdir().unwrap();
    let run = home.path().join("run").display().to_string();
    let out = home.path().join("out").display().to_string();
    let train = ["train", LORA, "--set", "run.steps=4", "--set", &dir(home.path())];
    snapshot("train", &shown(home.path(), &train));
    snapshot("train_into_a_run", &shown(home.path(), &train));
    snapshot("train_resumed", &shown(home.path(), &[&train[..], &["--resume", "--set", "run.steps=5"]].concat()));
    snapshot("inspect_run", &shown(home.path(), &["inspect", &run]));
    snapshot("inspect_adapter", &shown(home.path(), &["inspect", &format!("{run}/adapter")]));
    snapshot("export_merged", &shown(home.path(), &["export", &run, "--to", "merged", "--out", &out]));
    snapshot("export_over_something", &shown(home.path(), &["export", &run, "--to", "merged", "--out", &out]));
}

#[test]
fn a_gguf_file_is_described() {
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("out").display().to_string();
    let made = shown(home.path(), &["export", "--model", MODEL, "--to", "gguf", "--quant", "q4_k_m", "--out", &out]);
    assert!(made.contains("exit code 0"), "{made}");
    let file = home.path().join("out").join("out-Q4_K_M.gguf").display().to_string();
    snapshot("inspect_gguf", &shown(home.path(), &["inspect", &file]));
    snapshot("inspect_gguf_json", &shown(home.path(), &["inspect", &file, "--json"]));
    let cut = home.path().join("cut.gguf");
    std::fs::write(&cut, b"GGUF\x03\0\0\0").unwrap();
    snapshot("inspect_gguf_cut", &shown(home.path(), &["inspect", &cut.display().to_string()]));
}

#[test]
fn a_run_as_json() {
    let home = tempfile::tempdir().unwrap();
    let train = ["train", LORA, "--json", "--set", "run.steps=2", "--set", &dir(home.path())];
    snapshot("train_json", &shown(home.path(), &train));
}

/// Far behind the rows that a start looks at.
#[test]
fn check_reads_every_row() {
    let home = tempfile::tempdir().unwrap();
    let good = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    let rows: String = (0..2000)
        .map(|row| if row == 1500 { r#"{"messages": null}"#.to_owned() } else { good.replace("\"a\"", &format!("\"{row}\"")) } + "\n")
        .collect();
    std::fs::write(home.path().join("rows.jsonl"), rows).unwrap();
    let data = format!("data[0].path={}", home.path().join("rows.jsonl").display());
    let base = format!("model.base={MODEL}");
    snapshot("check_of_a_late_row", &shown(home.path(), &["check", "--set", &base, "--set", &data]));
}

#[test]
fn everything_wrong_is_told_at_once_though_the_model_does_not_open() {
    let home = trained();
    // A model whose configuration is unknown but whose tokenizer is whole: the data are still held against it.
    let model = home.path().join("model");
    std::fs::create_dir(&model).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(root().join(MODEL).join(file), model.join(file)).unwrap();
    }
    std::fs::write(model.join("config.json"), r#"{"model_type": "mamba"}"#).unwrap();
    std::fs::write(home.path().join("rows.jsonl"), "{\"messages\": [{\"role\": \"user\"}]}\n").unwrap();
    std::fs::write(home.path().join("cut.parquet"), "PAR1").unwrap();
    let text = "[model]\nbase = \"model\"\n\n[[data]]\npath = \"rows.jsonl\"\ncolumns = { messages = \"talk\" }\n\n\
                [[data]]\npath = \"cut.parquet\"\n\n[eval]\ndata = \"missing.jsonl\"\n";
    std::fs::write(home.path().join("recipe.toml"), text).unwrap();
    snapshot("check_of_a_model_that_does_not_open", &output_of(home.path(), &["check", "recipe.toml"]));
}
