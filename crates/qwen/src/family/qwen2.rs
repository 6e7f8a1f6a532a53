//! Qwen2, Qwen2.5, QwQ, Qwen2.5-Coder: biases on q, k, v; no norms on heads.

use super::{Decoder, Family, Fields, HeadDefaults, heads, window};
use crate::{AttentionSpec, DecoderSpec};

pub(super) struct Qwen2;

impl Family for Qwen2 {
    fn model_types(&self) -> &'static [&'static str] {
        &["qwen2"]
    }

    fn spec(&self, fields: &Fields<'_>) -> DecoderSpec {
        let defaults = HeadDefaults { kv_heads: Some(32), head_dim: None };
        let attention = AttentionSpec { qkv_bias: true, ..heads(fields, &defaults) };
        Decoder::new(fields).attention(&attention, window::upper_layers(fields)).dense_ffn(false).finish()
    }
}
