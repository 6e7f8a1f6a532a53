//! Every field and form of `config.json` that the families read, family by family: one long list of cases over one
//! small configuration, kept together because each case is a change to it.
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

use serde_json::{Value, json};

use super::*;
use crate::RopeSpec;

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

mod rope {
    use std::f64::consts::PI;

    use super::*;

    fn rope(head_dim: usize, positions: usize, changes: Value) -> RopeSpec {
        let mut all = json!({"head_dim": head_dim, "max_position_embeddings": positions});
        all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        spec("qwen3", all).rope
    }

    /// First, second, quarter, half, three quarters, last.
    fn picked(rope: &RopeSpec) -> [f32; 6] {
        let count = rope.inv_freq.len();
        [0, 1, count / 4, count / 2, count * 3 / 4, count - 1].map(|index| rope.inv_freq[index])
    }

    #[track_caller]
    fn assert_near(found: &[f32], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
            let error = (f64::from(*found) - expected).abs() / expected;
            assert!(error < 5e-7, "frequency {index}: {found:e}, expected {expected:e}");
        }
    }

    /// The plain frequencies as powers of e, in f64.
    fn plain(theta: f64, dim: usize) -> Vec<f64> {
        (0..dim / 2).map(|pair| (-(2.0 * pair as f64 / dim as f64) * theta.ln()).exp()).collect()
    }

    #[test]
    fn plain_frequencies() {
        let found = rope(128, 40960, json!({"rope_theta": 1000000}));
        assert_near(&found.inv_freq, &plain(1e6, 128));
        // As transformers 5.23 prints them.
        assert_near(
            &picked(&found),
            &[1.0, 8.058422208e-1, 3.162277862e-2, 1.000000047e-3, 3.162277426e-5, 1.240937763e-6],
        );
        assert_eq!((found.rotary_dim, found.attention_factor, found.scaling.as_str()), (128, 1.0, "default"));
        assert_near(&rope(16, 64, json!({})).inv_freq, &plain(10_000.0, 16));
    }

    #[test]
    fn linear_divides_every_frequency() {
        let found = rope(64, 2048, json!({"rope_scaling": {"type": "linear", "factor": 4.0}}));
        let expected: Vec<f64> = plain(1e4, 64).into_iter().map(|frequency| frequency / 4.0).collect();
        assert_near(&found.inv_freq, &expected);
        assert_eq!(found.scaling, "linear");
    }

    #[test]
    fn dynamic_is_plain_within_the_models_length() {
        let found = rope(64, 2048, json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}));
        assert_eq!(found.inv_freq, rope(64, 2048, json!({})).inv_freq);
        assert_eq!(found.scaling, "dynamic");
    }

    /// YaRN by turns: channels that turn more than `fast` times over the original length are kept, those below `slow`
    /// stretched, with a ramp over channel numbers between.
    fn yarn(theta: f64, dim: usize, factor: f64, original: f64, (fast, slow): (f64, f64), truncate: bool) -> Vec<f64> {
        let frequencies = plain(theta, dim);
        // The channel number, as a real number, at which a wave fits n times: theta^(-2c/dim) * original = 2 pi n.
        let channel = |turns: f64| -(2.0 * PI * turns / original).ln() / theta.ln() * dim as f64 / 2.0;
        let (low, high) = (channel(fast), channel(slow));
        let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
        let (low, high) = (low.max(0.0), high.min(dim as f64 - 1.0));
        let weigh = |pair: usize, frequency: f64| {
            let stretched = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
            frequency * (1.0 - stretched) + frequency / factor * stretched
        };
        frequencies.into_iter().enumerate().map(|(pair, frequency)| weigh(pair, frequency)).collect()
    }

    #[test]
    fn yarn_of_the_long_context_releases() {
        let old = json!({"rope_theta": 1000000.0,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}});
        let found = rope(128, 40960, old);
        assert_near(&found.inv_freq, &yarn(1e6, 128, 4.0, 32768.0, (32.0, 1.0), true));
        // As transformers 5.23 prints them.
        assert_near(
            &picked(&found),
            &[1.0, 8.058422208e-1, 3.162277862e-2, 6.029411452e-4, 7.905693565e-6, 3.102344408e-7],
        );
        assert_eq!(found.attention_factor, 1.138_629_4);
        assert_eq!(found.scaling, "yarn");
        let new = json!({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 4.0,
            "original_max_position_embeddings": 32768}});
        assert_eq!(rope(128, 40960, new), found);
    }

    #[test]
    fn yarn_with_every_option() {
        let found = rope(
            64,
            8192,
            json!({"rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 1024,
                "truncate": false, "beta_fast": 16.0, "beta_slow": 2.0, "mscale": 0.707, "mscale_all_dim": 1.2}}),
        );
        assert_near(&found.inv_freq, &yarn(1e4, 64, 8.0, 1024.0, (16.0, 2.0), false));
        assert_near(
            &picked(&found),
            &[1.0, 7.498942018e-1, 1.000000015e-1, 1.249999972e-3, 1.250000059e-4, 1.666901881e-5],
        );
        assert_near(&[found.attention_factor], &[(0.0707 * 8f64.ln() + 1.0) / (0.12 * 8f64.ln() + 1.0)]);
    }

    #[test]
    fn yarn_takes_a_null_factor_from_the_lengths() {
        let found = rope(
            32,
            8192,
            json!({"rope_scaling": {"rope_type": "yarn", "factor": null, "original_max_position_embeddings": 1024,
                "attention_factor": 1.5}}),
        );
        assert_near(&found.inv_freq, &yarn(1e4, 32, 8.0, 1024.0, (32.0, 1.0), true));
        assert_near(
            &picked(&found),
            &[1.0, 5.623413324e-1, 7.500000298e-2, 2.499999944e-3, 1.250000059e-4, 2.222849253e-5],
        );
        assert_eq!(found.attention_factor, 1.5);
    }

    #[test]
    fn llama3_keeps_short_waves_and_stretches_long_ones() {
        let scaling = |factor: f64| {
            json!({"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": factor,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}})
        };
        // By turns over the original length: more than 4 keep, fewer than 1 stretch, linear in turns between.
        let expected = |dim: usize, factor: f64| -> Vec<f64> {
            let bend = |frequency: f64| {
                let turns = 8192.0 * frequency / (2.0 * PI);
                let kept = ((turns - 1.0) / 3.0).clamp(0.0, 1.0);
                frequency * kept + frequency / factor * (1.0 - kept)
            };
            plain(5e5, dim).into_iter().map(bend).collect()
        };
        let found = rope(128, 131072, scaling(8.0));
        assert_near(&found.inv_freq, &expected(128, 8.0));
        // As transformers 5.23 prints them.
        assert_near(
            &picked(&found),
            &[1.0, 8.146172166e-1, 3.760603070e-2, 5.248460220e-4, 6.647869668e-6, 3.068925878e-7],
        );
        let found = rope(64, 131072, scaling(32.0));
        assert_near(&found.inv_freq, &expected(64, 32.0));
        assert_near(
            &picked(&found),
            &[1.0, 6.636012793e-1, 3.760603070e-2, 4.295567051e-4, 1.661967417e-6, 9.418306490e-8],
        );
        assert_eq!((found.attention_factor, found.scaling.as_str()), (1.0, "llama3"));
    }

    #[test]
    fn the_old_form_wins_over_the_new_one() {
        let changes = json!({
            "rope_theta": 100.0,
            "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 50.0},
            "rope_scaling": {"type": "linear", "factor": 4.0},
        });
        let found = rope(16, 64, changes);
        let expected: Vec<f64> = plain(100.0, 16).into_iter().map(|frequency| frequency / 4.0).collect();
        assert_near(&found.inv_freq, &expected);
    }

    #[test]
    fn null_and_empty_forms_are_absent() {
        let plain_spec = rope(16, 64, json!({"rope_theta": 50.0}));
        for changes in [
            json!({"rope_scaling": null, "rope_parameters": {"rope_type": "default", "rope_theta": 50.0}, "rope_theta": 9.0}),
            json!({"rope_scaling": {}, "rope_parameters": {"rope_theta": 50.0}}),
            json!({"rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}, "rope_theta": 50}),
            json!({"rope_parameters": {"rope_type": "default", "type": "yarn", "rope_theta": 50.0, "partial_rotary_factor": 1.0}}),
        ] {
            assert_eq!(rope(16, 64, changes), plain_spec);
        }
    }

    #[test]
    fn original_length_defaults_to_the_models_and_the_top_level_wins() {
        let scaling = |extra: Value| {
            let mut all = json!({"rope_type": "yarn", "factor": 4.0});
            all.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            json!({"rope_scaling": all})
        };
        assert_near(&rope(32, 4096, scaling(json!({}))).inv_freq, &yarn(1e4, 32, 4.0, 4096.0, (32.0, 1.0), true));
        let mut both = scaling(json!({"original_max_position_embeddings": 512}));
        both["original_max_position_embeddings"] = json!(1024);
        assert_near(&rope(32, 4096, both).inv_freq, &yarn(1e4, 32, 4.0, 1024.0, (32.0, 1.0), true));
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        let fault = |changes| super::fault("qwen3", changes);
        for (changes, part) in [
            (
                json!({"rope_scaling": {"type": "longrope", "factor": 4.0}}),
                "`rope_scaling.type` is \"longrope\", which is not supported: supported: `default`",
            ),
            (
                json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}}),
                "one rotary embedding for all layers is",
            ),
            (json!({"partial_rotary_factor": 0.5}), "`partial_rotary_factor` is 0.5, which is not supported"),
            (
                json!({"rope_parameters": {"partial_rotary_factor": 0.25}}),
                "`rope_parameters.partial_rotary_factor` is 0.25",
            ),
            (
                json!({"rope_scaling": {"type": "linear"}}),
                "`rope_scaling.factor` is null; expected a number above zero",
            ),
            (json!({"rope_scaling": {"type": "yarn"}}), "`rope_scaling.factor` is null; expected a number above zero"),
            (json!({"rope_scaling": {"type": "llama3", "factor": 8}}), "`rope_scaling.low_freq_factor` is null"),
            (
                json!({"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}}),
                "`rope_scaling.high_freq_factor` is 4; expected a number above `low_freq_factor`",
            ),
            (json!({"rope_scaling": "yarn"}), "`rope_scaling` is \"yarn\"; expected an object"),
            (json!({"rope_theta": 0}), "`rope_theta` is 0; expected a number above 1"),
            (json!({"head_dim": 15}), "`head_dim` is 15, which is not supported: rotating pairs"),
        ] {
            let text = fault(changes);
            assert!(text.contains(part), "no {part:?} in {text:?}");
        }
    }
}

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
