//! Every field and form of `config.json` that the families read, family by family: one long list of cases over one
//! small configuration, kept together because each case is a change to it.
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

use serde_json::{Value, json};

use super::*;
use crate::RopeSpec;

mod layers;
mod rope;

/// A small configuration with every structural field, changed by the fields of `changes`; null removes one.
fn config(model_type: &str, changes: &Value) -> Value {
    let mut config = json!({
        "model_type": model_type, "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "hidden_act": "silu",
    });
    let fields = config.as_object_mut().unwrap();
    for (name, value) in changes.as_object().unwrap() {
        if value == "absent" {
            fields.remove(name);
        } else {
            fields.insert(name.clone(), value.clone());
        }
    }
    config
}

fn spec(model_type: &str, changes: Value) -> DecoderSpec {
    resolve(&config(model_type, &changes)).unwrap()
}

fn fault(model_type: &str, changes: Value) -> String {
    resolve(&config(model_type, &changes)).unwrap_err().to_string()
}

fn attention(spec: &DecoderSpec) -> &AttentionSpec {
    let MixerSpec::Attention(attention) = &spec.layers[0].mixer else { panic!("{:?}", spec.layers[0]) };
    attention
}

fn windows(spec: &DecoderSpec) -> Vec<Option<usize>> {
    let window = |layer: &LayerSpec| {
        let MixerSpec::Attention(attention) = &layer.mixer else { panic!("{layer:?}") };
        attention.window
    };
    spec.layers.iter().map(window).collect()
}

#[test]
fn families_differ_in_biases_and_head_norms_only() {
    let eps = NormSpec { eps: 1e-5, zero_centred: false };
    for (family, qkv_bias, output_bias, qk_norm, mlp_bias) in [
        ("qwen2", true, false, None, false),
        ("qwen3", true, true, Some(eps), false),
        ("llama", true, true, None, true),
        ("mistral", false, false, None, false),
    ] {
        let spec = spec(family, json!({"attention_bias": true, "mlp_bias": true, "sliding_window": null}));
        let expected = AttentionSpec {
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            qkv_bias,
            output_bias,
            qk_norm,
            window: None,
            output_gate: false,
        };
        assert_eq!(attention(&spec), &expected, "{family}");
        assert_eq!(spec.layers[3].ffn, FfnSpec::Dense { inner: 96, bias: mlp_bias }, "{family}");
        assert_eq!((spec.layers.len(), spec.norm, spec.head), (4, eps, HeadSpec::Own), "{family}");
        assert_eq!((spec.vocab_size, spec.hidden_size, spec.max_positions), (300, 64, 2048), "{family}");
        assert_eq!(spec.model_type, family);
    }
    assert!(!attention(&spec("qwen3", json!({}))).qkv_bias);
    assert!(!attention(&spec("llama", json!({}))).qkv_bias);
}

#[test]
fn absent_heads_get_the_defaults_of_transformers() {
    let heads = |family, changes| {
        let spec = spec(family, changes);
        (attention(&spec).kv_heads, attention(&spec).head_dim)
    };
    let absent = json!({"num_key_value_heads": "absent", "head_dim": "absent", "num_attention_heads": 32});
    assert_eq!(heads("llama", absent.clone()), (32, 2));
    assert_eq!(heads("mistral", absent.clone()), (8, 2));
    assert_eq!(heads("qwen2", absent.clone()), (32, 2));
    assert_eq!(heads("qwen3", absent), (32, 128));
    let null = json!({"num_key_value_heads": null, "head_dim": null, "num_attention_heads": 8});
    for family in ["llama", "mistral", "qwen2"] {
        assert_eq!(heads(family, null.clone()), (8, 8), "{family}");
    }
}

#[test]
fn tying_follows_the_configuration() {
    assert_eq!(spec("qwen3", json!({"tie_word_embeddings": true})).head, HeadSpec::Tied);
    assert_eq!(spec("qwen3", json!({"tie_word_embeddings": false})).head, HeadSpec::Own);
}

#[test]
fn published_extras_are_ignored() {
    spec(
        "qwen2",
        json!({"use_cache": true, "initializer_range": 0.02, "attention_dropout": 0.0, "torch_dtype": "bfloat16",
               "use_mrope": false, "pretraining_tp": 1, "sliding_window": 32768, "use_sliding_window": false,
               "architectures": ["Qwen2ForCausalLM"], "rope_scaling": null, "max_window_layers": 2}),
    );
}

#[test]
fn every_missing_structural_field_is_reported_at_once() {
    let error = resolve(&json!({"model_type": "qwen3"})).unwrap_err();
    let ConfigError::Fields { faults, .. } = error else { panic!("{error}") };
    let missing: Vec<_> = faults
        .iter()
        .map(|fault| match fault {
            FieldFault::Missing { field } => *field,
            other => panic!("{other}"),
        })
        .collect();
    for field in [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "rms_norm_eps",
        "max_position_embeddings",
    ] {
        assert!(missing.contains(&field), "{field} not in {missing:?}");
    }
    assert_eq!(missing.len(), 7);
}

#[test]
fn unusable_values_name_the_field() {
    let text = fault(
        "llama",
        json!({"hidden_act": "gelu", "hidden_size": -4, "num_attention_heads": 3, "rms_norm_eps": "small",
               "tie_word_embeddings": "no", "num_hidden_layers": 100000, "head_dim": 7.5}),
    );
    for line in [
        "the configuration of this `llama` model cannot be used:",
        "  `hidden_act` is \"gelu\", which is not supported: only \"silu\" is",
        "  `hidden_size` is -4; expected a whole number from 1 to 1048576",
        "  `num_attention_heads` is 3, which `num_key_value_heads` = 2 does not divide",
        "  `rms_norm_eps` is \"small\"; expected a number above zero",
        "  `tie_word_embeddings` is \"no\"; expected true or false",
        "  `num_hidden_layers` is 100000; expected a whole number from 1 to 4096",
        "  `head_dim` is 7.5; expected a whole number from 1 to 1048576",
    ] {
        assert!(text.lines().any(|found| found == line), "no line {line:?} in\n{text}");
    }
    assert_eq!(
        fault("qwen2", json!({"head_dim": null, "hidden_size": 66})),
        "the configuration of this `qwen2` model cannot be used: `hidden_size` is 66, which `num_attention_heads` = 4 does not divide"
    );
    assert_eq!(
        fault("qwen2", json!({"num_key_value_heads": "absent"})),
        "the configuration of this `qwen2` model cannot be used: `num_attention_heads` is 4, which `num_key_value_heads` = 32 does not divide"
    );
}

#[test]
fn zero_sizes_are_refused_before_they_divide() {
    for field in
        ["vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "num_hidden_layers"]
    {
        assert!(fault("llama", json!({field: 0})).contains(&format!("`{field}` is 0; expected")), "{field}");
    }
}

#[test]
fn other_model_types_are_refused_by_name() {
    for known in ["qwen4_exp", "qwen4_exp_text", "qwen3_vl", "mixtral"] {
        assert!(matches!(resolve(&json!({"model_type": known})), Err(ConfigError::NotYet { .. })), "{known}");
    }
    assert_eq!(
        fault("qwen4_exp", json!({})),
        "`model_type` `qwen4_exp` is not supported: hyper-connections, block-sparse attention and n-gram embeddings are not there yet"
    );
    let supported = "supported: `qwen2`, `qwen2_moe`, `qwen3`, `qwen3_moe`, `qwen3_next`, `qwen3_5`, `qwen3_5_text`, \
                     `qwen3_5_moe`, `qwen3_5_moe_text`, `llama`, `mistral`";
    let near = fault("qwn3", json!({}));
    assert!(
        near.starts_with("unknown `model_type` `qwn3`; did you mean `qwen3`") && near.ends_with(supported),
        "{near}"
    );
    assert_eq!(fault("gpt_neox", json!({})), format!("unknown `model_type` `gpt_neox`; {supported}"));
    assert_eq!(resolve(&json!({})), Err(ConfigError::NoModelType));
    assert_eq!(resolve(&json!([])), Err(ConfigError::NotAnObject));
    assert!(fault("qwen3", json!({"quantization_config": {"quant_method": "fp8"}})).contains("quantised with `fp8`"));
}

#[test]
fn attention_dropout_is_a_warning() {
    assert_eq!(warnings(&config("qwen3", &json!({"attention_dropout": 0.0}))), Vec::<String>::new());
    assert_eq!(warnings(&config("qwen3", &json!({"attention_dropout": 0.1}))).len(), 1);
}

mod any_json {
    use proptest::prelude::*;

    use super::*;

    const FIELDS: [&str; 18] = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "rms_norm_eps",
        "max_position_embeddings",
        "hidden_act",
        "tie_word_embeddings",
        "sliding_window",
        "use_sliding_window",
        "max_window_layers",
        "layer_types",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
    ];

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            prop::sample::select(vec![0, 1, 2, 3, 64, -1, 1 << 20, i64::MAX]).prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            prop::sample::select(vec!["silu", "yarn", "llama3", "linear", "dynamic", "sliding_attention"])
                .prop_map(Value::from),
        ];
        let key = prop::sample::select(vec![
            "type",
            "rope_type",
            "factor",
            "beta_fast",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
            "rope_theta",
            "truncate",
            "mscale",
            "mscale_all_dim",
        ]);
        leaf.prop_recursive(2, 8, 5, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::hash_map(key.clone().prop_map(str::to_owned), inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn resolves_or_says_why_and_never_panics(
            family in prop::sample::select(model_types().collect::<Vec<_>>()),
            changes in prop::collection::hash_map(prop::sample::select(FIELDS.to_vec()), value(), 0..4),
        ) {
            let changes = Value::Object(changes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect());
            match resolve(&config(family, &changes)) {
                Ok(spec) => prop_assert!(!crate::inventory(&spec).is_empty()),
                Err(error) => prop_assert!(!error.to_string().is_empty()),
            }
        }
    }
}

mod windows {
    use super::*;

    #[test]
    fn qwen_ignores_the_width_unless_told_to_use_it() {
        for family in ["qwen2", "qwen3"] {
            assert_eq!(windows(&spec(family, json!({"sliding_window": 8, "max_window_layers": 2}))), [None; 4]);
            let active = json!({"sliding_window": 8, "max_window_layers": 2, "use_sliding_window": true});
            assert_eq!(windows(&spec(family, active)), [None, None, Some(8), Some(8)]);
            let null = json!({"sliding_window": null, "max_window_layers": 0, "use_sliding_window": true});
            assert_eq!(windows(&spec(family, null)), [None; 4]);
            let absent = json!({"use_sliding_window": true, "max_window_layers": 3});
            assert_eq!(windows(&spec(family, absent)), [None, None, None, Some(4096)]);
            assert_eq!(windows(&spec(family, json!({"use_sliding_window": true}))), [None; 4]);
        }
    }

    #[test]
    fn qwen_follows_layer_types_verbatim() {
        let types = json!(["sliding_attention", "full_attention", "full_attention", "sliding_attention"]);
        let active = json!({"layer_types": types, "sliding_window": 8, "use_sliding_window": true});
        assert_eq!(windows(&spec("qwen3", active)), [Some(8), None, None, Some(8)]);
        assert!(fault("qwen3", json!({"layer_types": types, "sliding_window": 8})).ends_with(
            "layer 0 is `sliding_attention`, but no window is in force (`use_sliding_window`, `sliding_window`)"
        ));
        assert!(
            fault("qwen3", json!({"layer_types": ["full_attention"]}))
                .ends_with("`layer_types` has 1 entries; expected 4, one a layer")
        );
        let linear = json!(["full_attention", "linear_attention", "full_attention", "full_attention"]);
        assert!(fault("qwen2", json!({"layer_types": linear})).contains("`layer_types[1]` is \"linear_attention\""));
    }

    #[test]
    fn mistral_slides_on_every_layer() {
        assert_eq!(windows(&spec("mistral", json!({}))), [Some(4096); 4]);
        assert_eq!(windows(&spec("mistral", json!({"sliding_window": 7}))), [Some(7); 4]);
        assert_eq!(windows(&spec("mistral", json!({"sliding_window": null}))), [None; 4]);
        let types = json!(["full_attention", "full_attention", "full_attention", "full_attention"]);
        assert!(
            fault("mistral", json!({"layer_types": types, "sliding_window": 7})).contains("follow `sliding_window`")
        );
    }

    #[test]
    fn llama_never_slides() {
        assert_eq!(windows(&spec("llama", json!({"sliding_window": 8, "use_sliding_window": true}))), [None; 4]);
        let types = json!(["sliding_attention", "full_attention", "full_attention", "full_attention"]);
        assert!(fault("llama", json!({"layer_types": types})).contains("is not supported"));
    }
}
