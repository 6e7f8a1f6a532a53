//! Gradients of another micro-batch, added to those there are.

#[cfg(feature = "gpu")]
mod cube;
pub(crate) mod reference;

use burn::Tensor;

/// `sums[i] + more[i]` of flat f32 tensors, pair by pair of one length. On a GPU many pairs share a launch, and a sum lies
/// where it lay unless others share its memory.
#[must_use]
pub fn accumulate(sums: Vec<Tensor<1>>, more: Vec<Tensor<1>>) -> Vec<Tensor<1>> {
    assert_eq!(sums.len(), more.len(), "accumulate: pairs");
    for (sum, more) in sums.iter().zip(&more) {
        assert_eq!((sum.dims(), sum.dtype()), (more.dims(), more.dtype()), "accumulate: pairs of one length and type");
    }
    #[cfg(feature = "gpu")]
    let sums = match cube::accumulate(sums, &more) {
        Ok(sums) => return sums,
        Err(sums) => sums,
    };
    reference::accumulate(sums, more)
}

#[cfg(all(test, feature = "cpu"))]
mod tests;
