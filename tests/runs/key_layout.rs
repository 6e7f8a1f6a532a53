//! Whose module paths adapters are written in: of the base's own class, or of the one that a recipe names.

use std::path::Path;

use qwen_tune_weights::peft::{Adapter, TargetModules};
use serde_json::Value;

use super::scene::Scene;
use crate::made_model;

const RECIPE: &str = r#"
[model]
base = "model"

[lora]
rank = 2
target = ["up_proj", "q_proj"]
layers = [0, 3]

[[data]]
path = "ROOT/datasets/shakespeare_chat.parquet"
limit = 8

[tokens]
max_length = 64

[run]
dir = "run"
steps = 2
global_batch = 2
micro_batch = 2
recompute = "none"

[checkpoint]
every = 1

[[export]]
to = "adapter"
"#;

/// The text class of a multimodal model as transformers saves it: a flat configuration, the other class's names.
fn text_class() -> (Value, &'static str) {
    (made_model::config("qwen3_5_text"), "model.language_model.")
}

fn multimodal_class() -> (Value, &'static str) {
    (made_model::nested("qwen3_5", "Qwen3_5ForConditionalGeneration"), "model.language_model.")
}

fn scene((config, prefix): (Value, &str)) -> Scene {
    let scene = Scene::with(RECIPE);
    made_model::write(&scene.path("model"), &config, prefix);
    scene
}

/// All modules of an adapter lie below `before`, in its tensors and in its configuration.
#[track_caller]
fn assert_below(adapter: &Path, before: &str) {
    let Adapter { config, pairs, .. } = Adapter::read(adapter).unwrap();
    let mut modules: Vec<&str> = pairs.iter().map(|pair| pair.module.as_str()).collect();
    modules.sort_unstable();
    let names = ["layers.0.mlp.up_proj", "layers.3.mlp.up_proj", "layers.3.self_attn.q_proj"];
    assert_eq!(modules, names.map(|name| format!("{before}{name}")));
    let Some(TargetModules::List(targets)) = &config.target_modules else { panic!("{config:?}") };
    // The only layer with `q_proj` has an adapter on it; `up_proj` is in others too.
    assert_eq!(*targets, [format!("{before}{}", names[0]), "q_proj".to_owned(), format!("{before}{}", names[1])]);
}

#[test]
fn adapters_have_the_paths_of_the_bases_own_class_or_of_the_one_asked_for() {
    let under = "model.language_model.";
    for (base, setting, before, chosen) in [
        (multimodal_class(), "auto", under, Some("key_layout = \"multimodal\"")),
        (multimodal_class(), "text", "model.", Some("key_layout = \"text\"")),
        (multimodal_class(), "multimodal", under, Some("key_layout = \"multimodal\"")),
        (text_class(), "auto", "model.", None),
        (text_class(), "text", "model.", Some("key_layout = \"text\"")),
    ] {
        let scene = scene(base);
        scene.succeed(scene.train(false, &[&format!("lora.key_layout={setting}")]));
        for adapter in ["run/adapter", "run/export/adapter", "run/checkpoints/step-000002"] {
            assert_below(&scene.path(adapter), before);
        }
        let resolved = std::fs::read_to_string(scene.path("run/recipe.resolved.toml")).unwrap();
        assert!(resolved.contains(chosen.unwrap_or("key_layout = \"auto\"")), "{resolved}");
        scene.succeed(scene.command(&["export", "run", "--to", "adapter", "--out", "again"]));
        assert_below(&scene.path("again"), before);
        let rows = ["--data", "rows.jsonl", "--set", "tokens.max_length=64"];
        scene.write("rows.jsonl", "{\"prompt\": \"Who's there?\", \"completion\": \" Me.\"}\n");
        scene.succeed(scene.command(&[&["eval", "--model", "model", "--adapter", "again"], &rows[..]].concat()));
    }
}

#[test]
fn a_class_that_the_base_does_not_have_is_refused_where_it_is_asked_for() {
    let scene = scene(text_class());
    let told = scene.fail(scene.command(&["check", "recipe.toml", "--set", "lora.key_layout=multimodal"]), 2);
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!("key_layout_refused", told);
    });
}

/// Both layouts are read: by a run that goes on from its own checkpoint, and as an adapter to begin with.
#[test]
fn a_run_goes_on_whatever_layout_its_checkpoint_has() {
    let through = scene(multimodal_class());
    through.succeed(through.train(false, &[]));
    let values = |path: &Path| -> Vec<(Vec<f32>, Vec<f32>)> {
        Adapter::read(path).unwrap().pairs.into_iter().map(|pair| (pair.a, pair.b)).collect()
    };
    let whole = values(&through.path("run/adapter"));

    let halted = scene(multimodal_class());
    halted.succeed(halted.train(false, &["run.dir=run"]));
    std::fs::remove_dir_all(halted.path("run/checkpoints/step-000002")).unwrap();
    std::fs::remove_dir_all(halted.path("run/adapter")).unwrap();
    let told = halted.succeed(halted.train(true, &["lora.key_layout=text"]));
    assert!(told.contains("resuming after step 1"), "{told}");
    assert_below(&halted.path("run/adapter"), "model.");
    assert_below(&halted.path("run/checkpoints/step-000002"), "model.");
    assert_eq!(values(&halted.path("run/adapter")), whole);

    let onward = scene(multimodal_class());
    let adapter = halted.path("run/adapter");
    let init = format!("lora.init={}", adapter.display());
    onward.succeed(onward.train(false, &[&init]));
    assert_below(&onward.path("run/adapter"), "model.language_model.");
}
