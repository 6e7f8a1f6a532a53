//! The gated activation in plain tensor operations.

use burn::Tensor;
use burn::tensor::activation::silu;

/// [`crate::swiglu`] in plain tensor operations.
pub fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    silu(gate) * up
}
