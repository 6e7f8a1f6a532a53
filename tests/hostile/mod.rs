//! Damaged files through the command line: exit code 1 or 2 and a diagnostic, or a file that is still sound.

mod damage;

use std::path::Path;

use damage::Damage;
use proptest::prelude::*;
use qwen_tune::recipe::{Purpose, Recipe, RecipeDoc};
use qwen_tune_train::Checkpoints;

use crate::cli::command;

const RECIPE: &str = r#"[model]
base = "model"

[lora]
rank = 4
target = ["q_proj", "*.up_proj"]

[[data]]
path = "rows.jsonl"
columns = { messages = "messages" }

[tokens]
max_length = 64
template_vars = { enable_thinking = false, "odd key" = [1, 2.5, "x"] }

[run]
dir = "run"
steps = 2
global_batch = 2
device = "cpu"

[checkpoint]
every = 1

[[export]]
to = "merged"
"#;

const ROW: &str = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
"#;

/// A tiny model, rows and a recipe for them.
fn workplace() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("datasets/tiny-qwen3");
    std::fs::create_dir(home.path().join("model")).unwrap();
    for file in std::fs::read_dir(tiny).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), home.path().join("model").join(file.file_name())).unwrap();
    }
    std::fs::write(home.path().join("rows.jsonl"), ROW.repeat(8)).unwrap();
    std::fs::write(home.path().join("recipe.toml"), RECIPE).unwrap();
    home
}

/// Damages a file some times over and runs a command each time; how often it succeeded.
fn damaged(home: &Path, file: &str, times: usize, arguments: &[&str]) -> usize {
    let path = home.join(file);
    let whole = std::fs::read(&path).unwrap();
    let mut damage = Damage::new(whole.len() as u64);
    let mut sound = 0;
    for _ in 0..times {
        std::fs::write(&path, damage.apply(&whole)).unwrap();
        let output = command(home, arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        match output.status.code() {
            Some(0) => sound += 1,
            Some(1 | 2) => assert!(said.contains("error"), "{file}: {said}"),
            other => panic!("{file}, {arguments:?}: exit code {other:?}\n{said}"),
        }
        assert!(!said.contains("panicked"), "{file}: {said}");
    }
    std::fs::write(&path, whole).unwrap();
    sound
}

#[test]
fn damaged_inputs_end_a_check_with_a_diagnostic() {
    let home = workplace();
    let check = ["check", "recipe.toml"];
    assert_eq!(command(home.path(), &check).output().unwrap().status.code(), Some(0));
    std::fs::write(
        home.path().join("model/chat_template.jinja"),
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
    )
    .unwrap();
    for (file, times) in [
        ("model/config.json", 12),
        ("model/tokenizer.json", 6),
        ("model/tokenizer_config.json", 8),
        ("model/chat_template.jinja", 8),
        ("model/model.safetensors", 6),
        ("rows.jsonl", 12),
        ("recipe.toml", 20),
    ] {
        let sound = damaged(home.path(), file, times, &check);
        assert!(sound < times, "{file}: no damage was noticed");
    }
}

#[test]
fn damaged_parquet_and_indices_end_a_look_with_a_diagnostic() {
    let home = workplace();
    let datasets = Path::new(env!("CARGO_MANIFEST_DIR")).join("datasets");
    std::fs::copy(datasets.join("shakespeare_chat_eval.parquet"), home.path().join("rows.parquet")).unwrap();
    let look = ["data", "recipe.toml", "--rows", "1000", "--set", "data[0].path=rows.parquet", "--json"];
    let sound = damaged(home.path(), "rows.parquet", 12, &look);
    assert!(sound < 12, "no damage was noticed");
    std::fs::rename(home.path().join("model/model.safetensors"), home.path().join("model/one.safetensors")).unwrap();
    let header = std::fs::read(home.path().join("model/one.safetensors")).unwrap();
    let length = u64::from_le_bytes(header[..8].try_into().unwrap()) as usize;
    let tensors: serde_json::Value = serde_json::from_slice(&header[8..8 + length]).unwrap();
    let names = tensors.as_object().unwrap().keys().filter(|name| *name != "__metadata__");
    let map: serde_json::Map<_, _> = names.map(|name| (name.clone(), "one.safetensors".into())).collect();
    let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string();
    std::fs::write(home.path().join("model/model.safetensors.index.json"), index).unwrap();
    let sound = damaged(home.path(), "model/model.safetensors.index.json", 12, &["inspect", "model"]);
    assert!(sound < 12, "no damage was noticed");
}

#[test]
fn a_damaged_checkpoint_is_not_gone_on_from() {
    let home = workplace();
    let train = ["train", "recipe.toml"];
    let output = command(home.path(), &train).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let resume = ["train", "recipe.toml", "--resume", "--set", "run.steps=3"];
    let newest = "run/checkpoints/step-000002";
    for (file, times) in
        [("state.json", 8), ("optimizer.safetensors", 4), ("adapter_config.json", 6), ("adapter_model.safetensors", 4)]
    {
        damaged(home.path(), &format!("{newest}/{file}"), times, &resume);
        // Where the damage did no harm the run went on; the next one starts from the same place.
        let _ = std::fs::remove_dir_all(home.path().join("run/checkpoints/step-000003"));
    }
    let sound = damaged(home.path(), "run/adapter/adapter_config.json", 6, &["inspect", "run/adapter"]);
    assert!(sound < 6, "no damage was noticed");

    // A thousand times over, without starting anything.
    let path = home.path().join(newest).join("state.json");
    let whole = std::fs::read(&path).unwrap();
    let mut damage = Damage::new(31);
    let read = (0..1000).filter(|_| {
        std::fs::write(&path, damage.apply(&whole)).unwrap();
        Checkpoints::latest(&home.path().join("run")).is_ok()
    });
    let read = read.count();
    assert!(read < 600, "{read}");
}

/// Reads a recipe as `check` does, with every rule.
fn examine(text: &str) -> usize {
    let doc = RecipeDoc::from_text(Some(Path::new("recipe.toml")), text, &[]);
    let (recipe, said) = Recipe::examine(&doc, Purpose::Train);
    assert!(recipe.is_some() || said.has_errors(), "{text}");
    said.render(qwen_tune::diagnostic::Look::PLAIN).len()
}

#[test]
fn damaged_recipes_are_read_with_diagnostics() {
    let mut damage = Damage::new(32);
    let said = (0..1000).filter(|_| examine(&String::from_utf8_lossy(&damage.apply(RECIPE.as_bytes()))) > 0).count();
    assert!(said > 500, "{said}");
}

fn key() -> impl Strategy<Value = String> {
    let known =
        "model base lora rank data path tokens template_vars run steps dir eval fraction export to optimizer schedule";
    let known: Vec<String> = known.split(' ').map(str::to_owned).collect();
    prop_oneof![
        4 => prop::sample::select(known),
        1 => "[a-z_]{0,12}".prop_map(|name| if name.is_empty() { "\"\"".into() } else { name }),
        1 => "[ -!#-\\[\\]-~é]{0,12}".prop_map(|name| format!("\"{name}\"")),
    ]
}

fn toml_value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|x| format!("{x:?}").replace("NaN", "nan")),
        prop::sample::select(vec![
            "true",
            "\"auto\"",
            "''",
            "1979-05-27T07:32:00Z",
            "0x_",
            "nan",
            "-inf",
            "1e400",
            "\"\"\"\n\"\"\""
        ])
        .prop_map(str::to_owned),
        (1..400_usize).prop_map(|depth| "[".repeat(depth) + &"]".repeat(depth)),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(", "))),
            prop::collection::vec((key(), inner), 0..3).prop_map(|fields| format!(
                "{{ {} }}",
                fields.iter().map(|(k, v)| format!("{k} = {v}")).collect::<Vec<_>>().join(", ")
            )),
        ]
    })
}

fn line() -> impl Strategy<Value = String> {
    let path = || prop::collection::vec(key(), 1..4).prop_map(|keys| keys.join("."));
    prop_oneof![
        (path(), toml_value()).prop_map(|(path, value)| format!("{path} = {value}")),
        path().prop_map(|path| format!("[{path}]")),
        path().prop_map(|path| format!("[[{path}]]")),
        (50..2000_usize).prop_map(|depth| format!("{} = 1", vec!["a"; depth].join("."))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Keys, sections and values in any order and of any kind.
    #[test]
    fn absurd_recipes_are_read_with_diagnostics(lines in prop::collection::vec(line(), 0..8)) {
        examine(&lines.join("\n"));
    }
}
