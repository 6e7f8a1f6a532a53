//! What `plan` says against what the run then does.

use qwen_tune_weights::Dtype;
use serde_json::Value;
use tempfile::tempdir;

use crate::made_model;
use crate::runs::succeed;

const LORA: &str = "recipes/smoke/qwen3-lora.toml";
const FULL: &str = "recipes/smoke/qwen3-full.toml";

fn plan(recipe: &str, settings: &[&str]) -> Value {
    serde_json::from_str(&succeed(&[&["plan", recipe, "--json"], settings].concat())).unwrap()
}

/// Bytes that the planned run really held at its peak.
fn peak(recipe: &str, settings: &[&str]) -> f64 {
    let home = tempdir().unwrap();
    let dir = format!("run.dir={}", home.path().join("run").display());
    let out = succeed(&[&["train", recipe, "--json", "--set", &dir], settings].concat());
    let finished: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert_eq!(finished["event"], "finished");
    finished["peak_memory"].as_f64().expect("this system tells a process's peak")
}

/// Adapters and all weights, activations kept and made again, whole batches and small ones, evaluations that take more
/// than a step: a formula that is right for one of them only does not pass.
#[test]
#[cfg(target_os = "linux")]
fn memory_is_predicted_within_a_tenth() {
    let large = ["--set", "run.global_batch=32", "--set", "run.steps=3"];
    let again = ["--set", "run.recompute=all"];
    let codes = ["--set", "optimizer.kind=adamw_8bit"];
    let narrow = ["--set", "model.dtype=bf16", "--set", "full.master=bf16"];
    let whole = ["--set", "lora.modules_to_save=[\"embed_tokens\"]"];
    let cases: [(&str, Vec<&str>); 10] = [
        (LORA, vec![]),
        (LORA, [&large[..], &["--set", "model.quantize=nf4"]].concat()),
        (LORA, again.to_vec()),
        (LORA, large.to_vec()),
        (LORA, [&large[..], &again].concat()),
        (LORA, [&large[..], &["--set", "run.micro_batch=2", "--set", "lora.target=attention"]].concat()),
        (FULL, large.to_vec()),
        (FULL, [&large[..], &codes].concat()),
        (FULL, [&large[..], &codes, &narrow].concat()),
        (LORA, [&large[..], &whole].concat()),
    ];
    for (recipe, settings) in cases {
        let (predicted, held) = (plan(recipe, &settings)["memory_bytes"].as_f64().unwrap(), peak(recipe, &settings));
        let off = predicted / held - 1.0;
        assert!(off.abs() < 0.1, "{recipe} {settings:?}: predicted {predicted:.3e} bytes, held {held:.3e} ({off:+.3})");
    }
}

/// The parts that only some families have: experts, recurrences, a gated expert that all tokens go through.
#[test]
#[cfg(target_os = "linux")]
fn memory_of_experts_and_recurrences_is_predicted_within_a_tenth() {
    let home = tempdir().unwrap();
    let large = ["--set", "run.global_batch=32", "--set", "run.steps=3"];
    let again = ["--set", "run.recompute=all"];
    let mut seen = Vec::new();
    for family in ["qwen3_moe", "qwen2_moe", "qwen3_5", "qwen3_next"] {
        let base = home.path().join(family);
        made_model::write(&base, &made_model::config(family), "model.");
        let base = format!("model.base={}", base.display());
        for (recipe, more) in [(LORA, &[][..]), (LORA, &again), (FULL, &[])] {
            let settings = [&large[..], more, &["--set", &base]].concat();
            let predicted = plan(recipe, &settings)["memory_bytes"].as_f64().unwrap();
            // Where little is kept, a tenth of what is held lies in holes, more or fewer from run to run.
            let runs = if more.is_empty() { 1 } else { 3 };
            let held = (0..runs).map(|_| peak(recipe, &settings)).sum::<f64>() / f64::from(runs);
            let off = predicted / held - 1.0;
            seen.push((
                off,
                format!("{family} {recipe} {more:?}: predicted {predicted:.3e}, held {held:.3e} ({off:+.3})"),
            ));
        }
    }
    let told: Vec<&str> = seen.iter().map(|(_, told)| told.as_str()).collect();
    assert!(seen.iter().all(|(off, _)| off.abs() < 0.1), "{}", told.join("\n"));
}

/// The more memory, the less is done in pieces; and never a plan above the budget.
#[test]
#[cfg(target_os = "linux")]
fn a_budget_is_kept_to_by_smaller_batches_then_by_running_blocks_again() {
    let rows = ["--set", "run.global_batch=64", "--set", "run.steps=2"];
    let mut seen = Vec::new();
    for budget in [400, 200, 110, 75, 58] {
        let memory = format!("run.memory={budget}MB");
        let settings = [&rows[..], &["--set", &memory]].concat();
        let plan = plan(LORA, &settings);
        assert!(plan["memory_bytes"].as_u64().unwrap() <= budget * 1_000_000, "{plan}");
        // Holes in the heap differ by some hundredths from run to run.
        let held = (0..3).map(|_| peak(LORA, &settings)).sum::<f64>() / 3.0;
        assert!(held <= budget as f64 * 1e6 * 1.05, "{budget} MB: held {held:.3e}");
        seen.push((plan["micro_batch"].as_u64().unwrap(), plan["recompute"].as_u64().unwrap()));
    }
    assert!(seen.windows(2).all(|two| two[0].0 >= two[1].0 && two[0].1 <= two[1].1), "{seen:?}");
    assert!(seen[0] == (8, 0) && seen[4].0 == 1 && seen[4].1 > 0, "{seen:?}");
}

/// Weights that lie in the file as the run takes them leave memory between uses before any block runs again: the losses are the
/// same bits.
#[test]
#[cfg(target_os = "linux")]
fn weights_of_a_mapped_file_are_given_back_where_a_budget_asks_for_it() {
    let home = tempdir().unwrap();
    let base = home.path().join("base");
    let mut config = made_model::config("qwen3");
    for (key, value) in [("hidden_size", 512), ("intermediate_size", 2048), ("num_hidden_layers", 8)] {
        config[key] = value.into();
    }
    made_model::write_as(&base, &config, "model.", Dtype::F32, |_| (-0.05, 0.05));
    let layers: u64 = 8 * 4 * (3 * 512 * 2048 + 512 * (128 + 64 + 64 + 128));
    let base = format!("model.base={}", base.display());
    let settings = ["--set", &base, "--set", "run.steps=3", "--set", "run.micro_batch=2", "--set", "export=[]"];
    let outcome = |more: &[&str]| {
        let dir = tempdir().unwrap();
        let at = format!("run.dir={}", dir.path().join("run").display());
        let out = succeed(&[&["train", LORA, "--json", "--set", &at], &settings[..], more].concat());
        let events: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let losses: Vec<f64> = events.iter().filter_map(|event| event["loss"].as_f64()).collect();
        (losses, events.last().unwrap()["peak_memory"].as_f64().unwrap())
    };
    let (losses, held) = outcome(&["--set", "run.offload=none"]);
    let budget = format!("run.memory={}B", held as u64 - layers / 2);
    let planned = plan(LORA, &[&settings[..], &["--set", &budget]].concat());
    assert_eq!((&planned["offload"], &planned["recompute"]), (&"weights".into(), &0.into()), "{planned}");
    let (same, less) = outcome(&["--set", &budget]);
    assert_eq!(same, losses);
    let saved = (held - less) / layers as f64;
    assert!((0.75..0.95).contains(&saved), "of 8 layers all but one: {saved:.3} of their bytes");
    let off = planned["memory_bytes"].as_f64().unwrap() / less - 1.0;
    assert!(off.abs() < 0.1, "predicted {}, held {less:.3e} ({off:+.3})", planned["memory_bytes"]);
}

#[test]
fn what_is_trained_is_counted() {
    let plan = plan(LORA, &["--set", "lora.target=attention"]);
    let targets: Vec<&str> =
        plan["targets"].as_array().unwrap().iter().map(|t| t["target"].as_str().unwrap()).collect();
    assert_eq!(targets, ["k_proj", "o_proj", "q_proj", "v_proj"]);
    // Five layers of rank 8: q and o between 128 and 128 channels, k and v from 128 to 64.
    assert_eq!(plan["trained_parameters"], 5 * 8 * (2 * (128 + 128) + 2 * (128 + 64)));
    assert!(plan["time"]["step_seconds"].as_f64().unwrap() > 0.0);
}
