//! A linear map with an optional low-rank adapter beside it: `y = x·Wᵀ + b + s·(drop(x)·Aᵀ)·Bᵀ`.
//!
//! The adapter is applied in its factored form (Hu et al., 2021, LoRA): neither `B·A` nor a gradient of `W`'s shape is
//! ever formed for a frozen base.

#[cfg(feature = "cpu")]
mod flex;
pub(crate) mod reference;

use burn::Tensor;

use crate::Dropout;

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

/// `y = x·Wᵀ + b + scale·(drop(x)·Aᵀ)·Bᵀ`.
///
/// `x` is `[T, in]`, `weight` `[out, in]` as in checkpoints, `bias` `[out]`; the result is `[T, out]`. An adapter of
/// another dtype is cast to that of `x`; its gradients come back in its own.
///
/// Kept for backward: `x`, `drop(x)·Aᵀ` and handles of the weights; for a frozen `weight` without an adapter, not even `x`.
/// Frozen tensors get no gradient and cost no product.
pub fn linear(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>, adapter: Option<Adapter>) -> Tensor<2> {
    let [tokens, inputs] = x.dims();
    let [outputs, weight_inputs] = weight.dims();
    assert_eq!(inputs, weight_inputs, "linear: x is [{tokens}, {inputs}], weight [{outputs}, {weight_inputs}]");
    assert_eq!(x.dtype(), weight.dtype(), "linear: x and weight must have one dtype");
    if let Some(adapter) = &adapter {
        let ([rank, a_inputs], [b_outputs, b_rank]) = (adapter.a.dims(), adapter.b.dims());
        assert!(
            a_inputs == inputs && b_outputs == outputs && rank == b_rank,
            "linear: adapter [{rank}, {a_inputs}] and [{b_outputs}, {b_rank}] on a weight [{outputs}, {inputs}]"
        );
    }
    #[cfg(feature = "cpu")]
    if let Some(y) = flex::linear(&x, &weight, bias.as_ref(), adapter.as_ref()) {
        return y;
    }
    reference::linear(x, weight, bias, adapter)
}

#[cfg(all(test, feature = "cpu"))]
mod tests;
