//! Every recipe of `recipes/smoke` from beginning to end.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Scratch, losses, root, succeed};

/// A smoke recipe, and the held-out losses that its run has to begin near and to fall below.
struct Smoke {
    recipe: &'static str,
    before: f64,
    after: f64,
}

const SMOKE: [Smoke; 5] = [
    Smoke { recipe: "qwen3-lora", before: 5.532, after: 5.3 },
    Smoke { recipe: "qwen3-full", before: 5.532, after: 5.27 },
    Smoke { recipe: "qwen3-cpt", before: 5.288, after: 5.18 },
    Smoke { recipe: "qwen3_5-lora", before: 3.703, after: 3.64 },
    Smoke { recipe: "qwen3_moe-lora", before: 3.737, after: 3.68 },
];

#[test]
fn every_smoke_recipe_learns_in_little_memory() {
    let shipped: BTreeSet<String> = std::fs::read_dir(root().join("recipes/smoke"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(shipped, SMOKE.iter().map(|smoke| smoke.recipe.to_owned()).collect());
    let scratch = Scratch::new();
    for Smoke { recipe, before, after } in SMOKE {
        let out = succeed(&["train", &format!("recipes/smoke/{recipe}.toml"), "--json", "--set", &scratch.dir(recipe)]);
        let run = scratch.path(recipe);
        let evals = losses(&run, "eval");
        assert!((evals[0] - before).abs() < 0.02, "{recipe}: begins at {}, not {before}", evals[0]);
        assert!(evals[1] < after, "{recipe}: ends at {}, not below {after}", evals[1]);
        let finished: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
        if let Some(peak) = finished["peak_memory"].as_f64() {
            assert!(peak < 150e6, "{recipe}: held {peak:.3e} bytes");
        }
    }
}

/// The tower and the predictor of further tokens are neither trained nor left out.
#[test]
fn a_merged_hybrid_carries_its_passengers_on() {
    use qwen_tune_weights::{Checkpoint, TensorSource};
    let scratch = Scratch::new();
    succeed(&[
        "train",
        "recipes/smoke/qwen3_5-lora.toml",
        "--set",
        "run.steps=2",
        "--set",
        "eval.limit=1",
        "--set",
        &scratch.dir("run"),
    ]);
    let base = Checkpoint::open(&root().join("datasets/tiny-qwen3_5")).unwrap();
    let merged = Checkpoint::open(&scratch.path("run/export/merged")).unwrap();
    let (mut same, mut changed) = (0, 0);
    for info in base.tensors() {
        assert_eq!(merged.info(&info.name), Some(info));
        let is_same = base.read(&info.name).unwrap() == merged.read(&info.name).unwrap();
        let carried = info.name.starts_with("mtp.") || info.name.starts_with("model.visual.");
        assert!(is_same || !carried, "{}", info.name);
        *(if is_same { &mut same } else { &mut changed }) += 1;
    }
    // Five linear layers in a delta-rule layer, four in an attention layer, three in a feed-forward part.
    assert_eq!((same + changed, changed), (base.tensors().len(), 3 * 5 + 4 + 4 * 3));
}
