#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::*;
use crate::{HeadSpec, family, inventory};

fn model(tied: bool) -> Vec<TensorSpec> {
    let config = json!({
        "model_type": "qwen2", "vocab_size": 32, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 3,
        "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-6, "max_position_embeddings": 64,
        "tie_word_embeddings": tied,
    });
    inventory(&family::resolve(&config).unwrap())
}

fn names(names: &[&str]) -> LoraTargets {
    LoraTargets::Names(names.iter().map(|&name| name.to_owned()).collect())
}

fn resolve(targets: &LoraTargets) -> Vec<String> {
    targets.resolve(Switches::default(), &model(false), &LayerFilter::All).unwrap()
}

fn faults(targets: &LoraTargets, tied: bool, layers: &LayerFilter) -> Vec<String> {
    targets.resolve(Switches::default(), &model(tied), layers).unwrap_err().iter().map(ToString::to_string).collect()
}

#[test]
fn groups_mean_what_they_say() {
    assert_eq!(resolve(&LoraTargets::default()).len(), 3 * 7);
    let attention = resolve(&LoraTargets::Group(TargetGroup::Attention));
    assert_eq!(attention.len(), 3 * 4);
    assert_eq!(&attention[..2], ["layers.0.self_attn.q_proj", "layers.0.self_attn.k_proj"]);
    let mlp = resolve(&LoraTargets::Group(TargetGroup::Mlp));
    assert_eq!(mlp.len(), 3 * 3);
    assert!(mlp.iter().all(|module| module.contains(".mlp.")));
}

#[test]
fn names_match_leaves_ends_and_whole_paths() {
    assert_eq!(resolve(&names(&["q_proj"])).len(), 3);
    assert_eq!(resolve(&names(&["self_attn.q_proj"])).len(), 3);
    assert_eq!(resolve(&names(&["layers.1.self_attn.q_proj"])), ["layers.1.self_attn.q_proj"]);
    assert_eq!(resolve(&names(&["model.layers.1.self_attn.q_proj"])), ["layers.1.self_attn.q_proj"]);
}

#[test]
fn globs_match_leaves_without_dots_and_paths_with_them() {
    assert_eq!(resolve(&names(&["[qk]_proj"])).len(), 6);
    assert_eq!(resolve(&names(&["*_proj"])).len(), 21);
    assert_eq!(resolve(&names(&["layers.0.*"])).len(), 7);
    assert_eq!(resolve(&names(&["*.mlp.{gate,up}_proj"])).len(), 6);
    assert_eq!(resolve(&names(&["model.layers.{0,2}.mlp.*"])).len(), 6);
}

#[test]
fn modules_come_once_and_in_the_models_order() {
    let modules = resolve(&names(&["layers.2.*", "v_proj", "q_proj", "q_proj"]));
    assert_eq!(&modules[..3], ["layers.0.self_attn.q_proj", "layers.0.self_attn.v_proj", "layers.1.self_attn.q_proj"]);
    assert_eq!(modules.len(), 2 * 2 + 7);
}

#[test]
fn layers_limit_what_a_target_means() {
    let modules = names(&["q_proj"]).resolve(Switches::default(), &model(false), &LayerFilter::Range(1, 2)).unwrap();
    assert_eq!(modules, ["layers.1.self_attn.q_proj", "layers.2.self_attn.q_proj"]);
    assert_eq!(
        faults(&names(&["layers.0.*", "q_proj"]), false, &LayerFilter::List(vec![2])),
        ["target `layers.0.*` matches 7 modules, but none in the layers chosen by `layers = [2]`"]
    );
    assert_eq!(
        faults(&LoraTargets::default(), false, &LayerFilter::List(vec![3])),
        ["`layers` names layer 3; this model has layers 0 to 2"]
    );
}

#[test]
fn every_target_without_a_module_is_reported_with_near_misses() {
    assert_eq!(
        faults(
            &names(&["q_prj", "layers.9.mlp.up_proj", "in_proj_qkvz", "v_proj", "[", "query_key_value"]),
            false,
            &LayerFilter::All
        ),
        [
            "target `q_prj` matches no module of this model; it has `q_proj`, `k_proj`, `v_proj`",
            "target `layers.9.mlp.up_proj` matches no module of this model; it has `layers.0.mlp.up_proj`, `layers.1.mlp.up_proj`, `layers.2.mlp.up_proj`",
            "target `in_proj_qkvz` matches no module of this model; it has `q_proj`, `k_proj`, `v_proj`, `o_proj`, `gate_proj`, `up_proj`, `down_proj`",
            "target `[` is malformed: unclosed character class; missing ']'",
            "target `query_key_value` matches no module of this model; it has `q_proj`, `k_proj`, `v_proj`, `o_proj`, `gate_proj`, `up_proj`, `down_proj`",
        ]
    );
    assert_eq!(
        faults(&names(&[]), false, &LayerFilter::All),
        ["the list of targets is empty; \"all-linear\" adapts every linear layer"]
    );
}

#[test]
fn switches_add_experts_and_routers() {
    let config = json!({
        "model_type": "qwen2_moe", "vocab_size": 32, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-6, "max_position_embeddings": 64,
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 6, "shared_expert_intermediate_size": 10,
        "norm_topk_prob": false, "decoder_sparse_step": 1, "mlp_only_layers": [],
    });
    let sparse = inventory(&family::resolve(&config).unwrap());
    let both = Switches { experts: true, router: true };
    let chosen = |targets: &LoraTargets, switches| targets.resolve(switches, &sparse, &LayerFilter::Range(1, 1));
    assert_eq!(
        chosen(&names(&[]), both).unwrap(),
        ["gate", "experts.gate_up_proj", "experts.down_proj", "shared_expert_gate"]
            .map(|leaf| format!("layers.1.mlp.{leaf}"))
    );
    let experts = Switches { experts: true, router: false };
    assert_eq!(chosen(&LoraTargets::default(), experts).unwrap().len(), 4 + 2 + 3);
    assert_eq!(
        chosen(&names(&["experts.down_proj", "gate"]), Switches::default())
            .unwrap_err()
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        [
            "target `experts.down_proj` means `layers.0.mlp.experts.down_proj`, which takes no adapter: routed experts are adapted by `experts = true`",
            "target `gate` means `layers.0.mlp.gate`, which takes no adapter: routers are adapted by `router = true`",
        ]
    );
    let dense = LoraTargets::default().resolve(both, &model(false), &LayerFilter::All).unwrap_err();
    assert_eq!(
        dense.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["`experts = true`, but this model has no routed experts", "`router = true`, but this model has no routers"]
    );
}

#[test]
fn heads_embeddings_and_norms_are_refused_with_a_reason() {
    let reason = |name: &str, tied| faults(&names(&[name]), tied, &LayerFilter::All).remove(0);
    assert!(
        reason("lm_head", false)
            .starts_with("target `lm_head` means `lm_head`, which takes no adapter: an adapter on the head")
    );
    assert!(reason("lm_head", true).contains("the head of this model is its embedding (tied)"));
    assert!(reason("model.embed_tokens", false).contains("adapters on embeddings are not there yet"));
    assert!(reason("*norm", false).contains("which takes no adapter: it is not a linear layer"));
}

#[test]
fn the_recipe_form_is_read_and_written() {
    for (text, targets) in [
        ("\"all-linear\"", LoraTargets::Group(TargetGroup::AllLinear)),
        ("\"attention\"", LoraTargets::Group(TargetGroup::Attention)),
        ("[\"q_proj\",\"*.mlp.*\"]", names(&["q_proj", "*.mlp.*"])),
    ] {
        assert_eq!(serde_json::from_str::<LoraTargets>(text).unwrap(), targets);
        assert_eq!(serde_json::to_string(&targets).unwrap(), text);
    }
    let fault = |text: &str| serde_json::from_str::<LoraTargets>(text).unwrap_err().to_string();
    assert!(fault("\"atention\"").contains("unknown group `atention`, expected `\"all-linear\"`, `\"attention\"` or `\"mlp\"`; did you mean `\"attention\"`?"));
    assert!(fault("\"q_proj\"").contains("module names go in a list: `[\"q_proj\"]`"));
    assert!(fault("3").contains("expected `\"all-linear\"`, `\"attention\"`, `\"mlp\"` or a list of module names"));
}

#[test]
fn whole_modules_are_named_by_last_part_path_or_glob() {
    let own = model(false);
    let found = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        whole_modules(&names, &own, HeadSpec::Own).map(|found| found.into_iter().collect::<Vec<_>>())
    };
    assert_eq!(found(&["lm_head", "model.embed_tokens"]).unwrap(), ["embed_tokens.weight", "lm_head.weight"]);
    assert_eq!(found(&["norm"]).unwrap(), ["norm.weight"], "the last part, not the end of a word");
    assert_eq!(
        found(&["layers.0.*_layernorm"]).unwrap(),
        ["layers.0.input_layernorm.weight", "layers.0.post_attention_layernorm.weight"]
    );
    let faults = found(&["embed_token", "mlp", "[a"]).unwrap_err();
    assert!(faults[0].to_string().ends_with("it has `embed_tokens`"), "{}", faults[0]);
    assert!(
        matches!(&faults[1], TargetError::NoMatch { near, .. } if near.contains(&"q_proj".to_owned())),
        "{}",
        faults[1]
    );
    assert!(matches!(faults[2], TargetError::Malformed { .. }));
}

#[test]
fn a_tied_head_is_the_embedding() {
    let tied = model(true);
    for name in ["lm_head", "embed_tokens", "lm_*"] {
        let found = whole_modules(&[name.to_owned()], &tied, HeadSpec::Tied).unwrap();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["embed_tokens.weight"]);
    }
}
