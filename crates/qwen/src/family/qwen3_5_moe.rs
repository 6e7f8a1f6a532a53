//! Qwen3.5, 3.6 and 3.8 with experts: every layer is sparse, its chosen probabilities always renormalised.

use super::{Decoder, Family, Fields, hybrid, sparse};
use crate::{DecoderSpec, Projections};

pub(super) struct Qwen35Moe;

impl Family for Qwen35Moe {
    fn model_types(&self) -> &'static [&'static str] {
        &["qwen3_5_moe", "qwen3_5_moe_text"]
    }

    fn nested(&self) -> bool {
        true
    }

    fn spec(&self, fields: &Fields<'_>) -> DecoderSpec {
        let experts = sparse::Experts { renormalise: sparse::Renormalise::Always, shared: true };
        let bias = fields.flag("attention_bias", false);
        Decoder::new(fields)
            .zero_centred()
            .mixers(hybrid::mixers(fields, Projections::Separate, bias))
            .ffn(sparse::every_layer(fields, &experts))
            .finish()
    }
}
