//! [`Architecture`]: the kinds of model a GGUF file can be of, and what a file of each kind has no way to say.
//!
//! A file names its architecture and leaves out whatever llama.cpp takes for granted there. A model of which something
//! else is true would load and compute other numbers, so it is refused.

use super::GgufError;
use super::rules::{self, Rule};
use crate::DecoderSpec;

/// A value of `general.architecture`.
#[derive(Debug)]
pub struct Architecture {
    /// The value.
    pub name: &'static str,
    /// The values of `model_type` that go by it; a model read from a file gets the first.
    pub model_types: &'static [&'static str],
    /// The class of transformers, for a model read from a file.
    pub(super) class: &'static str,
    /// Fields of a configuration that llama.cpp takes for granted.
    pub(super) settings: &'static [(&'static str, bool)],
    /// Which channels of a head turn together.
    pub(super) rotation: Rotation,
    /// Where value heads of linear attention lie.
    pub(super) value_heads: ValueHeads,
    /// Tensors called otherwise than in [`super::names::TENSORS`].
    pub(super) renamed: &'static [(&'static str, &'static str)],
    /// A tied head has to be written out.
    pub(super) needs_output: bool,
    /// Splits of the rotated channels that a file has to give, where a configuration gives none.
    pub(super) rope_sections: Option<[i32; 4]>,
    /// Whether `rope_freqs.weight` is looked at.
    pub(super) rope_factors: bool,
    /// Whether a model is the one of 70 billion parameters for whose values llama.cpp keeps more bits.
    pub(super) seventy_billion: fn(&DecoderSpec) -> bool,
    /// What has to be true of a model.
    pub(super) rules: &'static [Rule],
}

/// Which channels of a head turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rotation {
    /// One of the first half and one of the second, as in checkpoints.
    Halves,
    /// Neighbours: rows of queries and keys are reordered.
    Neighbours,
}

/// How value heads of linear attention follow on each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ValueHeads {
    /// Those of one key head together, as in checkpoints.
    Grouped,
    /// The first of every key head, then the second of every one.
    Dealt,
}

const PLAIN: Architecture = Architecture {
    name: "",
    model_types: &[],
    class: "",
    settings: &[],
    rotation: Rotation::Halves,
    value_heads: ValueHeads::Grouped,
    renamed: &[],
    needs_output: false,
    rope_sections: None,
    rope_factors: false,
    seventy_billion: |_| false,
    rules: &[],
};

const RENORMALISED: &[(&str, bool)] = &[("norm_topk_prob", true)];

/// What hybrids call the second norm.
const HYBRID_NAMES: &[(&str, &str)] = &[("ffn_norm.weight", "post_attention_norm.weight")];

/// Every architecture there is.
pub static ARCHITECTURES: &[Architecture] = &[
    Architecture {
        name: "qwen2",
        model_types: &["qwen2"],
        class: "Qwen2ForCausalLM",
        seventy_billion: |spec| spec.layers.len() == 80,
        rules: &[rules::heads_make_up_hidden, rules::few_biases],
        ..PLAIN
    },
    Architecture {
        name: "qwen2moe",
        model_types: &["qwen2_moe"],
        class: "Qwen2MoeForCausalLM",
        settings: &[("norm_topk_prob", false)],
        needs_output: true,
        rules: &[rules::heads_make_up_hidden, rules::few_biases, rules::all_sparse, rules::plain_probabilities],
        ..PLAIN
    },
    Architecture {
        name: "qwen3",
        model_types: &["qwen3"],
        class: "Qwen3ForCausalLM",
        rules: &[rules::few_biases],
        ..PLAIN
    },
    Architecture {
        name: "qwen3moe",
        model_types: &["qwen3_moe"],
        class: "Qwen3MoeForCausalLM",
        settings: RENORMALISED,
        rules: &[rules::few_biases, rules::all_sparse, rules::renormalised],
        ..PLAIN
    },
    Architecture {
        name: "qwen3next",
        model_types: &["qwen3_next"],
        class: "Qwen3NextForCausalLM",
        settings: RENORMALISED,
        renamed: HYBRID_NAMES,
        rules: &[rules::few_biases, rules::all_sparse, rules::renormalised, rules::square_states],
        ..PLAIN
    },
    Architecture {
        name: "qwen35",
        model_types: &["qwen3_5_text", "qwen3_5"],
        class: "Qwen3_5ForCausalLM",
        value_heads: ValueHeads::Dealt,
        renamed: HYBRID_NAMES,
        rope_sections: Some([11, 11, 10, 0]),
        rules: &[rules::few_biases, rules::square_states],
        ..PLAIN
    },
    Architecture {
        name: "qwen35moe",
        model_types: &["qwen3_5_moe_text", "qwen3_5_moe"],
        class: "Qwen3_5MoeForCausalLM",
        settings: RENORMALISED,
        value_heads: ValueHeads::Dealt,
        renamed: HYBRID_NAMES,
        rope_sections: Some([11, 11, 10, 0]),
        rules: &[rules::few_biases, rules::all_sparse, rules::renormalised, rules::square_states],
        ..PLAIN
    },
    Architecture {
        name: "llama",
        model_types: &["llama", "mistral"],
        class: "LlamaForCausalLM",
        rotation: Rotation::Neighbours,
        rope_factors: true,
        seventy_billion: |spec| spec.layers.len() == 80 && spec.attention().is_some_and(|a| a.heads != a.kv_heads),
        ..PLAIN
    },
];

/// What is true of every architecture.
const EVERYWHERE: &[Rule] = &[rules::some_attention, rules::uniform, rules::plain_yarn];

impl Architecture {
    /// The architecture of this name in a file.
    pub fn named(name: &str) -> Option<&'static Self> {
        ARCHITECTURES.iter().find(|architecture| architecture.name == name)
    }

    /// The architecture that says all of a model; everything that none of it says is reported.
    pub fn of(spec: &DecoderSpec) -> Result<&'static Self, Vec<GgufError>> {
        let Some(found) = ARCHITECTURES.iter().find(|a| a.model_types.contains(&spec.model_type.as_str())) else {
            return Err(vec![GgufError::NoArchitecture { model_type: spec.model_type.clone() }]);
        };
        let mut said: Vec<String> = EVERYWHERE.iter().chain(found.rules).filter_map(|rule| rule(spec)).collect();
        if !found.rope_factors {
            said.extend(rules::no_wave_scaling(spec));
        }
        if said.is_empty() {
            return Ok(found);
        }
        Err(said.into_iter().map(|what| GgufError::Inexpressible { architecture: found.name, what }).collect())
    }
}

/// What llama.cpp does otherwise with any file, and that changes little or nothing: for people to read.
pub fn warnings(spec: &DecoderSpec) -> Vec<String> {
    rules::window(spec).into_iter().collect()
}
