//! Very few rows by a matrix with dense columns: dot products, bound by reading that matrix.

use std::borrow::Cow;

use burn::tensor::bf16;
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
    let rows: Vec<Cow<[f32]>> = (0..lhs.rows).map(|row| wide(lhs.elements, row * lhs.row_stride, inner)).collect();
    let columns_of_task = (TASK_ELEMENTS / inner.max(1)).max(1);
    let task = |task: usize| {
        let first = task * columns_of_task;
        let last = rhs.columns.min(first + columns_of_task);
        let mut values = vec![0.0; last - first];
        for (row, x) in rows.iter().enumerate() {
            for (value, column) in values.iter_mut().zip(first..last) {
                let at = column * rhs.column_stride;
                *value = match rhs.elements {
                    Elements::F32(elements) => vector::dot(x, &elements[at..at + inner]),
                    Elements::Bf16(elements) => vector::dot_of_bf16(x, &elements[at..at + inner]),
                };
            }
            let place = Place { first_row: row, rows: 1, first_column: first, columns: last - first };
            // SAFETY: the place lies in the output, and no other task has these columns.
            unsafe { out.put(&mut values, last - first, place, finish) };
        }
    };
    let tasks = rhs.columns.div_ceil(columns_of_task);
    if threads == Threads::Pool && tasks > 1 {
        (0..tasks).into_par_iter().for_each(task);
    } else {
        (0..tasks).for_each(task);
    }
}

fn wide(elements: Elements<'_>, first: usize, count: usize) -> Cow<'_, [f32]> {
    match elements {
        Elements::F32(values) => Cow::Borrowed(&values[first..first + count]),
        Elements::Bf16(values) => {
            Cow::Owned(values[first..first + count].iter().map(|value: &bf16| value.to_f32()).collect())
        }
    }
}
