//! A linear layer with an optional low-rank adapter, in the checkpoint's `[out, in]` layout. The factored form is used
//! throughout: the dense `W + s B A` and its gradient never exist.

use burn::tensor::Tensor;
use qwen_tune_kernels::{self as kernels, Input};

use crate::build::mix;
use crate::parameters::{Matrix, Pass, Weight};

/// `y = x Wᵀ + b + s (x Aᵀ) Bᵀ`.
#[derive(Debug, Clone)]
pub struct Linear {
    /// Name of the weight in the inventory.
    pub name: String,
    /// `[out, in]`.
    pub weight: Matrix<2>,
    /// `[out]`.
    pub bias: Option<Weight<1>>,
    /// Takes part unless the pass turns adapters off.
    pub adapter: Option<Lora>,
}

/// An adapter pair; with three axes one for each expert.
#[derive(Debug, Clone)]
pub struct Lora<const D: usize = 2> {
    /// `[rank, in]`, or `[experts, rank, in]`.
    pub a: Weight<D>,
    /// `[out, rank]`, or `[experts, out, rank]`.
    pub b: Weight<D>,
    /// Factor on `B A x`.
    pub scale: f32,
    /// Probability that an input channel of A is dropped in training.
    pub dropout: f32,
    /// The module's own part of the dropout key.
    pub key: u64,
}

impl<const D: usize> Lora<D> {
    /// The adapter for this pass; `None` where adapters are off.
    pub(crate) fn of(adapter: Option<&Self>, pass: &Pass<'_>) -> Option<kernels::Adapter<D>> {
        let lora = adapter.filter(|_| pass.adapters)?;
        let key = pass.dropout.filter(|_| lora.dropout > 0.0);
        let a = pass.get(&lora.a);
        // The mask is that of all rows, of which this pass may see the later ones only.
        let before = (pass.first_token * a.dims()[D - 1]) as u64;
        let mask = |step| kernels::Dropout { p: lora.dropout, key: mix(step ^ lora.key) }.from_element(before);
        Some(kernels::Adapter { a, b: pass.get(&lora.b), scale: lora.scale, dropout: key.map(mask) })
    }
}

impl Linear {
    /// Whether anything in it is trained.
    #[must_use]
    pub fn is_trained(&self) -> bool {
        self.adapter.is_some() || self.weight.is_trained() || self.bias.as_ref().is_some_and(Weight::is_trained)
    }

    /// `x` `[tokens, in]` to `[tokens, out]`.
    #[must_use]
    pub fn forward(&self, x: impl Into<Input<2>>, pass: &Pass<'_>) -> Tensor<2> {
        let [y] = Self::forward_all([self], x, pass);
        y
    }

    /// Several layers on one input, which is read once.
    #[must_use]
    pub fn forward_all<const N: usize>(layers: [&Self; N], x: impl Into<Input<2>>, pass: &Pass<'_>) -> [Tensor<2>; N] {
        let x = x.into();
        pass.weigh(layers.map(|layer| &*layer.name), x.tensor());
        kernels::projections(
            x,
            layers.map(|layer| kernels::Projection {
                weight: pass.matrix(&layer.weight),
                bias: layer.bias.as_ref().map(|bias| pass.get(bias)),
                adapter: Lora::of(layer.adapter.as_ref(), pass),
            }),
        )
    }
}
