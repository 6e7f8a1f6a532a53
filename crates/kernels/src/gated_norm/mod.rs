//! The norm behind linear attention: normalised, then gated.

#[cfg(feature = "gpu")]
mod cube;
#[cfg(feature = "cpu")]
mod flex;
pub(crate) mod reference;

use burn::Tensor;

use crate::Input;

/// `y = w ⊙ x·rsqrt(mean(x²) + eps) ⊙ silu(z)` over the last axis, whose size `weight` has: the norm first, the gate after.
///
/// `x` and `z` have one shape, `[T, H, d]` for the heads of Gated DeltaNet (Yang, Kautz and Hatamizadeh, 2024). Computed in
/// f32. For a narrower dtype the CPU form rounds once, at the end, and the weight may be f32; the reference rounds the normed
/// value before the weight and the gate are applied, as transformers does.
///
/// Kept for backward: `x`, `z` and one number a row.
pub fn gated_norm<const D: usize>(x: Tensor<D>, z: Tensor<D>, weight: Tensor<1>, eps: f64) -> Tensor<D> {
    Input::gated_norm(x, z, weight, eps).into_tensor()
}

impl<const D: usize> Input<D> {
    /// [`gated_norm`].
    pub fn gated_norm(x: Tensor<D>, z: Tensor<D>, weight: Tensor<1>, eps: f64) -> Self {
        let (dims, [size]) = (x.dims(), weight.dims());
        assert_eq!(dims, z.dims(), "gated_norm: x and z must have one shape");
        assert_eq!(dims[D - 1], size, "gated_norm: the last axis of {dims:?} must have the size of the weight");
        #[cfg(feature = "cpu")]
        if let Some(y) = flex::gated_norm(&x, &z, &weight, eps) {
            return y;
        }
        #[cfg(feature = "gpu")]
        if let Some(y) = cube::gated_norm(&x, &z, &weight, eps) {
            let (x, z, weight) = (x.inner(), z.inner(), weight.inner());
            return Self::formed_as(y, move || cube::gated_norm(&x, &z, &weight, eps));
        }
        reference::gated_norm(x, z, weight, eps).into()
    }
}

#[cfg(all(test, feature = "cpu"))]
mod tests;
