//! Tokens to the rows of experts and back: what a mixture of experts does around its products.

#[cfg(feature = "gpu")]
mod cube;
#[cfg(feature = "cpu")]
mod flex;
pub(crate) mod reference;

use std::sync::Arc;

use burn::Tensor;

/// Which row of the experts' input belongs to which choice of a token: every token makes as many choices, every choice has
/// a row. Kept on the host, which sorted them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routes {
    active: usize,
    row_of_choice: Vec<usize>,
    choice_of_row: Vec<usize>,
}

impl Routes {
    /// `row_of_choice` holds the row of choice `j` of token `t` at `t·active + j`.
    ///
    /// # Panics
    /// If the rows are not a permutation, or the choices not whole tokens.
    #[must_use]
    pub fn new(row_of_choice: Vec<usize>, active: usize) -> Arc<Self> {
        assert!(active > 0 && row_of_choice.len().is_multiple_of(active), "routes: {active} choices a token");
        let mut choice_of_row = vec![usize::MAX; row_of_choice.len()];
        for (choice, &row) in row_of_choice.iter().enumerate() {
            assert_eq!(choice_of_row[row], usize::MAX, "routes: row {row} belongs to two choices");
            choice_of_row[row] = choice;
        }
        Arc::new(Self { active, row_of_choice, choice_of_row })
    }

    /// Tokens.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.row_of_choice.len() / self.active
    }

    /// Rows of all experts together.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.row_of_choice.len()
    }

    /// Rows of a token's choices.
    #[cfg(feature = "cpu")]
    fn rows_of(&self, token: usize) -> &[usize] {
        &self.row_of_choice[token * self.active..][..self.active]
    }
}

/// The token of each row: `[T, D]` to `[R, D]`, in `x`'s dtype.
///
/// Kept for backward: nothing but the routes.
pub fn spread(x: Tensor<2>, routes: &Arc<Routes>) -> Tensor<2> {
    assert_eq!(x.dims()[0], routes.tokens(), "spread: x is {:?}", x.dims());
    #[cfg(feature = "cpu")]
    if let Some(rows) = flex::spread(&x, routes) {
        return rows;
    }
    #[cfg(feature = "gpu")]
    if let Some(rows) = cube::spread(&x, routes) {
        return rows;
    }
    reference::spread(x, routes)
}

/// `y[t] = Σ_j weights[t, j]·rows[row of choice j]`: `[R, D]` to `[T, D]`, in the dtype of `rows`.
///
/// `weights` is `[T, k]` and may be f32 beside narrower rows. Kept for backward: `rows` and `weights`.
pub fn combine(rows: Tensor<2>, weights: Tensor<2>, routes: &Arc<Routes>) -> Tensor<2> {
    assert!(
        rows.dims()[0] == routes.rows() && weights.dims() == [routes.tokens(), routes.active],
        "combine: rows are {:?}, weights {:?}",
        rows.dims(),
        weights.dims()
    );
    #[cfg(feature = "cpu")]
    if let Some(y) = flex::combine(&rows, &weights, routes) {
        return y;
    }
    #[cfg(feature = "gpu")]
    if let Some(y) = cube::combine(&rows, &weights, routes) {
        return y;
    }
    reference::combine(rows, weights, routes)
}

#[cfg(all(test, feature = "cpu"))]
mod tests;
