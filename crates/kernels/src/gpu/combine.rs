//! What lies behind the products of a linear map: their sum, a bias and a low-rank update, in one pass over the output.

use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::tensor::{elem, elementwise, empty, vector_size};

/// Rows of the output a unit computes for its columns, so that it reads a column of `right` once for all of them.
const UNIT_ROWS: usize = 4;

/// `scale·left·right`, with `left` `[T, r]` and `right` `[r, O]` of the output's type, in C order.
#[derive(Clone, Debug)]
pub(crate) struct LowRank {
    pub(crate) left: CubeTensor,
    /// First column of `left` and the number of columns it is made of: all of `right`'s rows.
    pub(crate) column: usize,
    pub(crate) right: CubeTensor,
    pub(crate) scale: f32,
}

/// `Σ terms + bias + update`, in f32 and rounded once; one to three terms, `[T, O]` in C order, of the result's type.
///
/// Bytes: the terms in, the result out; `2·r` operations an element: bound by memory up to a rank of about 32, at which a
/// product and a sum of its own would move twice the bytes.
pub(crate) fn combine(terms: &[CubeTensor], bias: Option<&CubeTensor>, update: Option<&LowRank>) -> CubeTensor {
    assert!((1..=3).contains(&terms.len()), "invariant: one to three terms");
    let first = &terms[0];
    let [rows, columns] = [first.meta.shape()[0], first.meta.shape()[1]];
    let y = empty(first, [rows, columns], first.dtype);
    let vector = vector_size(first, &[first.dtype], &[columns]);
    let width = columns / vector;
    let units = rows.div_ceil(UNIT_ROWS) * width;
    if units == 0 {
        return y;
    }
    let (rank, stride) = update.map_or((0, 0), |update| (update.right.meta.shape()[0], update.left.meta.shape()[1]));
    let (left, right) = update.map_or((first, first), |update| (&update.left, &update.right));
    let (column, scale) = update.map_or((0, 0.0), |update| (update.column, update.scale));
    let (count, dim) = elementwise(first, units);
    // SAFETY: the kernel ends beyond the last columns and does not write rows beyond `rows`.
    #[expect(unsafe_code, reason = "a launch without checks of every index")]
    unsafe {
        combine_terms::launch_unchecked(
            &first.client,
            count,
            dim,
            vector,
            first.clone().into_buffer_arg(),
            terms.get(1).unwrap_or(first).clone().into_buffer_arg(),
            terms.get(2).unwrap_or(first).clone().into_buffer_arg(),
            bias.unwrap_or(first).clone().into_buffer_arg(),
            left.clone().into_buffer_arg(),
            right.clone().into_buffer_arg(),
            y.clone().into_buffer_arg(),
            rows,
            width,
            rank,
            stride,
            column,
            scale,
            terms.len(),
            bias.is_some(),
            UNIT_ROWS,
            elem(first.dtype),
        );
    }
    y
}

#[cube(launch_unchecked)]
fn combine_terms<E: Float, N: Size>(
    one: &[Vector<E, N>],
    two: &[Vector<E, N>],
    three: &[Vector<E, N>],
    bias: &[Vector<E, N>],
    left: &[E],
    right: &[Vector<E, N>],
    y: &mut [Vector<E, N>],
    rows: usize,
    width: usize,
    rank: usize,
    stride: usize,
    column: usize,
    scale: f32,
    #[comptime] terms: usize,
    #[comptime] has_bias: bool,
    #[comptime] unit_rows: usize,
    #[define(E)] _dtype: ElemType,
) {
    let block = ABSOLUTE_POS / width;
    let at = ABSOLUTE_POS - block * width;
    let first = block * unit_rows;
    if first >= rows {
        terminate!();
    }
    let mut updates = Array::<Vector<f32, N>>::new(unit_rows);
    #[unroll]
    for row in 0..unit_rows {
        updates[row] = Vector::new(0.0f32);
    }
    for place in 0..rank {
        let right = Vector::<f32, N>::cast_from(right[place * width + at]);
        #[unroll]
        for row in 0..unit_rows {
            let here = min(first + row, rows - 1);
            updates[row] += right * Vector::new(f32::cast_from(left[here * stride + column + place]));
        }
    }
    #[unroll]
    for row in 0..unit_rows {
        if first + row < rows {
            let place = (first + row) * width + at;
            let mut total = Vector::<f32, N>::cast_from(one[place]) + updates[row] * Vector::new(scale);
            if comptime!(terms > 1) {
                total += Vector::cast_from(two[place]);
            }
            if comptime!(terms > 2) {
                total += Vector::cast_from(three[place]);
            }
            if comptime!(has_bias) {
                total += Vector::cast_from(bias[at]);
            }
            y[place] = Vector::cast_from(total);
        }
    }
}

/// Rank up to which [`combine`] takes an update; above, its operations take longer than a product of its own.
pub(crate) const MOST_RANK: usize = 128;
