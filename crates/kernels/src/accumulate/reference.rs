//! The sums in plain tensor operations.

use burn::Tensor;

/// [`crate::accumulate`] in plain tensor operations.
#[must_use]
pub fn accumulate(sums: Vec<Tensor<1>>, more: Vec<Tensor<1>>) -> Vec<Tensor<1>> {
    sums.into_iter().zip(more).map(|(sum, more)| sum + more).collect()
}
