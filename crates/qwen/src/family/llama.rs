//! Llama 2 and 3, and the many models of their shape: biases where `attention_bias` and `mlp_bias` ask for them.

use super::{Decoder, Family, Fields, HeadDefaults, heads, window};
use crate::{AttentionSpec, DecoderSpec};

pub(super) struct Llama;

impl Family for Llama {
    fn model_types(&self) -> &'static [&'static str] {
        &["llama"]
    }

    fn spec(&self, fields: &Fields<'_>) -> DecoderSpec {
        let defaults = HeadDefaults { kv_heads: None, head_dim: None };
        let bias = fields.flag("attention_bias", false);
        let attention = AttentionSpec { qkv_bias: bias, output_bias: bias, ..heads(fields, &defaults) };
        Decoder::new(fields)
            .attention(&attention, window::none(fields))
            .dense_ffn(fields.flag("mlp_bias", false))
            .finish()
    }
}
