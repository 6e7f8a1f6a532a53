//! The gate in plain tensor operations.

use burn::Tensor;
use burn::tensor::activation::sigmoid;

/// [`crate::sigmoid_gate`] in plain tensor operations.
pub fn sigmoid_gate<const D: usize>(x: Tensor<D>, gate: Tensor<D>) -> Tensor<D> {
    x * sigmoid(gate)
}
