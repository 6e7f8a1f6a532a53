//! Models whose layers differ: hybrids, mixtures of experts.

use super::*;

/// The published sizes of models whose layers differ: all parameters and those a token meets, in billions, from the model
/// cards' round figures.
#[test]
fn published_mixtures_and_hybrids_have_their_size() {
    let next = json!({
        "model_type": "qwen3_next", "vocab_size": 151936, "hidden_size": 2048, "num_hidden_layers": 48, "head_dim": 256,
        "num_attention_heads": 16, "num_key_value_heads": 2, "intermediate_size": 5120, "num_experts": 512,
        "num_experts_per_tok": 10, "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
        "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 262144,
    });
    let mixture = json!({
        "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "num_hidden_layers": 48, "head_dim": 128,
        "num_attention_heads": 32, "num_key_value_heads": 4, "num_local_experts": 128, "num_experts_per_tok": 8,
        "moe_intermediate_size": 768, "norm_topk_prob": true, "rms_norm_eps": 1e-6, "max_position_embeddings": 40960,
    });
    let text = json!({
        "model_type": "qwen3_5_moe_text", "vocab_size": 248320, "hidden_size": 2048, "num_hidden_layers": 40, "head_dim": 256,
        "num_attention_heads": 16, "num_key_value_heads": 2, "num_experts": 256, "num_experts_per_tok": 8,
        "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "linear_num_key_heads": 16,
        "linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 262144, "rope_parameters": {"rope_type": "default", "rope_theta": 1e7},
    });
    let whole = json!({"model_type": "qwen3_5_moe", "text_config": text, "tie_word_embeddings": false});
    for (config, all, active) in [(next, 79.7, 3.9), (mixture, 30.5, 3.4), (whole, 34.7, 3.5)] {
        let spec = resolve(&config).unwrap();
        let list = crate::inventory(&spec);
        let (total, met) = (crate::memory::parameters(&list), crate::memory::active_parameters(&spec, &list));
        let near = |found: u64, billions: f64| (found as f64 / 1e9 - billions).abs() < 0.1;
        assert!(near(total, all) && near(met, active), "{}: {total} and {met}", spec.model_type);
    }
}

#[test]
fn hybrids_mix_three_to_one_unless_their_layers_are_listed() {
    let base = json!({
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 6,
        "num_hidden_layers": 8,
    });
    let full = |changes: Value| -> Vec<usize> {
        let mut all = base.clone();
        all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let spec = spec("qwen3_5_text", all);
        (0..spec.layers.len()).filter(|&i| matches!(spec.layers[i].mixer, MixerSpec::Attention(_))).collect()
    };
    assert_eq!(full(json!({})), [3, 7]);
    assert_eq!(full(json!({"full_attention_interval": 2, "num_hidden_layers": 5})), [1, 3]);
    let listed = json!({"layer_types": ["full_attention", "linear_attention"], "num_hidden_layers": 2});
    assert_eq!(full(listed), [0]);
    let quarter = spec("qwen3_5_text", base.clone()).rope;
    assert_eq!((quarter.rotary_dim, quarter.inv_freq.len()), (4, 2), "a quarter of a head of 16 turns");
    for (changes, part) in [
        (json!({"layer_types": ["full_attention"]}), "`layer_types` has 1 entries; expected 8"),
        (
            json!({"linear_num_value_heads": 3}),
            "`linear_num_value_heads` is 3, which `linear_num_key_heads` = 2 does not divide",
        ),
        (json!({"attn_output_gate": false}), "attention of this family is gated"),
        (json!({"partial_rotary_factor": 2}), "a share above 0"),
    ] {
        let mut all = base.clone();
        all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let text = fault("qwen3_5_text", all);
        assert!(text.contains(part), "no {part:?} in {text:?}");
    }
}

#[test]
fn sparse_layers_lie_where_the_step_and_the_list_put_them() {
    let base = json!({"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "num_hidden_layers": 6});
    let sparse = |changes: Value| -> Vec<usize> {
        let mut all = base.clone();
        all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let spec = spec("qwen3_moe", all);
        (0..spec.layers.len()).filter(|&i| matches!(spec.layers[i].ffn, FfnSpec::Sparse(_))).collect()
    };
    assert_eq!(sparse(json!({})), [0, 1, 2, 3, 4, 5]);
    assert_eq!(sparse(json!({"decoder_sparse_step": 2, "mlp_only_layers": [3]})), [1, 5]);
    assert!(
        fault("qwen3_moe", json!({"num_experts": 2, "num_experts_per_tok": 3, "moe_intermediate_size": 8}))
            .contains("at most the 2 experts")
    );
    // The dense width of a model without dense layers may be anything, or nothing.
    let mut all = base.clone();
    all["intermediate_size"] = "absent".into();
    assert_eq!(spec("qwen3_moe", all).layers.len(), 6);
}
