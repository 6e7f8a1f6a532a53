//! A directory with a tiny recipe, and the real binary started in it: small enough to be killed and begun again many
//! times.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::{metrics, root, text};

/// Two weighted sources, dropout, evaluations and checkpoints every few steps, two exports.
const LORA: &str = r#"
[model]
base = "ROOT/datasets/tiny-qwen3"

[lora]
rank = 4
dropout = 0.1

[[data]]
path = "ROOT/datasets/shakespeare_chat.parquet"
limit = 60

[[data]]
path = "ROOT/datasets/shakespeare_alpaca.jsonl"
weight = 0.5

[tokens]
max_length = 96

[optimizer]
learning_rate = 5e-3

[run]
dir = "run"
steps = 7
global_batch = 3
micro_batch = 2
recompute = "none"               # `auto` says how much memory is free

[checkpoint]
every = 2

[eval]
data = "ROOT/datasets/shakespeare_chat_eval.parquet"
limit = 4
every = 3

[[export]]
to = "merged"

[[export]]
to = "adapter"
"#;

/// The same with all weights but the embedding trained, and a length in tokens.
fn full() -> String {
    LORA.replace("[lora]\nrank = 4\ndropout = 0.1", "[full]\nfreeze = [\"embed_tokens.weight\"]")
        .replace("[[export]]\nto = \"adapter\"\n", "")
        .replace("steps = 7\nglobal_batch = 3", "steps = 5\nglobal_tokens = 300")
        .replace("every = 3", "every = 2\nearly_stop = 3")
}

/// A mixture of experts with adapters on all its parts, and a GGUF file.
fn experts() -> String {
    LORA.replace("datasets/tiny-qwen3\"", "datasets/tiny-qwen3_moe\"")
        .replace("[lora]\n", "[objective]\nrouter_aux_loss_coef = 0.01\n\n[lora]\nexperts = true\nrouter = true\n")
        .replace("to = \"adapter\"", "to = \"gguf\"")
}

/// As [`full`], in bf16 throughout, with moments of eight bits.
fn compact() -> String {
    full()
        .replace("\n\n[full]", "\ndtype = \"bf16\"\n\n[full]\nmaster = \"bf16\"")
        .replace("[optimizer]", "[optimizer]\nkind = \"adamw_8bit\"")
}

/// Adapters with the embedding, which is the head too, and a norm trained whole beside them.
fn whole() -> String {
    LORA.replace("dropout = 0.1", "dropout = 0.1\nmodules_to_save = [\"embed_tokens\", \"layers.0.input_layernorm\"]")
        .replace("[optimizer]", "[optimizer]\nkind = \"adamw_8bit\"")
}

pub(super) struct Scene {
    home: TempDir,
}

impl Scene {
    pub(super) fn lora() -> Self {
        Self::with(LORA)
    }

    pub(super) fn full() -> Self {
        Self::with(&full())
    }

    pub(super) fn compact() -> Self {
        Self::with(&compact())
    }

    pub(super) fn whole() -> Self {
        Self::with(&whole())
    }

    /// A recipe in which `ROOT` is the repository and relative paths begin in the scene's directory.
    pub(super) fn experts() -> Self {
        Self::with(&experts())
    }

    pub(super) fn with(recipe: &str) -> Self {
        let scene = Self { home: tempfile::tempdir().unwrap() };
        scene.write("recipe.toml", &recipe.replace("ROOT", &root().display().to_string()));
        scene
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub(super) fn run(&self) -> PathBuf {
        self.path("run")
    }

    pub(super) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// A copy of the tiny model that may be changed.
    pub(super) fn copy_model(&self) {
        super::copy(&root().join(super::MODEL), &self.path("model"));
    }

    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qwen-tune"));
        command.args(arguments).current_dir(self.home.path()).env("NO_COLOR", "1").env("COLUMNS", "100");
        // Not the cache of whoever runs the tests.
        command.env("XDG_CACHE_HOME", self.path("cache"));
        command
    }

    /// `train recipe.toml` with `--set` before each of `settings`.
    pub(super) fn train(&self, resume: bool, settings: &[&str]) -> Command {
        let mut arguments = vec!["train", "recipe.toml"];
        arguments.extend(resume.then_some("--resume"));
        arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        self.command(&arguments)
    }

    #[track_caller]
    pub(super) fn succeed(&self, mut command: Command) -> String {
        let output = command.output().unwrap();
        let told = text(&output.stderr);
        assert!(output.status.success(), "{command:?} ended with {}\n{told}", output.status);
        assert!(!told.contains("panicked"), "{told}");
        text(&output.stdout) + &told
    }

    /// What the command says on stderr, without this scene's paths.
    #[track_caller]
    pub(super) fn fail(&self, mut command: Command, code: i32) -> String {
        let Output { status, stderr, stdout } = command.output().unwrap();
        let told = text(&stderr);
        assert_eq!(status.code(), Some(code), "{command:?}\n{told}{}", text(&stdout));
        assert!(!told.contains("panicked"), "{told}");
        let told = told.replace(&self.home.path().display().to_string(), "DIR");
        // A path is underlined for as long as it is here.
        let mut told = told.replace(&root().display().to_string(), "ROOT");
        while told.contains("^^") {
            told = told.replace("^^", "^");
        }
        told
    }

    /// Every file below the run directory: its bytes, or for the metrics what does not depend on the clock.
    pub(super) fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        collect(&self.run(), &self.run(), &mut files);
        files.insert("metrics.jsonl".to_owned(), format!("{:#?}", metrics(&self.run())).into_bytes());
        files
    }
}

fn collect(root: &Path, directory: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(root, &path, files);
        } else {
            let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            files.insert(name, std::fs::read(&path).unwrap());
        }
    }
}

/// Both runs left the same files.
#[track_caller]
pub(super) fn assert_same(expected: &BTreeMap<String, Vec<u8>>, found: &BTreeMap<String, Vec<u8>>, what: &str) {
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(expected), names(found), "{what}");
    for (name, bytes) in expected {
        let show = |bytes: &[u8]| if bytes.len() < 20_000 { text(bytes) } else { format!("{} bytes", bytes.len()) };
        assert!(*bytes == found[name], "{what}: {name} differs\n{}\n{}", show(bytes), show(&found[name]));
    }
}

pub(super) fn quietly(mut command: Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Waits until `reached` or the process ends; says whether it was reached.
pub(super) fn wait_until(child: &mut Child, mut reached: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if reached() {
            return true;
        }
        assert!(started.elapsed() < Duration::from_secs(120), "nothing happens");
        std::thread::sleep(Duration::from_micros(300));
    }
    false
}

pub(super) fn interrupt(child: &Child) {
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

pub(super) fn events(run: &Path, kind: &str) -> Vec<Value> {
    metrics(run).into_iter().filter(|event| event["event"] == kind).collect()
}
