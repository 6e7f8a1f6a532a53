//! Qwen3-Next and Qwen3-Coder-Next: three gated delta-rule layers to one of gated attention, experts, one of them shared.

use super::{Decoder, Family, Fields, hybrid, sparse};
use crate::{DecoderSpec, Projections};

pub(super) struct Qwen3Next;

impl Family for Qwen3Next {
    fn model_types(&self) -> &'static [&'static str] {
        &["qwen3_next"]
    }

    fn spec(&self, fields: &Fields<'_>) -> DecoderSpec {
        let experts = sparse::Experts { renormalise: sparse::Renormalise::Field(true), shared: true };
        let bias = fields.flag("attention_bias", false);
        Decoder::new(fields)
            .zero_centred()
            .mixers(hybrid::mixers(fields, Projections::Grouped, bias))
            .ffn(sparse::some_layers(fields, &experts))
            .finish()
    }
}
