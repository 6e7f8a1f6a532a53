//! Norm and rotation in plain tensor operations.

use burn::Tensor;

use crate::rms_norm::reference::rms_norm;
use crate::rope::reference::rope;

/// [`crate::norm_rope`] in plain tensor operations.
pub fn norm_rope(
    x: Tensor<3>,
    weight: Tensor<1>,
    cos: Tensor<2>,
    sin: Tensor<2>,
    eps: f64,
    zero_centred: bool,
) -> Tensor<3> {
    rope(rms_norm(x, weight, eps, zero_centred), cos, sin)
}
