//! [`config`]: the `config.json` that a GGUF file's keys amount to, to be read like any other.

use std::path::Path;

use qwen_tune_weights::gguf::{GgufFile, Value};
use serde_json::{Map, Value as Json, json};

use crate::gguf::arch::Architecture;
use crate::gguf::{GgufError, layout, names};
use crate::{DecoderSpec, family};

/// Fields that are a key's number as it is. What a family needs and a file lacks is reported when the fields are read.
const SIZES: &[(&str, &str)] = &[
    ("hidden_size", "embedding_length"),
    ("intermediate_size", "feed_forward_length"),
    ("max_position_embeddings", "context_length"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("num_experts", "expert_count"),
    ("num_experts_per_tok", "expert_used_count"),
    ("moe_intermediate_size", "expert_feed_forward_length"),
    ("shared_expert_intermediate_size", "expert_shared_feed_forward_length"),
    ("linear_conv_kernel_dim", "ssm.conv_kernel"),
    ("linear_key_head_dim", "ssm.state_size"),
    ("linear_num_key_heads", "ssm.group_count"),
    ("linear_num_value_heads", "ssm.time_step_rank"),
];

/// Fields that say whether there are tensors with one of these ends.
const PRESENT: &[(&str, &[&str])] = &[
    ("attention_bias", &[".attn_q.bias", ".attn_qkv.bias"]),
    ("qkv_bias", &[".attn_q.bias", ".attn_qkv.bias"]),
    ("mlp_bias", &[".ffn_gate.bias"]),
];

/// Keys that every file has.
const REQUIRED: [&str; 4] = ["block_count", "context_length", "embedding_length", "attention.layer_norm_rms_epsilon"];

/// llama.cpp's base of rotary frequencies where a file gives none.
const FREQ_BASE: f32 = 10_000.0;
/// Lengths that a model of Llama 3's kind can have been trained at first: the one in use comes first.
const ORIGINAL_LENGTHS: [u64; 13] = [8192, 64, 128, 256, 512, 1024, 2048, 4096, 16384, 32768, 65536, 131_072, 262_144];

/// The configuration and what it means.
pub(super) fn config(
    file: &GgufFile,
    architecture: &Architecture,
    eos: &[u32],
) -> Result<(Json, DecoderSpec), Vec<GgufError>> {
    let keys = Keys { file, architecture: architecture.name };
    let mut faults = Vec::new();
    for key in REQUIRED {
        if keys.get(key).is_none() {
            faults.push(keys.absent(key));
        }
    }
    let mut fields = Map::new();
    for (field, key) in SIZES {
        match keys.size(key) {
            Ok(Some(size)) => drop(fields.insert((*field).to_owned(), size.into())),
            Ok(None) => {}
            Err(fault) => faults.push(fault),
        }
    }
    let layers = layers(&keys).unwrap_or_else(|fault| {
        faults.push(fault);
        0
    });
    if !faults.is_empty() {
        return Err(faults);
    }
    for (field, ends) in PRESENT {
        let is_there = file.tensors().iter().any(|tensor| ends.iter().any(|end| tensor.name.ends_with(end)));
        fields.insert((*field).to_owned(), is_there.into());
    }
    for (field, value) in architecture.settings {
        fields.insert((*field).to_owned(), (*value).into());
    }
    let tied = file.tensor(names::OUTPUT).is_none();
    let more = json!({
        "architectures": [architecture.class],
        "model_type": architecture.model_types[0],
        "num_hidden_layers": layers,
        "vocab_size": vocabulary(file),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon").map(f64::from),
        "rope_parameters": rope(&keys),
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        "eos_token_id": match eos { [] => Json::Null, [one] => json!(one), several => json!(several) },
    });
    fields.extend(more.as_object().cloned().unwrap_or_default());
    recurrence(&keys, layers, &mut fields);
    let resolve = |fields: &Map<String, Json>| {
        family::resolve(&Json::Object(fields.clone()))
            .map_err(|source| vec![GgufError::Config { path: file.path().to_owned(), source }])
    };
    let spec = resolve(&fields)?;
    if let Some(factors) = architecture.rope_factors.then(|| file.tensor(names::ROPE_FACTORS)).flatten() {
        let factors = file.read_f32(&factors.name).map_err(|error| vec![error.into()])?;
        return wave_scaling(file.path(), architecture, fields, &factors);
    }
    Ok((Json::Object(fields), spec))
}

/// Keys of the file's architecture.
struct Keys<'a> {
    file: &'a GgufFile,
    architecture: &'static str,
}

impl Keys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.file.metadata().get(&self.name(key))
    }

    fn number(&self, key: &str) -> Option<f32> {
        self.get(key)?.as_f32()
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }

    fn absent(&self, key: &str) -> GgufError {
        GgufError::NoKey { path: self.file.path().to_owned(), key: self.name(key) }
    }

    /// A whole number; a list of one number for each layer counts if all are the same.
    fn size(&self, key: &str) -> Result<Option<u64>, GgufError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let listed = || {
            let list = value.as_array()?.to_u64s()?;
            let (first, rest) = list.split_first()?;
            rest.iter().all(|size| size == first).then_some(*first)
        };
        value.as_u64().or_else(listed).map(Some).ok_or_else(|| GgufError::WrongKey {
            path: self.file.path().to_owned(),
            key: self.name(key),
            found: shown(value),
            expected: "a whole number, the same in all layers".to_owned(),
        })
    }
}

/// A value for people, cut where it is long.
fn shown(value: &Value) -> String {
    let text = match value {
        Value::Array(array) => format!("{} values", array.len()),
        Value::String(text) => format!("`{text}`"),
        value => value.as_i64().map(|number| number.to_string()).unwrap_or_else(|| format!("{value:?}")),
    };
    text.chars().take(60).collect()
}

/// Layers of the model itself: predictors of further tokens, which come behind them, are not run.
fn layers(keys: &Keys<'_>) -> Result<u64, GgufError> {
    let blocks = keys.size("block_count")?.unwrap_or(0);
    Ok(blocks.saturating_sub(keys.size("nextn_predict_layers")?.unwrap_or(0)))
}

/// Rows of the embedding, which the list of tokens has to match.
fn vocabulary(file: &GgufFile) -> usize {
    let rows = file.tensor(names::TOKEN_EMBEDDING).and_then(|tensor| tensor.shape.first().copied());
    rows.unwrap_or_default()
}

fn rope(keys: &Keys<'_>) -> Json {
    let mut fields = Map::new();
    let mut put = |field: &str, value: Json| drop(fields.insert(field.to_owned(), value));
    put("rope_theta", keys.number("rope.freq_base").unwrap_or(FREQ_BASE).into());
    let kind = keys.text("rope.scaling.type").filter(|kind| *kind != "none");
    let factor = keys.number("rope.scaling.factor").filter(|factor| *factor != 0.0);
    // Without a factor a kind changes nothing.
    match kind.zip(factor) {
        None => put("rope_type", "default".into()),
        Some((kind, factor)) => {
            put("rope_type", kind.into());
            put("factor", factor.into());
            if kind == "yarn" {
                if let Some(original) = keys.get("rope.scaling.original_context_length").and_then(Value::as_u64) {
                    put("original_max_position_embeddings", original.into());
                }
                let further = keys.number("rope.scaling.attn_factor").unwrap_or(1.0);
                let usual = if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 };
                if further != 1.0 {
                    put("attention_factor", (further * usual).into());
                }
            }
        }
    }
    if let Some(sections) = keys.get("rope.dimension_sections").and_then(|value| value.as_array()?.to_i64s()) {
        let used: Vec<i64> = sections.into_iter().filter(|&section| section > 0).collect();
        put("mrope_section", used.into());
    }
    let rotated = keys.get("rope.dimension_count").and_then(Value::as_u64);
    let heads = keys.get("attention.key_length").and_then(Value::as_u64);
    if let (Some(rotated), Some(heads)) = (rotated, heads)
        && rotated < heads
    {
        put("partial_rotary_factor", (rotated as f64 / heads as f64).into());
    }
    Json::Object(fields)
}

/// Which layers are recurrent, and what their value heads are.
fn recurrence(keys: &Keys<'_>, layers: u64, fields: &mut Map<String, Json>) {
    let size = |key: &str| keys.get(key).and_then(Value::as_u64);
    let Some((inner, heads)) = size("ssm.inner_size").zip(size("ssm.time_step_rank").filter(|&heads| heads > 0)) else {
        return;
    };
    fields.insert("linear_value_head_dim".to_owned(), (inner / heads).into());
    let listed = keys.get("attention.recurrent_layers").and_then(|value| value.as_array()?.as_bools());
    let interval = size("full_attention_interval").filter(|&interval| interval > 0).unwrap_or(4);
    let recurrent = |layer: u64| match listed.and_then(|list| list.get(usize::try_from(layer).ok()?)) {
        Some(listed) => *listed,
        None => !(layer + 1).is_multiple_of(interval),
    };
    // Sizes are checked when the fields are read; no list is made that a size made up.
    let kind = |layer| if recurrent(layer) { "linear_attention" } else { "full_attention" };
    let kinds: Vec<&str> = (0..layers.min(1 << 12)).map(kind).collect();
    fields.insert("layer_types".to_owned(), kinds.into());
}

/// Files hold the factors of Llama 3's scaling, not the four numbers they come from; those of the form in use are tried.
fn wave_scaling(
    path: &Path,
    architecture: &Architecture,
    mut fields: Map<String, Json>,
    factors: &[f32],
) -> Result<(Json, DecoderSpec), Vec<GgufError>> {
    let factor = factors.iter().copied().fold(1.0, f32::max);
    for original in ORIGINAL_LENGTHS {
        let theta = fields["rope_parameters"]["rope_theta"].clone();
        let scaled = json!({ "rope_type": "llama3", "rope_theta": theta, "factor": factor, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": original });
        fields.insert("rope_parameters".to_owned(), scaled);
        let config = Json::Object(fields.clone());
        let Ok(spec) = family::resolve(&config) else { continue };
        let same = |one: &[f32]| {
            one.len() == factors.len() && one.iter().zip(factors).all(|(one, other)| (one - other).abs() < 1e-4 * other)
        };
        if layout::rope_factors(architecture, &spec).as_deref().is_some_and(same) {
            return Ok((config, spec));
        }
    }
    Err(vec![GgufError::WrongFactors { path: path.to_owned(), tensor: names::ROPE_FACTORS }])
}
