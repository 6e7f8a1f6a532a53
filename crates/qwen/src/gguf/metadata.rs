//! The keys that say what a model is: a file's counterpart of `config.json`.

use qwen_tune_weights::gguf::{Metadata, Value};
use serde_json::Value as Json;

use super::arch::Architecture;
use crate::{DecoderSpec, MixerSpec, RopeScaling};

/// Writes the keys of an architecture. `config` is `config.json`, for what a specification has no use for.
pub(super) fn put(metadata: &mut Metadata, architecture: &Architecture, spec: &DecoderSpec, config: &Json) {
    let mut keys = Keys { metadata, architecture: architecture.name };
    keys.size("block_count", spec.layers.len());
    keys.size("context_length", spec.max_positions);
    keys.size("embedding_length", spec.hidden_size);
    if let Some(inner) = feed_forward_length(spec, config) {
        keys.size("feed_forward_length", inner);
    }
    if let Some(attention) = spec.attention() {
        keys.size("attention.head_count", attention.heads);
        keys.size("attention.head_count_kv", attention.kv_heads);
        keys.size("attention.key_length", attention.head_dim);
        keys.size("attention.value_length", attention.head_dim);
    }
    keys.number("attention.layer_norm_rms_epsilon", spec.norm.eps);
    keys.rope(architecture, spec, config);
    keys.experts(spec);
    keys.recurrence(spec);
}

struct Keys<'a> {
    metadata: &'a mut Metadata,
    architecture: &'static str,
}

impl Keys<'_> {
    fn put(&mut self, key: &str, value: impl Into<Value>) {
        self.metadata.push(format!("{}.{key}", self.architecture), value);
    }

    fn size(&mut self, key: &str, value: usize) {
        // Sizes of configurations stay below 2^32, which is checked when they are read.
        self.put(key, u32::try_from(value).unwrap_or(u32::MAX));
    }

    fn number(&mut self, key: &str, value: f64) {
        self.put(key, value as f32);
    }

    fn rope(&mut self, architecture: &Architecture, spec: &DecoderSpec, config: &Json) {
        self.size("rope.dimension_count", spec.rope.rotary_dim);
        if let Some(default) = architecture.rope_sections {
            self.put("rope.dimension_sections", sections(config).unwrap_or(default).to_vec());
        }
        self.number("rope.freq_base", spec.rope.origin.theta);
        match spec.rope.origin.scaling {
            // Llama 3's scaling is a tensor.
            None | Some(RopeScaling::Llama3 { .. }) => {}
            Some(RopeScaling::Linear { factor }) => {
                self.put("rope.scaling.type", "linear");
                self.number("rope.scaling.factor", factor);
            }
            Some(RopeScaling::Yarn { factor, original, .. }) => {
                self.put("rope.scaling.type", "yarn");
                self.number("rope.scaling.factor", factor);
                self.size("rope.scaling.original_context_length", original);
                // llama.cpp multiplies what it computes itself by this.
                let usual = if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 };
                let further = f64::from(spec.rope.attention_factor) / usual;
                if (further - 1.0).abs() > 1e-6 {
                    self.number("rope.scaling.attn_factor", further);
                }
            }
        }
    }

    fn experts(&mut self, spec: &DecoderSpec) {
        let Some(sparse) = spec.sparse() else { return };
        self.size("expert_count", sparse.experts);
        self.size("expert_used_count", sparse.active);
        self.size("expert_feed_forward_length", sparse.inner);
        if let Some(shared) = sparse.shared {
            self.size("expert_shared_feed_forward_length", shared);
        }
    }

    fn recurrence(&mut self, spec: &DecoderSpec) {
        let Some(delta) = spec.gated_delta() else { return };
        self.size("ssm.conv_kernel", delta.kernel);
        self.size("ssm.state_size", delta.key_dim);
        self.size("ssm.group_count", delta.key_heads);
        self.size("ssm.time_step_rank", delta.value_heads);
        self.size("ssm.inner_size", delta.values());
        let recurrent: Vec<bool> =
            spec.layers.iter().map(|layer| matches!(layer.mixer, MixerSpec::GatedDelta(_))).collect();
        // For readers older than the list.
        if let Some(interval) = interval(&recurrent) {
            self.size("full_attention_interval", interval);
        }
        self.put("attention.recurrent_layers", recurrent);
    }
}

/// The n such that every n-th layer is not recurrent and all others are, if there is one.
fn interval(recurrent: &[bool]) -> Option<usize> {
    let first = recurrent.iter().position(|&recurrent| !recurrent)? + 1;
    let follows = |(layer, &recurrent): (usize, &bool)| recurrent != (layer + 1).is_multiple_of(first);
    recurrent.iter().enumerate().all(follows).then_some(first)
}

/// Of a dense model its own; of one with experts what its configuration says, which nothing reads, else an expert's.
fn feed_forward_length(spec: &DecoderSpec, config: &Json) -> Option<usize> {
    let dense = spec.dense().map(|(inner, _)| inner);
    let configured = || text(config)["intermediate_size"].as_u64().and_then(|size| usize::try_from(size).ok());
    dense.or_else(configured).or_else(|| spec.sparse().map(|sparse| sparse.inner))
}

/// `mrope_section`, filled up to four.
fn sections(config: &Json) -> Option<[i32; 4]> {
    let text = text(config);
    let listed =
        ["rope_parameters", "rope_scaling"].into_iter().find_map(|field| text[field]["mrope_section"].as_array())?;
    let mut sections = [0; 4];
    for (section, value) in sections.iter_mut().zip(listed) {
        *section = i32::try_from(value.as_i64()?).ok()?;
    }
    (listed.len() <= 4).then_some(sections)
}

/// The language model's part of a configuration.
fn text(config: &Json) -> &Json {
    if config["text_config"].is_object() { &config["text_config"] } else { config }
}
