//! Operations a token.

use std::collections::BTreeSet;

use super::{Kept, Learned, head_parameters, is_head, product_numbers, product_parameters};
use crate::{DecoderSpec, LayerSpec, MixerSpec, TensorSpec};

/// What the count of operations depends on.
#[derive(Debug, Clone, Copy)]
pub struct FlopInput<'a> {
    /// The model.
    pub spec: &'a DecoderSpec,
    /// Its tensors.
    pub inventory: &'a [TensorSpec],
    /// What is trained.
    pub learned: &'a Learned,
    /// Mean length of a sequence as its tokens see it, `E[n²] / E[n]`; of equal lengths, the length.
    pub context: f64,
    /// Layers whose activations are kept.
    pub kept: Kept,
}

/// Operations for one token, a multiplication and an addition counting two.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Flops {
    /// The forward pass.
    pub forward: f64,
    /// Gradients of inputs, adapters and trained weights.
    pub backward: f64,
    /// Layers that are run again.
    pub recompute: f64,
}

impl Flops {
    /// What the mathematics needs: model FLOPs, of which utilisation is a fraction.
    pub fn model(&self) -> f64 {
        self.forward + self.backward
    }

    /// What is executed.
    pub fn total(&self) -> f64 {
        self.model() + self.recompute
    }
}

/// Operations that training takes for each token.
pub fn flops(input: &FlopInput<'_>) -> Flops {
    let products = product_parameters(input.spec, input.inventory) as f64;
    let head = head_parameters(input.spec) as f64;
    let adapters = input.learned.adapter_products(input.spec, input.inventory) as f64;
    let (Learned::Adapters { whole: names, .. } | Learned::Base(names)) = input.learned;
    let trained_base = trained_products(input, names) as f64;
    let attention: f64 = input.spec.layers.iter().map(|layer| mixing_flops(layer, input.context)).sum();
    let layers = input.spec.layers.len().max(1) as f64;
    let again = (layers - input.kept.layers as f64).max(0.0) / layers;
    Flops {
        forward: 2.0 * products + 2.0 * adapters + attention,
        backward: 2.0 * products + 2.0 * trained_base + 4.0 * adapters + 2.0 * attention,
        recompute: again * (2.0 * (products - head) + 2.0 * adapters + attention),
    }
}

/// Scores and weighted sums: four operations a channel for each key seen, half of the sequence on average. Of the delta
/// rule what its recurrence needs: the state decayed, read twice and written once.
fn mixing_flops(layer: &LayerSpec, context: f64) -> f64 {
    let attention = match &layer.mixer {
        MixerSpec::Attention(attention) => attention,
        MixerSpec::GatedDelta(spec) => {
            let state = (spec.value_heads * spec.key_dim * spec.value_dim) as f64;
            return 7.0 * state + 2.0 * (spec.kernel * spec.convolved()) as f64;
        }
    };
    let seen = match attention.window {
        Some(window) if (window as f64) < context => {
            let window = window as f64;
            window - window * window / (2.0 * context)
        }
        _ => context / 2.0,
    };
    4.0 * (attention.heads * attention.head_dim) as f64 * seen
}

/// Numbers of the matrices among these tensors: each costs a product more in the backward.
fn trained_products(input: &FlopInput<'_>, names: &BTreeSet<String>) -> u64 {
    let numbers = |tensor: &TensorSpec| {
        if is_head(input.spec, tensor) { tensor.elements() } else { product_numbers(input.spec, tensor) }
    };
    input.inventory.iter().filter(|tensor| names.contains(&tensor.name)).map(numbers).sum()
}
