//! Qwen3, dense: norms on query and key heads; biases only where `attention_bias` asks for them.

use super::{Decoder, Family, Fields, HeadDefaults, heads, norm, window};
use crate::{AttentionSpec, DecoderSpec};

pub(super) struct Qwen3;

impl Family for Qwen3 {
    fn model_types(&self) -> &'static [&'static str] {
        &["qwen3"]
    }

    fn spec(&self, fields: &Fields<'_>) -> DecoderSpec {
        let defaults = HeadDefaults { kv_heads: Some(32), head_dim: Some(128) };
        let bias = fields.flag("attention_bias", false);
        let attention = AttentionSpec {
            qkv_bias: bias,
            output_bias: bias,
            qk_norm: Some(norm(fields)),
            ..heads(fields, &defaults)
        };
        Decoder::new(fields).attention(&attention, window::upper_layers(fields)).dense_ffn(false).finish()
    }
}
