//! The gated norm in plain tensor operations.

use burn::Tensor;
use burn::tensor::DType;
use burn::tensor::activation::silu;

use crate::rms_norm::reference::rms_norm;

/// [`crate::gated_norm`] in plain tensor operations.
pub fn gated_norm<const D: usize>(x: Tensor<D>, z: Tensor<D>, weight: Tensor<1>, eps: f64) -> Tensor<D> {
    let dtype = x.dtype();
    let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    (rms_norm(x, weight, eps, false).cast(wide) * silu(z.cast(wide))).cast(dtype)
}
