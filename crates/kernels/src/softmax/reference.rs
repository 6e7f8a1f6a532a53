//! The probabilities in plain tensor operations.

use burn::Tensor;

/// [`crate::softmax`] in plain tensor operations.
pub fn softmax(x: Tensor<2>) -> Tensor<2> {
    burn::tensor::activation::softmax(x, 1)
}
