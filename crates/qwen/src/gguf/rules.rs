//! [`Rule`]: what has to be true of a model so that a GGUF file says all of it.

use crate::{AttentionSpec, DecoderSpec, FfnSpec, MixerSpec, RopeScaling};

/// What a model has that a file has no way to say, if it does.
pub(super) type Rule = fn(&DecoderSpec) -> Option<String>;

/// llama.cpp's constants.
const BETA_FAST: f64 = 32.0;
const BETA_SLOW: f64 = 1.0;

pub(super) fn some_attention(spec: &DecoderSpec) -> Option<String> {
    spec.attention().is_none().then(|| "no layer with attention".to_owned())
}

/// Sizes are given once for all layers.
pub(super) fn uniform(spec: &DecoderSpec) -> Option<String> {
    let windowless = |attention: &AttentionSpec| AttentionSpec { window: None, ..attention.clone() };
    let first = spec.attention().map(windowless);
    let alike = spec.layers.iter().all(|layer| {
        let mixer = match &layer.mixer {
            MixerSpec::Attention(attention) => Some(windowless(attention)) == first,
            MixerSpec::GatedDelta(delta) => Some(delta) == spec.gated_delta(),
        };
        let ffn = match &layer.ffn {
            FfnSpec::Dense { inner, bias } => Some((*inner, *bias)) == spec.dense(),
            FfnSpec::Sparse(sparse) => Some(sparse) == spec.sparse(),
        };
        mixer && ffn
    });
    (!alike).then(|| "layers of different sizes".to_owned())
}

pub(super) fn heads_make_up_hidden(spec: &DecoderSpec) -> Option<String> {
    let AttentionSpec { heads, head_dim, .. } = spec.attention()?;
    let hidden = spec.hidden_size;
    (heads * head_dim != hidden)
        .then(|| format!("{heads} heads of {head_dim} channels, which do not make up the hidden size of {hidden}"))
}

/// Biases on q, k and v are optional everywhere, all others only with llama.
pub(super) fn few_biases(spec: &DecoderSpec) -> Option<String> {
    if spec.attention().is_some_and(|attention| attention.output_bias) {
        return Some("a bias on `o_proj`".to_owned());
    }
    spec.dense().is_some_and(|(_, bias)| bias).then(|| "biases in the feed-forward part".to_owned())
}

pub(super) fn all_sparse(spec: &DecoderSpec) -> Option<String> {
    let is_dense = |layer: usize| matches!(spec.layers[layer].ffn, FfnSpec::Dense { .. });
    let dense: Vec<String> =
        (0..spec.layers.len()).filter(|&layer| is_dense(layer)).map(|layer| layer.to_string()).collect();
    (!dense.is_empty()).then(|| format!("layers without experts ({})", dense.join(", ")))
}

pub(super) fn plain_probabilities(spec: &DecoderSpec) -> Option<String> {
    spec.sparse()?.renormalise.then(|| "expert probabilities that are renormalised (`norm_topk_prob`)".to_owned())
}

pub(super) fn renormalised(spec: &DecoderSpec) -> Option<String> {
    (!spec.sparse()?.renormalise)
        .then(|| "expert probabilities that are not renormalised (`norm_topk_prob`)".to_owned())
}

pub(super) fn square_states(spec: &DecoderSpec) -> Option<String> {
    let delta = spec.gated_delta()?;
    let (keys, values) = (delta.key_dim, delta.value_dim);
    (keys != values)
        .then(|| format!("key heads of {keys} channels and value heads of {values} in its linear attention"))
}

pub(super) fn plain_yarn(spec: &DecoderSpec) -> Option<String> {
    match spec.rope.origin.scaling? {
        RopeScaling::Yarn { truncate: false, .. } => Some("YaRN with `truncate` off".to_owned()),
        RopeScaling::Yarn { beta_fast, beta_slow, .. } if (beta_fast, beta_slow) != (BETA_FAST, BETA_SLOW) => {
            Some(format!("YaRN with a `beta_fast` of {beta_fast} and a `beta_slow` of {beta_slow}"))
        }
        _ => None,
    }
}

pub(super) fn no_wave_scaling(spec: &DecoderSpec) -> Option<String> {
    let scaled = matches!(spec.rope.origin.scaling, Some(RopeScaling::Llama3 { .. }));
    scaled.then(|| "rotary frequencies scaled by wave length (`llama3`)".to_owned())
}

/// For people: a window that llama.cpp does not keep to.
pub(super) fn window(spec: &DecoderSpec) -> Option<String> {
    let window = spec.layers.iter().find_map(|layer| match &layer.mixer {
        MixerSpec::Attention(attention) => attention.window,
        MixerSpec::GatedDelta(_) => None,
    })?;
    (window < spec.max_positions).then(|| {
        format!("the model attends within a window of {window} tokens; llama.cpp lets it see all of a longer text")
    })
}
