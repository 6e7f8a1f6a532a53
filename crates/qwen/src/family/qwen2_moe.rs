//! Qwen1.5-MoE and Qwen2-57B-A14B: as Qwen2, with experts, one of them shared.

use super::{Decoder, Family, Fields, HeadDefaults, heads, sparse, window};
use crate::{AttentionSpec, DecoderSpec};

pub(super) struct Qwen2Moe;

impl Family for Qwen2Moe {
    fn model_types(&self) -> &'static [&'static str] {
        &["qwen2_moe"]
    }

    fn spec(&self, fields: &Fields<'_>) -> DecoderSpec {
        let defaults = HeadDefaults { kv_heads: Some(16), head_dim: None };
        let attention = AttentionSpec { qkv_bias: fields.flag("qkv_bias", true), ..heads(fields, &defaults) };
        let experts = sparse::Experts { renormalise: sparse::Renormalise::Field(false), shared: true };
        Decoder::new(fields)
            .attention(&attention, window::odd_lower_layers(fields))
            .ffn(sparse::some_layers(fields, &experts))
            .finish()
    }
}
