//! Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder: as Qwen3, with experts, none of them shared.

use super::{Decoder, Family, Fields, HeadDefaults, heads, norm, sparse, window};
use crate::{AttentionSpec, DecoderSpec};

pub(super) struct Qwen3Moe;

impl Family for Qwen3Moe {
    fn model_types(&self) -> &'static [&'static str] {
        &["qwen3_moe"]
    }

    fn spec(&self, fields: &Fields<'_>) -> DecoderSpec {
        let bias = fields.flag("attention_bias", false);
        let attention = AttentionSpec {
            qkv_bias: bias,
            output_bias: bias,
            qk_norm: Some(norm(fields)),
            ..heads(fields, &HeadDefaults { kv_heads: Some(4), head_dim: None })
        };
        let experts = sparse::Experts { renormalise: sparse::Renormalise::Field(false), shared: false };
        Decoder::new(fields)
            .attention(&attention, window::every_layer_if_asked(fields))
            .ffn(sparse::some_layers(fields, &experts))
            .finish()
    }
}
