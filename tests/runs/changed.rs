//! What a resumed run is held against: recipe, data, its own checkpoints.

use super::copy;
use super::scene::{Scene, assert_same, events};

/// A finished run of four steps, with checkpoints at two and four.
fn finished() -> Scene {
    let scene = Scene::lora();
    scene.write("rows.jsonl", &rows("a man", 12));
    scene.succeed(scene.train(false, &SHORT));
    scene
}

const SHORT: [&str; 4] = ["run.steps=4", "schedule.kind=\"constant\"", "schedule.warmup=0", "data[1].path=rows.jsonl"];

fn rows(who: &str, count: usize) -> String {
    let row = |i| format!("{{\"instruction\": \"Who was number {i}?\", \"output\": \"He was {who}, sir.\"}}\n");
    (0..count).map(row).collect()
}

fn resume(scene: &Scene, settings: &[&str]) -> std::process::Command {
    scene.train(true, &[&SHORT[1..], settings].concat())
}

#[test]
fn changes_that_matter_are_refused_by_name() {
    let scene = finished();
    let before = scene.files();
    let told = scene.fail(
        resume(
            &scene,
            &["run.steps=6", "optimizer.learning_rate=0.001", "run.seed=7", "lora.dropout=0.0", "data[0].limit=50"],
        ),
        2,
    );
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!("resume_another_recipe", told);
        // As long as before, so that only the content tells.
        scene.write("rows.jsonl", &rows("a boy", 12));
        insta::assert_snapshot!("resume_other_data", scene.fail(resume(&scene, &["run.steps=6"]), 2));
    });
    assert_same(&before, &scene.files(), "a refused run touches nothing");
}

#[test]
fn changes_that_do_not_matter_are_taken() {
    let scene = finished();
    std::fs::rename(scene.path("rows.jsonl"), scene.path("moved")).unwrap();
    std::fs::create_dir(scene.path("elsewhere")).unwrap();
    std::fs::rename(scene.path("moved"), scene.path("elsewhere/rows.jsonl")).unwrap();
    let told = scene.succeed(scene.train(
        true,
        &[
            "run.steps=5",
            SHORT[1],
            SHORT[2],
            "data[1].path=elsewhere/rows.jsonl",
            "run.micro_batch=1",
            "run.recompute=all",
            "run.device=cpu",
            "checkpoint.every=1",
            "checkpoint.keep=1",
            "eval.every=1",
            "run.on_bad_step=skip",
            "report.jsonl=false",
        ],
    ));
    assert!(told.contains("the run is 5 steps long now, 4 before"), "{told}");
    assert!(scene.path("run/checkpoints/step-000005").is_dir());
}

#[test]
fn a_longer_run_at_a_constant_rate_is_the_run_that_was_long_from_the_start() {
    let scene = finished();
    scene.succeed(resume(&scene, &["run.steps=7"]));
    let whole = Scene::lora();
    whole.write("rows.jsonl", &rows("a man", 12));
    whole.succeed(whole.train(false, &[&SHORT[1..], &["run.steps=7"]].concat()));
    assert_eq!(events(&whole.run(), "step"), events(&scene.run(), "step"));
    // The shorter run evaluated at its end, which the state remembers; nothing else may differ.
    let (expected, found) = (whole.files(), scene.files());
    for name in ["adapter/adapter_model.safetensors", "checkpoints/step-000007/optimizer.safetensors"] {
        assert!(expected[name] == found[name], "{name}");
    }
}

#[test]
fn a_run_that_stopped_early_stays_stopped_until_it_is_given_more_patience() {
    let scene = Scene::lora();
    let settings = ["optimizer.learning_rate=1e-30", "eval.every=1", "eval.early_stop=2", "run.steps=9"];
    scene.succeed(scene.train(false, &settings));
    let before = scene.files();
    assert_eq!(events(&scene.run(), "step").len(), 2);
    scene.succeed(scene.train(true, &settings));
    assert_same(&before, &scene.files(), "resumed after an early stop");
    scene.succeed(scene.train(true, &[settings[0], settings[1], "eval.early_stop=4", settings[3]]));
    assert_eq!(events(&scene.run(), "step").len(), 4);
}

#[test]
fn a_damaged_checkpoint_is_passed_over_and_named() {
    let whole = finished();
    for (name, damage) in [
        ("optimizer.safetensors", truncate as fn(&std::path::Path)),
        ("state.json", flip),
        ("adapter_model.safetensors", flip),
        ("SHA256SUMS", flip),
        ("state.json", remove),
    ] {
        let scene = Scene::lora();
        scene.write("rows.jsonl", &rows("a man", 12));
        copy(&whole.run(), &scene.run());
        damage(&scene.path("run/checkpoints/step-000004").join(name));
        let told = scene.succeed(resume(&scene, &["run.steps=4"]));
        assert!(told.contains("checkpoint `run/checkpoints/step-000004` is damaged"), "{name}: {told}");
        assert!(told.contains("resuming after step 2"), "{name}: {told}");
        assert_same(&whole.files(), &scene.files(), name);
    }
}

#[test]
fn without_a_whole_checkpoint_a_run_is_not_begun_anew_unasked() {
    let scene = finished();
    for step in ["step-000002", "step-000004"] {
        flip(&scene.path("run/checkpoints").join(step).join("state.json"));
    }
    let told = scene.fail(resume(&scene, &["run.steps=4"]), 1);
    assert!(told.contains("damaged-checkpoint") && told.contains("step-000004"), "{told}");
}

fn flip(path: &std::path::Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

fn truncate(path: &std::path::Path) {
    let bytes = std::fs::read(path).unwrap();
    std::fs::write(path, &bytes[..bytes.len() - 5]).unwrap();
}

fn remove(path: &std::path::Path) {
    std::fs::remove_file(path).unwrap();
}
