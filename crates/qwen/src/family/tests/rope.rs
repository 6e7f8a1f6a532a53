//! Every form in which rotary embeddings are written, against the formulas in f64.

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
        (json!({"rope_scaling": {"type": "linear"}}), "`rope_scaling.factor` is null; expected a number above zero"),
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
