//! Numbers that go wrong: a row that makes the loss NaN, because the base's embedding of one of its tokens is.

use std::collections::BTreeSet;

use qwen_tune_weights::{Checkpoint, Dtype, Metadata, SafetensorsWriter, TensorInfo, TensorSink, TensorSource};
use serde_json::Value;

use super::scene::{Scene, assert_same, events};
use super::{copy, root};

const RECIPE: &str = r#"
[model]
base = "model"

[lora]
rank = 4
dropout = 0.1

[[data]]
path = "rows.jsonl"

[tokens]
max_length = 256

[run]
dir = "run"
shuffle = false
steps = 6
global_batch = 2
micro_batch = 2
recompute = "none"

[checkpoint]
every = 1
keep = 9

[schedule]
kind = "constant"
"#;

/// Twelve rows of which those in `poisoned` hold the word that the poisoned base cannot bear.
fn scene(poisoned: &[usize]) -> Scene {
    let scene = Scene::with(RECIPE);
    let row = |i: usize| {
        let word = if poisoned.contains(&i) { "Zounds" } else { "Well" };
        format!("{{\"instruction\": \"What say you?\", \"output\": \"{word}, my lord, number {i}.\"}}\n")
    };
    scene.copy_model();
    scene.write("rows.jsonl", &(0..12).map(row).collect::<String>());
    poison(&scene, poisoned);
    scene
}

/// Makes one embedding row NaN; the head, which was the same tensor, becomes its own and stays sound.
fn poison(scene: &Scene, poisoned: &[usize]) {
    let out = scene.succeed(scene.command(&["data", "recipe.toml", "--json", "--rows", "12"]));
    let rows: Vec<Value> = out.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let ids = |row: &Value| -> BTreeSet<u64> {
        row["token_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
    };
    let (bad, sound): (Vec<_>, Vec<_>) = rows.iter().map(ids).enumerate().partition(|(i, _)| poisoned.contains(i));
    let in_all = bad.into_iter().map(|(_, ids)| ids).reduce(|a, b| &a & &b).unwrap();
    let token = *in_all.iter().find(|token| sound.iter().all(|(_, ids)| !ids.contains(token))).unwrap() as usize;

    let model = Checkpoint::open(&root().join(super::MODEL)).unwrap();
    let embedding = model.info("model.embed_tokens.weight").unwrap().clone();
    assert_eq!(embedding.dtype, Dtype::BF16);
    let mut tensors: Vec<(TensorInfo, Vec<u8>)> =
        model.tensors().iter().map(|info| (info.clone(), model.read(&info.name).unwrap().into_owned())).collect();
    let head = TensorInfo::new("lm_head.weight", embedding.dtype, embedding.shape.clone());
    tensors.push((head, model.read(&embedding.name).unwrap().into_owned()));
    let width = embedding.shape[1] * 2;
    let (_, bytes) = tensors.iter_mut().find(|(info, _)| info.name == embedding.name).unwrap();
    bytes[token * width..(token + 1) * width].fill(0xff);
    let mut writer = SafetensorsWriter::create(&scene.path("model/model.safetensors"), Metadata::default()).unwrap();
    let plan: Vec<TensorInfo> = tensors.iter().map(|(info, _)| info.clone()).collect();
    writer.declare(&plan).unwrap();
    tensors.iter().for_each(|(info, bytes)| writer.write(&info.name, bytes).unwrap());
    writer.close().unwrap();
    let config = scene.path("model/config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(config, text.replace("\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false")).unwrap();
}

#[test]
fn a_bad_step_stops_the_run_with_the_row_named_and_all_before_it_saved() {
    let scene = scene(&[5]);
    let told = scene.fail(scene.train(false, &[]), 1);
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
        insta::with_settings!({ filters => vec![(r"(?m)^(step|saved|eval|model|data|run|training).*\n", "")] }, {
            insta::assert_snapshot!("bad_step_stops", told);
        });
    });
    assert_eq!(events(&scene.run(), "step").len(), 2);
    assert!(scene.path("run/checkpoints/step-000002/state.json").is_file());
    assert!(!scene.path("run/checkpoints/step-000003").exists() && !scene.path("run/adapter").exists());
    let text = std::fs::read(scene.path("run/bad-batches/step-000003.json")).unwrap();
    let record: Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(record["reason"], "loss_not_finite");
    let rows = record["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    for row in rows {
        assert_eq!(row["loss"].is_null(), row["row"] == 5, "only the poisoned row's loss is no number: {row}");
        assert_eq!(row["token_ids"].as_array().unwrap().len(), row["trained"].as_array().unwrap().len());
        assert_eq!(row["text"].as_str().unwrap().contains("Zounds"), row["row"] == 5);
    }
    // The same again, and then past it.
    scene.fail(scene.train(true, &[]), 1);
    scene.succeed(scene.train(true, &["run.on_bad_step=skip"]));
    let whole = self::scene(&[5]);
    whole.succeed(whole.train(false, &["run.on_bad_step=skip"]));
    let adapter = "adapter/adapter_model.safetensors";
    assert!(whole.files()[adapter] == scene.files()[adapter]);
}

/// The poisoned row is one device's; none of them may take the update.
#[test]
fn a_bad_step_on_one_of_several_devices_is_skipped_by_all() {
    let settings =
        |device: &str| ["run.on_bad_step=skip".to_owned(), "run.micro_batch=1".to_owned(), device.to_owned()];
    let adapter = |device: &str| {
        let (scene, settings) = (scene(&[5]), settings(device));
        scene.succeed(scene.train(false, &settings.each_ref().map(String::as_str)));
        assert_eq!(events(&scene.run(), "step").len(), 5);
        assert_eq!(events(&scene.run(), "bad_step")[0]["reason"], "loss_not_finite");
        let path = scene.path("run/adapter/adapter_model.safetensors");
        let adapter = Checkpoint::open(&path).unwrap();
        adapter.tensors().iter().flat_map(|info| adapter.read_f32(&info.name).unwrap()).collect::<Vec<f32>>()
    };
    let (one, two) = (adapter("run.device=cpu"), adapter("run.device=cpu:0,1"));
    assert!(two.iter().all(|value| value.is_finite()));
    assert!(crate::golden::relative(&two, &one) < 1e-4);
}

#[test]
fn a_skipped_step_is_counted_and_a_run_resumed_around_it_is_the_same() {
    let skip = ["run.on_bad_step=skip"];
    let whole = scene(&[5]);
    let told = whole.succeed(whole.train(false, &skip));
    assert!(told.contains("finished  6 steps (1 of them not applied)"), "{told}");
    let steps = events(&whole.run(), "step");
    assert_eq!(steps.iter().map(|e| e["step"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2, 4, 5, 6]);
    let bad = events(&whole.run(), "bad_step");
    assert_eq!(bad.len(), 1);
    assert_eq!((&bad[0]["step"], &bad[0]["action"]), (&Value::from(3), &Value::from("skip")));
    assert!(whole.succeed(whole.command(&["inspect", "run"])).contains("1 bad steps"));
    for last in 2..=5 {
        let cut = scene(&[5]);
        copy(&whole.run(), &cut.run());
        for step in last + 1..=6 {
            std::fs::remove_dir_all(cut.path(&format!("run/checkpoints/step-{step:06}"))).unwrap();
        }
        std::fs::remove_dir_all(cut.path("run/adapter")).unwrap();
        cut.succeed(cut.train(true, &skip));
        assert_same(&whole.files(), &cut.files(), &format!("resumed after step {last}"));
    }
}

#[test]
fn too_many_bad_steps_in_a_row_stop_the_run_whatever_the_recipe_says() {
    // Every step from the first on, and sound rows for the tokens to be told apart by.
    let scene = scene(&[1, 3, 5, 7, 9, 11]);
    let told = scene.fail(scene.train(false, &["run.on_bad_step=skip"]), 1);
    assert!(told.contains("after 5 skipped in a row") && told.contains("bad-step"), "{told}");
    assert_eq!(events(&scene.run(), "bad_step").len(), 6);
    assert!(scene.path("run/checkpoints/step-000005").is_dir());
}

#[test]
fn a_spike_is_a_bad_step_once_the_run_is_long_enough_to_tell_and_what_it_remembers_is_resumed() {
    let scene = || {
        let scene = Scene::with(RECIPE);
        scene.copy_model();
        let row = |i: usize| {
            let said =
                if i == 75 { "%% @@ ## xq zw vj %% @@ ##".to_owned() } else { format!("Well, my lord, {}.", i % 3) };
            format!("{{\"instruction\": \"What say you?\", \"output\": \"{said}\"}}\n")
        };
        scene.write("rows.jsonl", &(0..80).map(row).collect::<String>());
        scene
    };
    // A model that stays as it is, so that only the rows make the loss.
    let settings = ["run.steps=78", "run.global_batch=1", "checkpoint.every=37", "optimizer.learning_rate=1e-30"];
    let watched = [&settings[..], &["run.spike=6", "run.on_bad_step=skip"]].concat();
    let whole = scene();
    whole.succeed(whole.train(false, &watched));
    let bad = events(&whole.run(), "bad_step");
    assert_eq!(bad.len(), 1, "{bad:?}");
    assert_eq!((&bad[0]["step"], &bad[0]["reason"]), (&Value::from(76), &Value::from("loss_spike")));

    let cut = scene();
    copy(&whole.run(), &cut.run());
    std::fs::remove_dir_all(cut.path("run/checkpoints/step-000078")).unwrap();
    std::fs::remove_dir_all(cut.path("run/bad-batches")).unwrap();
    cut.succeed(cut.train(true, &watched));
    assert_same(&whole.files(), &cut.files(), "resumed two steps before a spike");

    let unwatched = scene();
    unwatched.succeed(unwatched.train(false, &settings));
    assert!(events(&unwatched.run(), "bad_step").is_empty());
}
