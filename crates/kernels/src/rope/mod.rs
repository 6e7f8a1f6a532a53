//! Rotary position embedding (Su et al., 2021) in the half-split convention.

#[cfg(feature = "gpu")]
pub(crate) mod cube;
#[cfg(feature = "cpu")]
mod flex;
pub(crate) mod reference;

use burn::Tensor;

/// Rotates the first `r` channels of every head by the angles of its token; the other `d - r` pass through.
///
/// `x` is `[T, heads, d]`, `cos` and `sin` `[T, r/2]`. With `u1`, `u2` the halves of the first `r` channels:
/// `[u1·cos - u2·sin, u2·cos + u1·sin]`. The angles are constants: they get no gradient.
///
/// Kept for backward: the angles only, since a rotation is undone by the opposite rotation.
pub fn rope(x: Tensor<3>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<3> {
    let ([tokens, heads, size], [rows, half]) = (x.dims(), cos.dims());
    assert!(
        rows == tokens && 2 * half <= size && sin.dims() == [rows, half],
        "rope: x is [{tokens}, {heads}, {size}], cos [{rows}, {half}], sin {:?}",
        sin.dims()
    );
    assert!(!cos.is_tracked() && !sin.is_tracked(), "rope: angles are constants");
    #[cfg(feature = "cpu")]
    if let Some(y) = flex::rope(&x, &cos, &sin) {
        return y;
    }
    #[cfg(feature = "gpu")]
    if let Some(y) = cube::rope(&x, &cos, &sin) {
        return y;
    }
    reference::rope(x, cos, sin)
}

#[cfg(all(test, feature = "cpu"))]
mod tests;
