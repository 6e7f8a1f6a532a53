//! The start of a backward sweep from inside a model.

#[cfg(feature = "gpu")]
mod cube;
#[cfg(feature = "cpu")]
mod flex;
pub(crate) mod reference;

use burn::Tensor;

/// A number whose gradient with respect to `y` is `gradient`, `[1]`; what number it is does not matter.
///
/// `seed(y, g).backward()` sweeps from `y` with exactly `g` coming from above. `gradient` is a plain tensor of the shape
/// and dtype of `y`; it is handed on, not copied.
pub fn seed<const D: usize>(y: Tensor<D>, gradient: Tensor<D>) -> Tensor<1> {
    assert_eq!(y.dims(), gradient.dims(), "seed: a gradient has the shape of its tensor");
    #[cfg(feature = "cpu")]
    if let Some(number) = flex::seed(&y, &gradient) {
        return number;
    }
    #[cfg(feature = "gpu")]
    if let Some(number) = cube::seed(&y, &gradient) {
        return number;
    }
    reference::seed(y, gradient)
}

#[cfg(all(test, feature = "cpu"))]
mod tests;
