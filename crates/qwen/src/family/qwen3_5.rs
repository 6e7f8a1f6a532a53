//! Qwen3.5, 3.6 and 3.8, dense: three gated delta-rule layers to one of gated attention.

use super::{Decoder, Family, Fields, hybrid};
use crate::{DecoderSpec, Projections};

pub(super) struct Qwen35;

impl Family for Qwen35 {
    fn model_types(&self) -> &'static [&'static str] {
        &["qwen3_5", "qwen3_5_text"]
    }

    fn nested(&self) -> bool {
        true
    }

    fn spec(&self, fields: &Fields<'_>) -> DecoderSpec {
        let bias = fields.flag("attention_bias", false);
        Decoder::new(fields)
            .zero_centred()
            .mixers(hybrid::mixers(fields, Projections::Separate, bias))
            .dense_ffn(false)
            .finish()
    }
}
