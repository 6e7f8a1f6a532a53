//! The gated activation in plain tensor operations.

use burn::Tensor;
use burn::tensor::activation::silu;

/// [`crate::swiglu`] in plain tensor operations.
pub fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    silu(gate) * up
}

/// [`crate::swiglu_joined`] in plain tensor operations.
pub fn swiglu_joined(both: Tensor<2>) -> Tensor<2> {
    let width = both.dims()[1] / 2;
    swiglu(both.clone().narrow(1, 0, width), both.narrow(1, width, width))
}
