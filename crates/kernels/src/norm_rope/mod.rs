//! The norm of each head and its rotary embedding in one: queries and keys of Qwen3 and later.

#[cfg(feature = "gpu")]
mod cube;
#[cfg(feature = "cpu")]
mod flex;
pub(crate) mod reference;

use burn::Tensor;

use crate::Input;

/// [`crate::rms_norm`] of every head vector, then [`crate::rope`] of it.
///
/// `x` is `[T, heads, d]`, `weight` `[d]`, `cos` and `sin` `[T, r/2]` with `r` at most `d`. The angles are constants: they get
/// no gradient. Computed in f32; for a narrower dtype the CPU form rounds once, behind the rotation.
///
/// Kept for backward: `x`, and one number a head vector; handles of `weight` and angles.
pub fn norm_rope(
    x: Tensor<3>,
    weight: Tensor<1>,
    cos: Tensor<2>,
    sin: Tensor<2>,
    eps: f64,
    zero_centred: bool,
) -> Tensor<3> {
    Input::norm_rope(x, weight, cos, sin, eps, zero_centred).into_tensor()
}

impl Input<3> {
    /// [`norm_rope`].
    pub fn norm_rope(
        x: Tensor<3>,
        weight: Tensor<1>,
        cos: Tensor<2>,
        sin: Tensor<2>,
        eps: f64,
        zero_centred: bool,
    ) -> Self {
        let ([tokens, heads, size], [channels], [rows, half]) = (x.dims(), weight.dims(), cos.dims());
        assert_eq!(size, channels, "norm_rope: the heads of {:?} must have the size of the weight", x.dims());
        assert!(
            rows == tokens && 2 * half <= size && sin.dims() == [rows, half],
            "norm_rope: x is [{tokens}, {heads}, {size}], cos [{rows}, {half}], sin {:?}",
            sin.dims()
        );
        assert!(!cos.is_tracked() && !sin.is_tracked(), "norm_rope: angles are constants");
        #[cfg(feature = "cpu")]
        if let Some(y) = flex::norm_rope(&x, &weight, [&cos, &sin], eps, zero_centred) {
            return y;
        }
        #[cfg(feature = "gpu")]
        if let Some(y) = cube::norm_rope(&x, &weight, [&cos, &sin], eps, zero_centred) {
            let (x, weight) = (x.inner(), weight.inner());
            return Self::formed_as(y, move || cube::norm_rope(&x, &weight, [&cos, &sin], eps, zero_centred));
        }
        reference::norm_rope(x, weight, cos, sin, eps, zero_centred).into()
    }
}

#[cfg(all(test, feature = "cpu"))]
mod tests;
