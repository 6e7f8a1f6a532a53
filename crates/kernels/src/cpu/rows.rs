//! Parallel loops over rows, in blocks whose bounds depend on the sizes only.

use std::ops::Range;

use rayon::prelude::*;

use super::vector;
use crate::Dropout;

/// Elements a task should have at least: below, starting it costs more than it gains.
const TASK_ELEMENTS: usize = 48 * 1024;

/// Rows of `width` elements per task.
pub(crate) fn rows_per_task(width: usize) -> usize {
    (TASK_ELEMENTS / width.max(1)).max(1)
}

/// Calls `f(first_row, block)` for blocks of whole rows of `out`.
pub(crate) fn for_blocks(out: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    if out.is_empty() {
        return;
    }
    let rows = rows_per_task(width);
    if out.len() <= rows * width {
        return f(0, out);
    }
    out.par_chunks_mut(rows * width).enumerate().for_each(|(index, block)| f(index * rows, block));
}

/// `x ⊙ mask`, element by element.
pub(crate) fn dropped(x: &[f32], dropout: Dropout) -> Vec<f32> {
    let mut dropped = vec![0.0; x.len()];
    for_blocks(&mut dropped, 1, |first, block| {
        vector::drop(block, &x[first..first + block.len()], dropout, first as u64);
    });
    dropped
}

/// The same with two outputs of as many rows.
pub(crate) fn for_blocks_of_two(
    (one, one_width): (&mut [f32], usize),
    (two, two_width): (&mut [f32], usize),
    f: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) {
    if one.is_empty() || two.is_empty() {
        return;
    }
    let rows = rows_per_task(one_width.max(two_width));
    if one.len() <= rows * one_width {
        return f(0, one, two);
    }
    one.par_chunks_mut(rows * one_width)
        .zip(two.par_chunks_mut(rows * two_width))
        .enumerate()
        .for_each(|(index, (one, two))| f(index * rows, one, two));
}

/// `size` sums over rows of `width` elements: `f` adds those of a block, blocks run in parallel, their sums are added in
/// order.
pub(crate) fn sum_blocks(
    rows: usize,
    width: usize,
    size: usize,
    f: impl Fn(Range<usize>, &mut [f32]) + Sync,
) -> Vec<f32> {
    let step = rows_per_task(width);
    let sums: Vec<Vec<f32>> = (0..rows.div_ceil(step))
        .into_par_iter()
        .map(|block| {
            let mut sum = vec![0.0; size];
            f(block * step..rows.min((block + 1) * step), &mut sum);
            sum
        })
        .collect();
    let mut total = vec![0.0; size];
    for sum in &sums {
        add(&mut total, sum);
    }
    total
}

/// Sums `[rows, width]` over its rows.
pub(crate) fn sum_rows(values: &[f32], width: usize) -> Vec<f32> {
    sum_blocks(values.len().checked_div(width).unwrap_or(0), width, width, |rows, sum| {
        for row in values[rows.start * width..rows.end * width].chunks_exact(width) {
            add(sum, row);
        }
    })
}

/// `sum += row`.
pub(crate) fn add(sum: &mut [f32], row: &[f32]) {
    for (sum, value) in sum.iter_mut().zip(row) {
        *sum += value;
    }
}
