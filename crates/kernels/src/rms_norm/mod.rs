//! Root-mean-square normalisation (Zhang and Sennrich, 2019) over the last axis.

#[cfg(feature = "gpu")]
pub(crate) mod cube;
#[cfg(feature = "cpu")]
pub(crate) mod flex;
pub(crate) mod reference;

use burn::Tensor;

use crate::Input;

/// `y = w ⊙ x·rsqrt(mean(x²) + eps)`, or with `zero_centred` `y = (1 + w) ⊙ x·rsqrt(mean(x²) + eps)`.
///
/// The mean runs over the last axis, whose size `weight` has. Computed in f32. For a narrower dtype the CPU form rounds
/// once, at the end, and the weight may be f32; the reference rounds the plain form before the weight is applied and the
/// zero-centred one after it, as transformers does.
///
/// Kept for backward: `x` and one number a row.
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, eps: f64, zero_centred: bool) -> Tensor<D> {
    Input::rms_norm(x, weight, eps, zero_centred).into_tensor()
}

impl<const D: usize> Input<D> {
    /// [`rms_norm`].
    pub fn rms_norm(x: Tensor<D>, weight: Tensor<1>, eps: f64, zero_centred: bool) -> Self {
        let (dims, [size]) = (x.dims(), weight.dims());
        assert_eq!(dims[D - 1], size, "rms_norm: the last axis of {dims:?} must have the size of the weight");
        #[cfg(feature = "cpu")]
        if let Some(y) = flex::rms_norm(&x, &weight, eps, zero_centred) {
            return y;
        }
        #[cfg(feature = "gpu")]
        if let Some(y) = cube::rms_norm(&x, &weight, eps, zero_centred) {
            let (x, weight) = (x.inner(), weight.inner());
            return Self::formed_as(y, move || cube::rms_norm(&x, &weight, eps, zero_centred));
        }
        reference::rms_norm(x, weight, eps, zero_centred).into()
    }
}

#[cfg(all(test, feature = "cpu"))]
mod tests;
