//! Mistral: Llama's shape without biases, and in its first version a window on every layer.

use super::{Dense, Family, Fields, HeadDefaults, heads, window};
use crate::DecoderSpec;

pub(super) struct Mistral;

impl Family for Mistral {
    fn model_types(&self) -> &'static [&'static str] {
        &["mistral"]
    }

    fn spec(&self, fields: &Fields<'_>) -> DecoderSpec {
        let defaults = HeadDefaults { kv_heads: Some(8), head_dim: None };
        Dense { attention: heads(fields, &defaults), windows: window::every_layer(fields), mlp_bias: false }
            .spec(fields)
    }
}
