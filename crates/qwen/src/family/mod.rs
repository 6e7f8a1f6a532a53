//! From `config.json` to [`DecoderSpec`]: one small file a family, one line each in [`FAMILIES`].
//!
//! Fields a configuration leaves out get the defaults of transformers where those are harmless; a structural field that
//! is absent is an error, because a default would be some other model's size.

mod error;
mod fields;
mod hybrid;
mod llama;
mod mistral;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_5;
mod qwen3_5_moe;
mod qwen3_moe;
mod qwen3_next;
mod rope;
mod sparse;
mod window;

use serde_json::{Map, Value};

pub use error::{ConfigError, FieldFault};
use fields::Fields;

use crate::{AttentionSpec, DecoderSpec, FfnSpec, HeadSpec, LayerSpec, MixerSpec, NormSpec};

/// A family of models: what `model_type` it goes by and how its configuration reads.
pub trait Family: Sync {
    /// The values of `model_type` it answers to.
    fn model_types(&self) -> &'static [&'static str];

    /// Whether the language model's fields lie in `text_config`, below those of a model with more senses.
    fn nested(&self) -> bool {
        false
    }

    /// Reads the fields. What is wrong with them is recorded in `fields`; the result counts only if nothing is.
    fn spec(&self, fields: &Fields<'_>) -> DecoderSpec;
}

/// Every family there is.
pub static FAMILIES: &[&dyn Family] = &[
    &qwen2::Qwen2,
    &qwen2_moe::Qwen2Moe,
    &qwen3::Qwen3,
    &qwen3_moe::Qwen3Moe,
    &qwen3_next::Qwen3Next,
    &qwen3_5::Qwen35,
    &qwen3_5_moe::Qwen35Moe,
    &llama::Llama,
    &mistral::Mistral,
];

/// Kinds of model that are known and cannot be run yet.
const NOT_YET: &[(&str, &str)] = &[
    ("qwen4_exp", "hyper-connections, block-sparse attention and n-gram embeddings are not there yet"),
    ("qwen4_exp_text", "hyper-connections, block-sparse attention and n-gram embeddings are not there yet"),
    ("qwen2_vl", VISION),
    ("qwen2_5_vl", VISION),
    ("qwen3_vl", VISION),
    ("qwen3_vl_moe", VISION),
    ("mixtral", "experts of this form are not there yet"),
];
const VISION: &str = "models with a vision tower are not there yet";

/// The specification of a model from its `config.json`.
///
/// The head is as the configuration says; [`crate::ModelDir`] corrects it by what the checkpoint holds.
pub fn resolve(config: &Value) -> Result<DecoderSpec, ConfigError> {
    let Some(top) = config.as_object() else {
        return Err(ConfigError::NotAnObject);
    };
    let model_type = match top.get("model_type") {
        Some(Value::String(name)) => name.as_str(),
        _ => return Err(ConfigError::NoModelType),
    };
    let family = find(model_type)?;
    refuse_quantized(top)?;
    let nested = top.get("text_config").and_then(Value::as_object).filter(|_| family.nested());
    let fields = nested.map(|text| {
        let mut text = text.clone();
        // The whole model's own word on its head.
        if let Some(tied) = top.get("tie_word_embeddings") {
            text.insert("tie_word_embeddings".to_owned(), tied.clone());
        }
        text
    });
    let fields = Fields::new(model_type, fields.as_ref().unwrap_or(top));
    let spec = family.spec(&fields);
    fields.finish(spec)
}

/// Whether a configuration is that of a model with more senses, the language model's lying in its `text_config`.
pub(crate) fn is_nested(config: &Value) -> bool {
    let family = config.get("model_type").and_then(Value::as_str).and_then(|name| find(name).ok());
    family.is_some_and(|family| family.nested()) && config.get("text_config").is_some_and(Value::is_object)
}

/// What a configuration asks for that training here does not do, and that changes little: for people to read.
pub fn warnings(config: &Value) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(dropout) = config.get("attention_dropout").and_then(Value::as_f64)
        && dropout > 0.0
    {
        warnings.push(format!("`attention_dropout` is {dropout} in config.json; attention is not dropped out here"));
    }
    warnings
}

/// Every `model_type` that can be run.
pub fn model_types() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().flat_map(|family| family.model_types()).copied()
}

fn find(model_type: &str) -> Result<&'static dyn Family, ConfigError> {
    if let Some(family) = FAMILIES.iter().find(|family| family.model_types().contains(&model_type)) {
        return Ok(*family);
    }
    if let Some((_, reason)) = NOT_YET.iter().find(|(name, _)| *name == model_type) {
        return Err(ConfigError::NotYet { model_type: model_type.to_owned(), reason });
    }
    let known = model_types().chain(NOT_YET.iter().map(|(name, _)| *name));
    Err(ConfigError::UnknownModelType {
        model_type: model_type.to_owned(),
        near: crate::targets::nearest(model_type, known, 3),
        supported: model_types().map(str::to_owned).collect(),
    })
}

fn refuse_quantized(config: &Map<String, Value>) -> Result<(), ConfigError> {
    match config.get("quantization_config") {
        None | Some(Value::Null) => Ok(()),
        Some(settings) => Err(ConfigError::Quantized {
            method: settings.get("quant_method").and_then(Value::as_str).unwrap_or("an unnamed method").to_owned(),
        }),
    }
}

/// A specification under construction: what families share is read here, what they differ in they say.
struct Decoder<'a> {
    fields: &'a Fields<'a>,
    mixers: Vec<MixerSpec>,
    ffns: Vec<FfnSpec>,
    zero_centred: bool,
}

impl<'a> Decoder<'a> {
    fn new(fields: &'a Fields<'a>) -> Self {
        fields.expect_text("hidden_act", "silu");
        Self { fields, mixers: Vec::new(), ffns: Vec::new(), zero_centred: false }
    }

    /// Norms store their weights less one.
    fn zero_centred(self) -> Self {
        Self { zero_centred: true, ..self }
    }

    /// Softmax attention in every layer, with these windows.
    fn attention(self, attention: &AttentionSpec, windows: Vec<Option<usize>>) -> Self {
        let layer = |window| MixerSpec::Attention(AttentionSpec { window, ..attention.clone() });
        self.mixers(windows.into_iter().map(layer).collect())
    }

    fn mixers(self, mixers: Vec<MixerSpec>) -> Self {
        Self { mixers, ..self }
    }

    fn ffn(self, ffns: Vec<FfnSpec>) -> Self {
        Self { ffns, ..self }
    }

    /// The same dense part in every layer.
    fn dense_ffn(self, bias: bool) -> Self {
        let ffn = FfnSpec::Dense { inner: self.fields.size("intermediate_size"), bias };
        let layers = self.mixers.len();
        self.ffn(vec![ffn; layers])
    }

    fn finish(self) -> DecoderSpec {
        let fields = self.fields;
        let max_positions = fields.size("max_position_embeddings");
        let head_dim = self.mixers.iter().find_map(|mixer| match mixer {
            MixerSpec::Attention(attention) => Some(attention.head_dim),
            MixerSpec::GatedDelta(_) => None,
        });
        // Hybrids rotate a quarter of a head unless told otherwise; a model without attention has nothing to rotate.
        let hybrid = self.mixers.iter().any(|mixer| matches!(mixer, MixerSpec::GatedDelta(_)));
        let rotated = if hybrid { rope::Rotated::Share(0.25) } else { rope::Rotated::All };
        let layers = self.mixers.into_iter().zip(self.ffns).map(|(mixer, ffn)| LayerSpec { mixer, ffn });
        DecoderSpec {
            model_type: fields.model_type().to_owned(),
            vocab_size: fields.size("vocab_size"),
            hidden_size: fields.size("hidden_size"),
            layers: layers.collect(),
            norm: NormSpec { zero_centred: self.zero_centred, ..norm(fields) },
            rope: rope::resolve(fields, head_dim.unwrap_or(2), rotated, max_positions),
            head: if fields.flag("tie_word_embeddings", false) { HeadSpec::Tied } else { HeadSpec::Own },
            max_positions,
        }
    }
}

/// The plain norm, `w * x̂`.
fn norm(fields: &Fields<'_>) -> NormSpec {
    NormSpec { eps: fields.positive("rms_norm_eps"), zero_centred: false }
}

/// How a family counts its heads when the configuration is silent.
struct HeadDefaults {
    /// Key/value heads when the field is absent; none: as many as query heads, as also when it is null.
    kv_heads: Option<usize>,
    /// Channels of a head when the field is absent or null; none: `hidden_size / heads`.
    head_dim: Option<usize>,
}

/// Heads without biases, norms or window, which the family then sets.
fn heads(fields: &Fields<'_>, defaults: &HeadDefaults) -> AttentionSpec {
    let heads = fields.size("num_attention_heads");
    let kv_heads = match (fields.has("num_key_value_heads"), defaults.kv_heads) {
        (false, Some(default)) => default,
        _ => fields.size_or("num_key_value_heads", heads),
    };
    fields.expect_multiple(("num_attention_heads", heads), ("num_key_value_heads", kv_heads));
    let head_dim = fields.optional_size("head_dim").or(defaults.head_dim).unwrap_or_else(|| {
        let hidden = fields.size("hidden_size");
        fields.expect_multiple(("hidden_size", hidden), ("num_attention_heads", heads));
        hidden / heads
    });
    AttentionSpec {
        heads,
        kv_heads,
        head_dim,
        qkv_bias: false,
        output_bias: false,
        qk_norm: None,
        window: None,
        output_gate: false,
    }
}

#[cfg(test)]
mod tests;
