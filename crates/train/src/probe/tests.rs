#![allow(clippy::unwrap_used)]

use qwen_tune_model::{LoraModule, LoraPlan};
use qwen_tune_qwen::{family, inventory};
use serde_json::json;

use super::*;

/// Eight layers, the fourth and the eighth of attention, experts in all but the second.
fn hybrid() -> DecoderSpec {
    family::resolve(&json!({
        "model_type": "qwen3_next", "vocab_size": 24, "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 64, "full_attention_interval": 4,
        "linear_num_key_heads": 1, "linear_num_value_heads": 2, "linear_key_head_dim": 4, "linear_value_head_dim": 4,
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 6,
        "shared_expert_intermediate_size": 6, "mlp_only_layers": [1], "decoder_sparse_step": 1,
    }))
    .unwrap()
}

/// Adapters in these layers.
fn adapters(layers: &[usize]) -> Training {
    let module = |layer: &usize| format!("layers.{layer}.mlp.shared_expert.up_proj");
    let shape = LoraModule { rank: 2, scale: 1.0, values: None };
    let modules = layers.iter().map(|layer| (module(layer), shape.clone())).collect();
    Training::Lora(LoraPlan { modules, ..LoraPlan::default() })
}

fn seen(training: &Training) -> (Vec<(Vec<usize>, bool)>, usize) {
    let (kinds, lowest) = kinds(&hybrid(), training);
    (kinds.into_iter().map(|kind| (kind.layers, kind.below)).collect(), lowest)
}

#[test]
fn blocks_are_told_apart_by_what_they_are_and_whether_they_learn() {
    let all: Vec<usize> = (0..8).collect();
    let every = vec![(vec![0, 2, 4, 5, 6], false), (vec![1], false), (vec![3, 7], false)];
    assert_eq!(seen(&adapters(&all)), (every.clone(), 0));
    let whole = inventory(&hybrid()).into_iter().map(|tensor| tensor.name).collect();
    assert_eq!(seen(&Training::Full(whole)), (every, 0));
    let upper = vec![
        (vec![0, 2], true),
        (vec![4, 6], false),
        (vec![5], false),
        (vec![1], true),
        (vec![3], true),
        (vec![7], false),
    ];
    let (found, lowest) = seen(&adapters(&[4, 6, 7]));
    assert_eq!(lowest, 4);
    assert_eq!(sorted(found), sorted(upper));
    let head = Training::Full(["norm.weight".to_owned()].into_iter().collect());
    let below = vec![(vec![0, 2, 4, 5, 6], true), (vec![1], true), (vec![3, 7], true)];
    assert_eq!(seen(&head), (below, 8));
    let embedding = Training::Full(["embed_tokens.weight".to_owned()].into_iter().collect());
    assert_eq!(seen(&embedding).1, 0, "gradients flow down to the embedding");
}

fn sorted<T: Ord>(mut list: Vec<T>) -> Vec<T> {
    list.sort();
    list
}

#[test]
fn every_block_counts_as_what_it_is() {
    let block = |kept, again, eval| BlockPace { kept, again, eval };
    let (delta, attention) = (block(1.0, 1.5, 0.25), block(10.0, 15.0, 2.5));
    let pace = Pace { blocks: vec![delta, delta, delta, attention], rest: 3.0, eval_rest: 0.5, update: 0.125 };
    assert_eq!(pace.step(2.0, 0, 8.0), 2.0 * (13.0 + 3.0) + 1.0);
    assert_eq!(pace.step(2.0, 2, 8.0), 2.0 * (14.0 + 3.0) + 1.0, "the lowest run again");
    assert_eq!(pace.step(2.0, usize::MAX, 0.0), 2.0 * (19.5 + 3.0));
    assert_eq!(pace.eval(4.0), 4.0 * (3.25 + 0.5));
}
