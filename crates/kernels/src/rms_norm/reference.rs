//! The norm in plain tensor operations.

use burn::Tensor;
use burn::tensor::DType;

/// [`crate::rms_norm`] in plain tensor operations.
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, eps: f64, zero_centred: bool) -> Tensor<D> {
    let dtype = x.dtype();
    let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let x = x.cast(wide);
    let mean = x.clone().square().mean_dim(D - 1);
    let normed = x * (mean + eps).sqrt().recip();
    if zero_centred {
        (normed * (weight.cast(wide) + 1.0).unsqueeze()).cast(dtype)
    } else {
        normed.cast(dtype) * weight.cast(dtype).unsqueeze()
    }
}
