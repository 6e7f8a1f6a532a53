//! The start of a sweep in plain tensor operations.

use burn::Tensor;
use burn::tensor::DType;

/// [`crate::seed`] in plain tensor operations: `Σ y·g`.
pub fn seed<const D: usize>(y: Tensor<D>, gradient: Tensor<D>) -> Tensor<1> {
    let gradient = if gradient.device() == y.device() { gradient } else { gradient.autodiff() };
    (y * gradient).cast(DType::F32).sum()
}
