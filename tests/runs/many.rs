//! `run.device = "cpu:0,1"`: the whole of a run with two copies of the model, from outside.

use serde_json::Value;

use super::scene::{Scene, assert_same, events, quietly, wait_until};
use super::{LORA, metrics, succeed};

/// A micro-batch for each row, so that there is something to deal out.
const DEALT: [&str; 2] = ["run.global_batch=6", "run.micro_batch=1"];

fn train(scene: &Scene, device: &str, resume: bool) -> std::process::Command {
    let device = format!("run.device={device}");
    scene.train(resume, &[&DEALT[..], &[device.as_str()]].concat())
}

fn numbers(scene: &Scene, kind: &str, key: &str) -> Vec<f64> {
    events(&scene.run(), kind).iter().map(|event| event[key].as_f64().unwrap()).collect()
}

#[test]
fn losses_norms_and_evaluations_are_those_of_one_device() {
    for make in [Scene::lora as fn() -> Scene, Scene::experts] {
        let one = make();
        one.succeed(train(&one, "cpu", false));
        for device in ["cpu:0,1", "cpu:0,1,2"] {
            let many = make();
            many.succeed(train(&many, device, false));
            for (kind, key) in [("step", "loss"), ("step", "grad_norm"), ("eval", "loss")] {
                let (one, many) = (numbers(&one, kind, key), numbers(&many, kind, key));
                assert_eq!(one.len(), many.len());
                for (a, b) in one.iter().zip(&many) {
                    assert!((a - b).abs() <= 2e-6 * a.abs(), "{device} {kind} {key}: {one:?} and {many:?}");
                }
            }
        }
    }
}

#[test]
fn a_killed_run_on_several_devices_goes_on_as_if_it_had_not_been() {
    for make in [Scene::lora as fn() -> Scene, Scene::full] {
        let whole = make();
        whole.succeed(train(&whole, "cpu:0,1", false));
        let broken = make();
        let mut child = quietly(train(&broken, "cpu:0,1", false));
        wait_until(&mut child, || broken.path("run/checkpoints/step-000002").exists());
        let _ = child.kill();
        child.wait().unwrap();
        broken.succeed(train(&broken, "cpu:0,1", true));
        assert_same(&whole.files(), &broken.files(), "killed on two devices");
    }
}

/// What two devices began, one ends.
#[test]
fn a_run_goes_on_with_another_number_of_devices() {
    let scene = Scene::lora();
    let mut child = quietly(train(&scene, "cpu:0,1,2", false));
    wait_until(&mut child, || scene.path("run/checkpoints/step-000002").exists());
    let _ = child.kill();
    child.wait().unwrap();
    scene.succeed(train(&scene, "cpu", true));
    assert_eq!(events(&scene.run(), "step").len(), 7);
}

#[test]
fn a_plan_counts_what_every_copy_takes() {
    let plan = |device: &str| -> Value {
        let device = format!("run.device={device}");
        serde_json::from_str(&succeed(&["plan", LORA, "--json", "--set", "run.micro_batch=1", "--set", &device]))
            .unwrap()
    };
    let (one, three) = (plan("cpu"), plan("cpu:0,1,2"));
    assert_eq!((&three["devices"], &three["device"]), (&Value::from(3), &Value::from("cpu:0,1,2")));
    let part = |plan: &Value, name: &str| -> u64 {
        let parts = plan["memory"].as_array().unwrap();
        parts.iter().find(|part| part["part"] == name).unwrap()["bytes"].as_u64().unwrap()
    };
    // The CPU holds frozen weights once for all.
    assert_eq!(part(&one, "frozen weights"), part(&three, "frozen weights"));
    let own = "trained values and moments";
    assert_eq!(3 * part(&one, own), part(&three, own));
    assert!(three["memory_bytes"].as_u64() > one["memory_bytes"].as_u64());
}

/// A step's rows are laid out as for one device, and left to `auto` so that no device is without.
#[test]
fn a_micro_batch_left_to_the_plan_leaves_something_for_every_device() {
    let scene = Scene::lora();
    let micro_batch = |device: &str| -> u64 {
        let settings = ["run.micro_batch=auto", "run.global_batch=16", "tokens.packing=none", device];
        let mut arguments = vec!["plan", "recipe.toml", "--json"];
        arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        let plan: Value =
            serde_json::from_str(scene.succeed(scene.command(&arguments)).lines().next().unwrap()).unwrap();
        plan["micro_batch"].as_u64().unwrap()
    };
    assert_eq!(micro_batch("run.device=cpu"), 42);
    assert_eq!(micro_batch("run.device=cpu:0,1"), 8);
    assert_eq!(micro_batch("run.device=cpu:0,1,2,3"), 4);
}

#[test]
fn metrics_of_several_devices_are_the_same_every_time() {
    let scenes = [Scene::lora(), Scene::lora()];
    scenes.iter().for_each(|scene| drop(scene.succeed(train(scene, "cpu:0,1", false))));
    assert_eq!(metrics(&scenes[0].run()), metrics(&scenes[1].run()));
}
