//! Some columns of a row-major matrix: what one head reads or writes of a tensor that holds all heads of a token side by
//! side.
#![allow(unsafe_code, reason = "columns of one matrix are disjoint, but not slices that `split_at_mut` could make")]

use std::marker::PhantomData;

use burn_flex::FlexTensor;

use super::element::Element;
use super::product::{Matrix, Number};

/// Rows of `width` neighbouring elements, `stride` apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Columns<'a, E = f32> {
    data: &'a [E],
    width: usize,
    stride: usize,
}

impl<'a, E: Element> Columns<'a, E> {
    /// The tensor as a matrix: first axis by all others, which must lie densely; see [`rowwise`].
    pub(crate) fn of(tensor: &'a FlexTensor) -> Self {
        let layout = tensor.layout();
        let width = layout.shape().iter().skip(1).product();
        let stride = usize::try_from(layout.strides()[0]).expect("invariant: made rowwise");
        Self { data: &E::storage(tensor)[layout.start_offset()..], width, stride }
    }

    /// All columns of a matrix in C order.
    pub(crate) fn dense(data: &'a [E], width: usize) -> Self {
        Self { data, width, stride: width }
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Without the rows before `first`.
    pub(crate) fn rows_from(self, first: usize) -> Self {
        Self { data: self.data.get(first * self.stride..).unwrap_or_default(), ..self }
    }

    /// Part `index` of `parts` equal ones.
    pub(crate) fn part(self, index: usize, parts: usize) -> Self {
        let width = self.width / parts;
        Self { data: self.data.get(index * width..).unwrap_or_default(), width, ..self }
    }

    pub(crate) fn row(self, row: usize) -> &'a [E] {
        &self.data[row * self.stride..][..self.width]
    }
}

impl<'a, E: Number> Columns<'a, E> {
    /// The first `rows` of them.
    pub(crate) fn matrix(self, rows: usize) -> Matrix<'a> {
        Matrix::strided_in(E::elements(self.data), rows, self.width, self.stride)
    }
}

/// The tensor with every entry of its first axis dense: itself, or a copy. The entries may lie apart, as those of a
/// few heads cut out of many do.
pub(crate) fn rowwise(tensor: FlexTensor) -> FlexTensor {
    let (sizes, strides) = (tensor.layout().shape(), tensor.layout().strides());
    let mut dense = 1;
    let rowwise = strides[0] >= 0
        && (1..strides.len()).rev().all(|axis| {
            let fits = sizes[axis] == 1 || strides[axis] == dense;
            dense *= sizes[axis] as isize;
            fits
        });
    if rowwise { tensor } else { tensor.to_contiguous() }
}

/// Rows of `width` neighbouring elements, `stride` apart, to write to.
#[derive(Debug)]
pub(crate) struct ColumnsMut<'a, E = f32> {
    first: *mut E,
    rows: usize,
    width: usize,
    stride: usize,
    owner: PhantomData<&'a mut [E]>,
}

// SAFETY: it stands for elements that nothing else can reach while it lives, like a `&mut [E]`.
unsafe impl<E: Send> Send for ColumnsMut<'_, E> {}

impl<'a, E> ColumnsMut<'a, E> {
    /// `parts` equal parts of the columns of a dense matrix.
    pub(crate) fn split(matrix: &'a mut [E], rows: usize, parts: usize) -> impl Iterator<Item = Self> + use<'a, E> {
        let width = matrix.len().checked_div(rows * parts).unwrap_or(0);
        let stride = width * parts;
        assert_eq!(matrix.len(), rows * stride, "columns: equal parts");
        let first = matrix.as_mut_ptr();
        (0..parts).map(move |part| {
            // SAFETY: `part * width` is at most the length of the first row, or 0 for an empty matrix.
            let first = unsafe { first.add(part * width) };
            Self { first, rows, width, stride, owner: PhantomData }
        })
    }

    pub(crate) fn row(&mut self, row: usize) -> &mut [E] {
        assert!(row < self.rows, "columns: row {row} of {}", self.rows);
        // SAFETY: the row lies in the matrix borrowed for 'a, and no other part of `split` covers these columns; the borrow
        // of `self` keeps rows from overlapping in time.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(row * self.stride), self.width) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_a_matrix_once() {
        let mut matrix = vec![0.0; 3 * 8];
        for (index, mut part) in ColumnsMut::split(&mut matrix, 3, 4).enumerate() {
            for row in 0..3 {
                part.row(row).iter_mut().for_each(|value| *value += (10 * row + index) as f32);
            }
        }
        let expected: Vec<f32> = (0..24).map(|at| (10 * (at / 8) + at % 8 / 2) as f32).collect();
        assert_eq!(matrix, expected);
    }

    #[test]
    #[should_panic(expected = "row 3 of 3")]
    fn a_row_outside_is_refused() {
        let mut matrix = vec![0.0; 6];
        ColumnsMut::split(&mut matrix, 3, 2).for_each(|mut part| part.row(3)[0] = 1.0);
    }
}
