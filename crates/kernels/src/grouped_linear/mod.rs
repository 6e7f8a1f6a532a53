//! A linear map with one matrix a group of rows: the experts of a mixture, each on the tokens that were sent to it.

#[cfg(feature = "gpu")]
mod cube;
#[cfg(feature = "cpu")]
mod flex;
pub(crate) mod reference;

use std::sync::Arc;

use burn::Tensor;

use crate::{Adapter, Input, Weight};

/// How the rows of a tensor fall into groups: sorted by group, on the host, because the shapes of products depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    /// First row of each group, and behind the last group the number of rows.
    bounds: Vec<usize>,
}

impl Groups {
    /// Groups of the given numbers of rows, one directly after another; any may be empty.
    pub fn of_counts(counts: &[usize]) -> Arc<Self> {
        let mut bounds = Vec::with_capacity(counts.len() + 1);
        bounds.push(0);
        for count in counts {
            bounds.push(bounds[bounds.len() - 1] + count);
        }
        Arc::new(Self { bounds })
    }

    /// Number of groups, empty ones included.
    pub fn len(&self) -> usize {
        self.bounds.len() - 1
    }

    /// Whether there are no groups.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of rows in all.
    pub fn rows(&self) -> usize {
        self.bounds[self.len()]
    }

    /// Rows of each group.
    pub fn counts(&self) -> Vec<usize> {
        self.bounds.windows(2).map(|bounds| bounds[1] - bounds[0]).collect()
    }

    /// Group and rows of each group that has any.
    pub fn iter(&self) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> + '_ {
        self.bounds
            .windows(2)
            .enumerate()
            .map(|(group, bounds)| (group, bounds[0]..bounds[1]))
            .filter(|g| !g.1.is_empty())
    }
}

/// `y[i] = x[i]·W[g]ᵀ + scale·(drop(x[i])·A[g]ᵀ)·B[g]ᵀ`, where `g` is the group of row `i`.
///
/// `x` is `[R, in]`, `weight` `[G, out, in]`, an adapter's A `[G, r, in]` and B `[G, out, r]`; the result is `[R, out]`.
/// One product a group that has rows, and two more with an adapter: the arithmetic follows the rows. Each group's matrix
/// is read once, so many groups of a few rows are bound by memory.
///
/// Kept for backward: the weight, `drop(x)·Aᵀ`, and `x` only where the weight or A is trained and it is not formed again.
pub fn grouped_linear(
    x: impl Into<Input<2>>,
    weight: impl Into<Weight<3>>,
    groups: &Arc<Groups>,
    adapter: Option<&Adapter<3>>,
) -> Tensor<2> {
    let (x, weight) = (x.into(), weight.into());
    let ([rows, inputs], [count, outputs, weight_inputs]) = (x.tensor().dims(), weight.dims());
    assert_eq!(inputs, weight_inputs, "grouped_linear: x is [{rows}, {inputs}], a weight [{outputs}, {weight_inputs}]");
    assert!(
        groups.len() == count && groups.rows() == rows,
        "grouped_linear: {} groups of {} rows for {count} weights and {rows} rows",
        groups.len(),
        groups.rows()
    );
    if let Some(adapter) = adapter {
        let ([a_count, rank, a_inputs], [b_count, b_outputs, b_rank]) = (adapter.a.dims(), adapter.b.dims());
        assert!(
            (a_count, b_count) == (count, count) && a_inputs == inputs && b_outputs == outputs && rank == b_rank,
            "grouped_linear: adapter {:?} and {:?} on a weight {:?}",
            adapter.a.dims(),
            adapter.b.dims(),
            weight.dims()
        );
    }
    #[cfg(feature = "cpu")]
    if let Some(y) = flex::grouped_linear(&x, &weight, groups, adapter) {
        return y;
    }
    #[cfg(feature = "gpu")]
    if let Some(y) = cube::grouped_linear(&x, &weight, groups, adapter) {
        return y;
    }
    reference::grouped_linear(x.tensor(), weight, groups, adapter)
}

#[cfg(all(test, feature = "cpu"))]
mod tests;
