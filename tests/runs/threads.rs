//! `run.threads`: how fast, never what.

use serde_json::Value;

use super::{LORA, Scratch, metrics, succeed};

#[test]
fn the_number_of_threads_changes_no_bit() {
    let scratch = Scratch::new();
    let train = |threads: &str| {
        let (dir, threads) = (scratch.dir(threads), format!("run.threads={threads}"));
        succeed(&["train", LORA, "--set", "run.steps=4", "--set", &dir, "--set", &threads]);
    };
    train("1");
    train("3");
    let (one, three) = (scratch.path("1"), scratch.path("3"));
    assert_eq!(metrics(&one), metrics(&three));
    for file in ["checkpoints/step-000004/optimizer.safetensors", "adapter/adapter_model.safetensors"] {
        assert_eq!(std::fs::read(one.join(file)).unwrap(), std::fs::read(three.join(file)).unwrap(), "{file}");
    }
}

/// As the harness has two, by the variable that rayon itself reads.
#[test]
fn a_recipe_without_threads_leaves_them_to_the_environment() {
    let choice = |setting: &str| {
        let plan: Value = serde_json::from_str(&succeed(&["plan", LORA, "--json", "--set", setting])).unwrap();
        let choices = plan["choices"].as_array().unwrap();
        choices.iter().find(|choice| choice["key"] == "run.threads").cloned()
    };
    for setting in ["run.threads=auto", "run.threads=0"] {
        let choice = choice(setting).unwrap();
        assert_eq!(choice["value"], 2);
        assert!(choice["reason"].as_str().unwrap().contains("RAYON_NUM_THREADS"), "{choice}");
    }
    assert_eq!(choice("run.threads=3"), None);
}

/// A run may be exported on a machine with other cores.
#[test]
fn a_resolved_recipe_does_not_name_the_cores_of_its_machine() {
    let scratch = Scratch::new();
    succeed(&["train", LORA, "--set", "run.steps=1", "--set", &scratch.dir("run")]);
    let resolved = std::fs::read_to_string(scratch.path("run").join("recipe.resolved.toml")).unwrap();
    assert!(resolved.lines().any(|line| line.starts_with("threads = \"auto\"  # ")), "{resolved}");
}
