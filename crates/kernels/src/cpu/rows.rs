//! Parallel loops over rows, in blocks whose bounds depend on the sizes only.
#![allow(unsafe_code, reason = "outputs are written by the tasks that compute them, not zeroed beforehand")]

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::element::Element;
use super::vector;
use crate::Dropout;

/// Elements a task should have at least: below, starting it costs more than it gains.
const TASK_ELEMENTS: usize = 48 * 1024;

/// Rows of `width` elements per task.
pub(crate) fn rows_per_task(width: usize) -> usize {
    (TASK_ELEMENTS / width.max(1)).max(1)
}

/// `len` elements, rows of `width`, that `f(first_row, block)` writes in blocks of whole rows.
///
/// A block is 0 before, and becomes so by the task that then writes it: in its cache, instead of a pass of one thread
/// over memory.
pub(crate) fn filled<T: Copy + Default + Send>(len: usize, width: usize, f: impl Fn(usize, &mut [T]) + Sync) -> Vec<T> {
    filled_by_work(len.checked_div(width).unwrap_or(0), width, width, f)
}

/// The same for rows of which `work` elements are read or written: what a task should have enough of.
pub(crate) fn filled_by_work<T: Copy + Default + Send>(
    rows: usize,
    width: usize,
    work: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) -> Vec<T> {
    let len = rows * width;
    let mut values = Vec::with_capacity(len);
    let spare = &mut values.spare_capacity_mut()[..len];
    for_tasks(spare, width, rows_per_task(work), |first, block| f(first, zeroed(block)));
    // SAFETY: the blocks cover all `len` elements, and each was zeroed.
    unsafe { values.set_len(len) };
    values
}

/// The same with two outputs of as many rows.
pub(crate) fn filled_two<T: Copy + Default + Send, U: Copy + Default + Send>(
    rows: usize,
    [one_width, two_width]: [usize; 2],
    f: impl Fn(usize, &mut [T], &mut [U]) + Sync,
) -> (Vec<T>, Vec<U>) {
    let (one_len, two_len) = (rows * one_width, rows * two_width);
    let (mut one, mut two) = (Vec::with_capacity(one_len), Vec::with_capacity(two_len));
    if one_len == 0 || two_len == 0 {
        return (vec![T::default(); one_len], vec![U::default(); two_len]);
    }
    let (spare_one, spare_two) = (&mut one.spare_capacity_mut()[..one_len], &mut two.spare_capacity_mut()[..two_len]);
    for_blocks_of_two((spare_one, one_width), (spare_two, two_width), |first, one, two| {
        f(first, zeroed(one), zeroed(two));
    });
    // SAFETY: the blocks cover all elements of both, and each was zeroed.
    unsafe {
        one.set_len(one_len);
        two.set_len(two_len);
    }
    (one, two)
}

fn zeroed<T: Copy + Default>(block: &mut [MaybeUninit<T>]) -> &mut [T] {
    for value in block.iter_mut() {
        value.write(T::default());
    }
    // SAFETY: every element was just written.
    unsafe { block.assume_init_mut() }
}

/// Calls `f(first_row, block)` for blocks of whole rows of `out`.
pub(crate) fn for_blocks<T: Send>(out: &mut [T], width: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    for_tasks(out, width, rows_per_task(width), f);
}

/// The same in blocks of `rows`.
fn for_tasks<T: Send>(out: &mut [T], width: usize, rows: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    if out.is_empty() {
        return;
    }
    if out.len() <= rows * width {
        return f(0, out);
    }
    out.par_chunks_mut(rows * width).enumerate().for_each(|(index, block)| f(index * rows, block));
}

/// `x ⊙ mask`, element by element.
pub(crate) fn dropped(x: &[f32], dropout: Dropout) -> Vec<f32> {
    filled(x.len(), 1, |first, block| {
        vector::drop(block, &x[first..first + block.len()], dropout, first as u64);
    })
}

/// The same with two outputs of as many rows.
pub(crate) fn for_blocks_of_two<T: Send, U: Send>(
    (one, one_width): (&mut [T], usize),
    (two, two_width): (&mut [U], usize),
    f: impl Fn(usize, &mut [T], &mut [U]) + Sync,
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
pub(crate) fn sum_rows<E: Element>(values: &[E], width: usize) -> Vec<f32> {
    sum_blocks(values.len().checked_div(width).unwrap_or(0), width, width, |rows, sum| {
        let mut wide = Vec::new();
        for row in values[rows.start * width..rows.end * width].chunks_exact(width) {
            add(sum, E::read(row, &mut wide));
        }
    })
}

/// `sum += row`.
pub(crate) fn add(sum: &mut [f32], row: &[f32]) {
    for (sum, value) in sum.iter_mut().zip(row) {
        *sum += value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_an_output_once_and_start_at_zero() {
        for (rows, width) in [(0, 3), (3, 0), (1, 1), (7, 5), (TASK_ELEMENTS + 1, 1), (3, TASK_ELEMENTS), (1000, 100)] {
            let values = filled(rows * width, width, |first, block: &mut [usize]| {
                for (at, value) in block.iter_mut().enumerate() {
                    *value += first * width + at + 1;
                }
            });
            assert!(values.iter().enumerate().all(|(at, value)| *value == at + 1), "{rows} x {width}");
            let (values, of_rows) = filled_two(rows, [width, 1], |first, block: &mut [u8], rows: &mut [usize]| {
                block.iter_mut().for_each(|value| *value += 1);
                rows.iter_mut().enumerate().for_each(|(at, row)| *row += first + at);
            });
            assert!(values.len() == rows * width && values.iter().all(|value| *value == 1));
            assert!(of_rows.len() == rows && (width == 0 || of_rows.iter().enumerate().all(|(at, row)| *row == at)));
        }
    }
}
