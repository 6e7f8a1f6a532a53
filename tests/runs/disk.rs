//! Disks that are full, directories that vanish or cannot be written.

use super::scene::{Scene, events, quietly, wait_until};

const CONSTANT: [&str; 2] = ["schedule.kind=\"constant\"", "schedule.warmup=0"];

/// The size of a file is limited, which to a program is a full disk; the signal that comes with it is ignored.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_ends_the_run_and_its_last_checkpoint_survives() {
    let scene = Scene::lora();
    scene.succeed(scene.train(false, &["run.steps=2", CONSTANT[0], CONSTANT[1]]));
    let binary = env!("CARGO_BIN_EXE_qwen-tune");
    let limited = |blocks: u32, steps: u32| {
        let set = format!("--set run.steps={steps} --set '{}' --set {}", CONSTANT[0], CONSTANT[1]);
        let mut command = std::process::Command::new("sh");
        command
            .arg("-c")
            .arg(format!("trap '' XFSZ; ulimit -f {blocks}; exec {binary} train recipe.toml --resume {set}"))
            .current_dir(scene.path(""))
            .env("NO_COLOR", "1")
            .env("XDG_CACHE_HOME", scene.path("cache"));
        command
    };
    // 64 blocks of 512 bytes: enough for the plan, not for a checkpoint.
    let told = scene.fail(limited(64, 4), 1);
    assert!(told.contains("cannot write `run/checkpoints/.step-000004.partial"), "{told}");
    assert!(told.contains("make room on that disk"), "{told}");
    assert!(told.contains("the newest checkpoint in `run` is that of step 2 of 4 made"), "{told}");
    let names: Vec<_> =
        std::fs::read_dir(scene.path("run/checkpoints")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["step-000002"]);
    scene.succeed(scene.train(true, &["run.steps=4", CONSTANT[0], CONSTANT[1]]));
    let whole = Scene::lora();
    whole.succeed(whole.train(false, &["run.steps=4", CONSTANT[0], CONSTANT[1]]));
    assert_eq!(events(&whole.run(), "step"), events(&scene.run(), "step"));
}

#[cfg(unix)]
#[test]
fn a_directory_that_vanishes_is_reported_and_not_made_up_for() {
    let scene = Scene::lora();
    let mut child = {
        let mut command = scene.train(false, &["run.steps=100000", "eval.every=100000", "checkpoint.every=20"]);
        command.stderr(std::process::Stdio::piped()).spawn().unwrap()
    };
    let run = scene.run();
    assert!(wait_until(&mut child, || events_written(&run) > 3));
    std::fs::rename(&run, scene.path("gone")).unwrap();
    let output = child.wait_with_output().unwrap();
    let told = super::text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("cannot create `run/checkpoints`") && told.contains("directory is gone"), "{told}");
    assert!(!run.exists());
}

#[cfg(unix)]
fn events_written(run: &std::path::Path) -> usize {
    std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default().lines().count()
}

#[cfg(target_os = "linux")]
#[test]
fn a_place_that_cannot_be_written_is_named_before_anything_runs() {
    let scene = Scene::lora();
    let told = scene.fail(scene.train(false, &["run.dir=/proc/self/run"]), 1);
    assert!(told.contains("cannot create `/proc/self/run`"), "{told}");
}

#[test]
fn leftovers_of_killed_runs_are_removed_and_metrics_are_cut_to_the_checkpoint() {
    let scene = Scene::lora();
    let mut child = quietly(scene.train(false, &[]));
    let first = scene.path("run/checkpoints/step-000002");
    assert!(wait_until(&mut child, || first.exists()));
    child.kill().unwrap();
    child.wait().unwrap();
    let left = [
        ".step-000004.partial-4194399-1",
        "checkpoints/.step-000004.partial-4194399-1",
        "export/.merged.partial-4194399-0",
    ];
    for name in left {
        std::fs::create_dir_all(scene.run().join(name)).unwrap();
    }
    scene.succeed(scene.train(true, &[]));
    assert!(left.iter().all(|name| !scene.run().join(name).exists()));
    let steps: Vec<_> = events(&scene.run(), "step").iter().map(|e| e["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [1, 2, 3, 4, 5, 6, 7]);
}
