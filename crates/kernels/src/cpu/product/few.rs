//! Very few rows by a matrix with dense columns: dot products, bound by reading that matrix.

use rayon::prelude::*;

use super::finish::{Finish, Place, Target};
use super::{Elements, Matrix, Threads};
use crate::cpu::vector;

/// Rows, at most: more fill a vector of their own well enough.
const MOST_ROWS: usize = 3;
/// Elements of the matrix that a task reads.
const TASK_ELEMENTS: usize = 256 * 1024;

/// Whether the product is one for [`multiply`].
pub(super) fn fits(lhs: Matrix, rhs: Matrix) -> bool {
    lhs.rows <= MOST_ROWS && lhs.column_stride == 1 && rhs.row_stride == 1
}

/// As `super::multiply`.
pub(super) fn multiply(out: Target, lhs: Matrix, rhs: Matrix, finish: Finish, threads: Threads) {
    let inner = lhs.columns;
    let mut buffer = vec![0.0; lhs.rows * inner];
    let mut rest = buffer.as_mut_slice();
    let rows: Vec<&[f32]> = (0..lhs.rows)
        .map(|row| {
            let (buffer, behind) = std::mem::take(&mut rest).split_at_mut(inner);
            rest = behind;
            lhs.elements.wide(row * lhs.row_stride, buffer)
        })
        .collect();
    let columns_of_task = (TASK_ELEMENTS / inner.max(1)).max(1);
    let task = |task: usize| {
        let first = task * columns_of_task;
        let last = rhs.columns.min(first + columns_of_task);
        let width = last - first;
        let mut values = vec![0.0; rows.len() * width];
        let mut decoded = vec![0.0; if matches!(rhs.elements, Elements::Blocks(..)) { inner } else { 0 }];
        for column in first..last {
            let at = column * rhs.column_stride;
            if let Elements::Blocks(..) = rhs.elements {
                rhs.elements.wide(at, &mut decoded);
            }
            for (row, x) in rows.iter().enumerate() {
                values[row * width + column - first] = match rhs.elements {
                    Elements::F32(elements) => vector::dot(x, &elements[at..at + inner]),
                    Elements::Bf16(elements) => vector::dot_of_bf16(x, &elements[at..at + inner]),
                    Elements::Blocks(..) => vector::dot(x, &decoded),
                };
            }
        }
        for (row, values) in values.chunks_exact_mut(width).enumerate() {
            let place = Place { first_row: row, rows: 1, first_column: first, columns: width };
            // SAFETY: the place lies in the output, and no other task has these columns.
            unsafe { out.put(values, width, place, finish) };
        }
    };
    let tasks = rhs.columns.div_ceil(columns_of_task);
    if threads == Threads::Pool && tasks > 1 {
        (0..tasks).into_par_iter().for_each(task);
    } else {
        (0..tasks).for_each(task);
    }
}
