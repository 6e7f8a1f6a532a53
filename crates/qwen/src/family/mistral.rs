//! Mistral: Llama's shape without biases, and in its first version a window on every layer.

use super::{Decoder, Family, Fields, HeadDefaults, heads, window};
use crate::DecoderSpec;

pub(super) struct Mistral;

impl Family for Mistral {
    fn model_types(&self) -> &'static [&'static str] {
        &["mistral"]
    }

    fn spec(&self, fields: &Fields<'_>) -> DecoderSpec {
        let defaults = HeadDefaults { kv_heads: Some(8), head_dim: None };
        Decoder::new(fields).attention(&heads(fields, &defaults), window::every_layer(fields)).dense_ffn(false).finish()
    }
}
