//! Probabilities from scores, of the router in front of experts.

#[cfg(feature = "gpu")]
mod cube;
#[cfg(feature = "cpu")]
mod flex;
pub(crate) mod reference;

use burn::Tensor;

/// `p[i, j] = exp(x[i, j]) / Σ_l exp(x[i, l])`; `[T, E]`.
///
/// Kept for backward: the result.
pub fn softmax(x: Tensor<2>) -> Tensor<2> {
    #[cfg(feature = "cpu")]
    if let Some(p) = flex::softmax(&x) {
        return p;
    }
    #[cfg(feature = "gpu")]
    if let Some(p) = cube::softmax(&x) {
        return p;
    }
    reference::softmax(x)
}

#[cfg(all(test, feature = "cpu"))]
mod tests;
