//! Qwen2, Qwen2.5, QwQ, Qwen2.5-Coder: biases on q, k, v; no norms on heads.

use super::{Dense, Family, Fields, HeadDefaults, heads, window};
use crate::{AttentionSpec, DecoderSpec};

pub(super) struct Qwen2;

impl Family for Qwen2 {
    fn model_types(&self) -> &'static [&'static str] {
        &["qwen2"]
    }

    fn spec(&self, fields: &Fields<'_>) -> DecoderSpec {
        let defaults = HeadDefaults { kv_heads: Some(32), head_dim: None };
        Dense {
            attention: AttentionSpec { qkv_bias: true, ..heads(fields, &defaults) },
            windows: window::upper_layers(fields),
            mlp_bias: false,
        }
        .spec(fields)
    }
}
