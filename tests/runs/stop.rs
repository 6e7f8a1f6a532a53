//! Ctrl-C once and twice, at several moments.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::scene::{Scene, assert_same, events, interrupt, quietly, wait_until};

/// As the scene's recipe, but checkpoints only where a run stops, all kept: so a stopped run leaves one more.
const NO_CHECKPOINTS: [&str; 2] = ["checkpoint.every=1000", "checkpoint.keep=1"];

#[test]
fn an_interrupt_during_an_evaluation_leaves_it_to_the_resumed_run() {
    let scene = Scene::lora();
    let settings = ["eval.limit=400", NO_CHECKPOINTS[0], NO_CHECKPOINTS[1], "run.steps=3"];
    let mut child = scene.train(false, &settings).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.by_ref().any(|line| line.unwrap().starts_with("training ")));
    interrupt(&child);
    assert_eq!(lines.map(Result::unwrap).filter(|line| line.starts_with("eval ")).count(), 0);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(scene.path("run/checkpoints/step-000000/state.json").is_file());
    assert!(events(&scene.run(), "eval").is_empty());
    scene.succeed(scene.train(true, &settings));
    let whole = Scene::lora();
    whole.succeed(whole.train(false, &settings));
    assert_same(&whole.files(), &scene.files(), "interrupted in its first evaluation");
}

#[test]
fn an_interrupt_before_the_first_step_leaves_a_checkpoint() {
    let scene = Scene::lora();
    // A long first evaluation, in case the signal comes late.
    let settings = ["eval.limit=400", NO_CHECKPOINTS[0], NO_CHECKPOINTS[1], "run.steps=3"];
    let mut child = quietly(scene.train(false, &settings));
    let claim = scene.path("run/.lock");
    assert!(wait_until(&mut child, || claim.exists()));
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(scene.path("run/checkpoints/step-000000/state.json").is_file());
    assert!(events(&scene.run(), "step").is_empty());
    scene.succeed(scene.train(true, &settings));
    let whole = Scene::lora();
    whole.succeed(whole.train(false, &settings));
    assert_same(&whole.files(), &scene.files(), "interrupted before its first step");
}

#[test]
fn a_second_interrupt_ends_the_run_at_once() {
    let scene = Scene::lora();
    // A step that takes far longer than the test waits.
    let settings = ["run.global_batch=4000", "tokens.max_length=512", "data[0].limit=1000", "eval.limit=1"];
    let mut child = scene.train(false, &settings).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.by_ref().any(|line| line.unwrap().starts_with("eval at step 0")));
    interrupt(&child);
    assert!(lines.by_ref().any(|line| line.unwrap().contains("once more to stop at once")));
    interrupt(&child);
    let started = Instant::now();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert!(!scene.path("run/checkpoints").exists());
}

#[test]
fn a_directory_in_use_is_refused() {
    let scene = Scene::lora();
    let mut child = quietly(scene.train(false, &["run.steps=100000"]));
    let metrics = scene.path("run/metrics.jsonl");
    assert!(wait_until(&mut child, || metrics.exists()));
    for resume in [false, true] {
        let told = scene.fail(scene.train(resume, &["run.steps=100000"]), 2);
        assert!(told.contains("run-in-use") || told.contains("run-exists"), "{told}");
    }
    assert!(scene.fail(scene.train(true, &["run.steps=100000"]), 2).contains("another process is training in `run`"));
    assert!(child.try_wait().unwrap().is_none(), "the first run goes on");
    child.kill().unwrap();
    child.wait().unwrap();
}
