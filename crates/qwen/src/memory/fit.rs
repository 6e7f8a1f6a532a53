//! What fits on a card: the longest row that a model can be trained on there.

use super::{Extent, FEWEST_CHUNK_TOKENS, Formats, Forms, Kept, Learned, MemoryInput, Offload, WeightBytes, plan};
use crate::{DecoderSpec, TensorSpec};

/// Share of a card that a plan may fill; the rest is the driver's, the screen's and what allocators cannot join.
const SHARE: f64 = 0.95;
/// The runtime's context and the kernels' code.
pub const DEVICE_PROGRAM: u64 = 512 << 20;

/// Bytes that a run may take of a card with so much memory.
pub fn usable(card: u64) -> u64 {
    ((card as f64 * SHARE) as u64).saturating_sub(DEVICE_PROGRAM)
}

/// A model trained one row a step, every block run again in the backward, its feed-forward part in the smallest chunks: the way
/// that takes least.
#[derive(Debug, Clone, Copy)]
pub struct OneRow<'a> {
    /// The model.
    pub spec: &'a DecoderSpec,
    /// Its tensors.
    pub inventory: &'a [TensorSpec],
    /// What is trained.
    pub learned: &'a Learned,
    /// Bytes of the frozen weights.
    pub weights: &'a WeightBytes,
    /// Bytes of an activation.
    pub activation_bytes: u64,
    /// Rows of logits that exist at a time.
    pub head_rows: u64,
    /// What waits in host memory.
    pub offload: Offload,
}

impl OneRow<'_> {
    /// Bytes on the device with a row of so many tokens.
    pub fn bytes(&self, tokens: u64) -> u64 {
        let Self { spec, inventory, learned, weights, activation_bytes, head_rows, offload } = *self;
        let input = MemoryInput {
            spec,
            inventory,
            learned,
            formats: Formats::default(),
            weights,
            activation_bytes,
            batch: Extent::of([tokens as usize]),
            accumulates: true,
            kept: Kept { layers: 0 },
            ffn_chunk: Some(FEWEST_CHUNK_TOKENS),
            head_tokens: tokens,
            head_rows,
            forms: Forms::Gpu,
            eval: Extent::default(),
            update_in_place: true,
            offload,
        };
        plan(&input).total()
    }

    /// Tokens of the longest row within a budget, up to `most`; 0 if none fits.
    pub fn longest(&self, budget: u64, most: u64) -> u64 {
        let (mut fits, mut too_long) = (0, most + 1);
        while too_long - fits > 1 {
            let middle = fits.midpoint(too_long);
            if self.bytes(middle) <= budget {
                fits = middle;
            } else {
                too_long = middle;
            }
        }
        fits
    }
}
