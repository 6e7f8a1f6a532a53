//! Linear maps with an optional low-rank adapter beside each: `y = x·Wᵀ + b + s·(drop(x)·Aᵀ)·Bᵀ`.
//!
//! The adapter is applied in its factored form (Hu et al., 2021, LoRA): neither `B·A` nor a gradient of `W`'s shape is
//! ever formed for a frozen base.

#[cfg(feature = "cpu")]
mod backward;
#[cfg(feature = "gpu")]
mod cube;
#[cfg(feature = "cpu")]
mod fan_out;
#[cfg(feature = "cpu")]
mod flex;
pub(crate) mod reference;

use burn::Tensor;

use crate::{Dropout, Input, Weight};

/// A low-rank adapter of a linear map, or with three axes of one map a group.
#[derive(Clone, Debug)]
pub struct Adapter<const D: usize = 2> {
    /// Down projection `[r, in]`, or `[groups, r, in]`.
    pub a: Tensor<D>,
    /// Up projection `[out, r]`, or `[groups, out, r]`.
    pub b: Tensor<D>,
    /// Factor of the adapter's output: `alpha/r`, or `alpha/√r` for rank-stabilised adapters.
    pub scale: f32,
    /// Dropout on the adapter's input; the base always sees all of `x`.
    pub dropout: Option<Dropout>,
}

/// One linear map.
#[derive(Clone, Debug)]
pub struct Projection {
    /// `[out, in]`, as in checkpoints.
    pub weight: Weight<2>,
    /// `[out]`.
    pub bias: Option<Tensor<1>>,
    /// `None` for the base alone.
    pub adapter: Option<Adapter>,
}

/// `y_i = x·W_iᵀ + b_i + s_i·(drop_i(x)·A_iᵀ)·B_iᵀ` for several maps of one input, which is read once for all of them.
///
/// `x` is `[T, in]`, each result `[T, out_i]` in the dtype of `x`; the outputs' terms are summed in f32 and rounded once.
/// Weights, biases and adapters may have another dtype: they are multiplied in that of `x`, and their gradients come back in
/// their own.
///
/// Kept for backward: `x` unless it is formed again, `drop(x)·Aᵀ` in f32, and handles of the weights; for a frozen `weight`
/// without an adapter, not even `x`. Frozen tensors get no gradient and cost no product; of a weight in blocks nothing dense
/// is kept.
pub fn projections<const N: usize>(x: impl Into<Input<2>>, maps: [Projection; N]) -> [Tensor<2>; N] {
    let x = x.into();
    let [tokens, inputs] = x.tensor().dims();
    for Projection { weight, bias, adapter } in &maps {
        let [outputs, weight_inputs] = weight.dims();
        assert_eq!(inputs, weight_inputs, "linear: x is [{tokens}, {inputs}], weight [{outputs}, {weight_inputs}]");
        if let Some(bias) = bias {
            assert_eq!(bias.dims(), [outputs], "linear: a bias for {outputs} outputs");
        }
        if let Some(adapter) = adapter {
            let ([rank, a_inputs], [b_outputs, b_rank]) = (adapter.a.dims(), adapter.b.dims());
            assert!(
                a_inputs == inputs && b_outputs == outputs && rank == b_rank,
                "linear: adapter [{rank}, {a_inputs}] and [{b_outputs}, {b_rank}] on a weight [{outputs}, {inputs}]"
            );
        }
    }
    #[cfg(feature = "cpu")]
    if let Some(outputs) = flex::projections(&x, &maps) {
        return outputs;
    }
    #[cfg(feature = "gpu")]
    if let Some(outputs) = cube::projections(&x, &maps) {
        return outputs;
    }
    let x = x.into_tensor();
    maps.map(|map| reference::linear(x.clone(), map.weight, map.bias, map.adapter))
}

/// One map; see [`projections`].
pub fn linear(
    x: impl Into<Input<2>>,
    weight: impl Into<Weight<2>>,
    bias: Option<Tensor<1>>,
    adapter: Option<Adapter>,
) -> Tensor<2> {
    let [y] = projections(x, [Projection { weight: weight.into(), bias, adapter }]);
    y
}

#[cfg(all(test, feature = "cpu"))]
mod tests;
