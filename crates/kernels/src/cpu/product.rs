//! Matrix products on strided views through the `gemm` crate.
//!
//! A transposed operand is a swap of strides, never a copy. The order of summation depends on the sizes only, so a
//! product has the same bits on any number of threads.
#![allow(unsafe_code, reason = "the gemm crate takes raw pointers")]

use burn_flex::FlexTensor;
use gemm::Parallelism;
use rayon::prelude::*;

/// A read-only matrix inside a slice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// `rows` rows of `columns` neighbouring elements, `row_stride` apart.
    pub(crate) fn strided(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self { data, rows, columns, row_stride, column_stride: 1 }.checked()
    }

    /// A matrix in C order that fills the slice.
    pub(crate) fn dense(data: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(data.len(), rows * columns, "product: a dense matrix fills its slice");
        Self::strided(data, rows, columns, columns)
    }

    /// The matrix a rank-2 tensor holds, whatever its strides; `None` for reversed axes.
    pub(crate) fn of(tensor: &'a FlexTensor) -> Option<Self> {
        let layout = tensor.layout();
        let [rows, columns] = [layout.shape()[0], layout.shape()[1]];
        let stride = |axis: usize| usize::try_from(layout.strides()[axis]).ok();
        let (row_stride, column_stride) = (stride(0)?, stride(1)?);
        let data = &tensor.storage::<f32>()[layout.start_offset()..];
        Some(Self { data, rows, columns, row_stride, column_stride }.checked())
    }

    /// The transposed view.
    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// `count` columns from `first` on.
    fn columns_from(self, first: usize, count: usize) -> Self {
        let data = &self.data[first * self.column_stride..];
        Self { data, columns: count, ..self }.checked()
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    fn checked(self) -> Self {
        if self.rows > 0 && self.columns > 0 {
            let last = (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride;
            assert!(last < self.data.len(), "product: a matrix must lie inside its slice");
        }
        self
    }
}

/// Who computes a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Threads {
    /// The calling thread: inside a task of a parallel loop.
    Caller,
    /// All threads of the pool, when the product is large enough to share.
    Pool,
}

/// Multiply-adds below which sharing a product costs more than it gains.
const SHARE_FROM: usize = 128 * 128 * 128;
/// The same for a single row, which does nothing but read the other matrix; also the elements a task reads.
const SHARE_ROW_FROM: usize = 256 * 1024;

/// `out = alpha·lhs·rhs`, or with `accumulate` `out += alpha·lhs·rhs`; `out` is dense, in C order.
pub(crate) fn product(out: &mut [f32], lhs: Matrix, rhs: Matrix, alpha: f32, accumulate: bool, threads: Threads) {
    let (m, n, k) = (lhs.rows, rhs.columns, lhs.columns);
    assert_eq!(rhs.rows, k, "product: [{m}, {k}] by [{}, {n}]", rhs.rows);
    assert_eq!(out.len(), m * n, "product: an output of [{m}, {n}]");
    if m == 1 && threads == Threads::Pool && n * k >= SHARE_ROW_FROM {
        // The gemm crate takes a single row on one thread, which reads memory at half its speed or less.
        let columns = (SHARE_ROW_FROM / k).max(1);
        return out.par_chunks_mut(columns).enumerate().for_each(|(index, out)| {
            let rhs = rhs.columns_from(index * columns, out.len());
            product(out, lhs, rhs, alpha, accumulate, Threads::Caller);
        });
    }
    let share = threads == Threads::Pool && m.saturating_mul(n).saturating_mul(k) >= SHARE_FROM;
    let parallelism = if share { Parallelism::Rayon(0) } else { Parallelism::None };
    let keep = if accumulate { 1.0 } else { 0.0 };
    // SAFETY: `Matrix::checked` and the assertions above keep every access of the three matrices inside their slices;
    // `out` is borrowed mutably, so it overlaps no operand.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            accumulate,
            lhs.data.as_ptr(),
            lhs.column_stride as isize,
            lhs.row_stride as isize,
            rhs.data.as_ptr(),
            rhs.column_stride as isize,
            rhs.row_stride as isize,
            keep,
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::Random;

    #[test]
    fn a_single_row_is_shared_without_changing_it() {
        let mut random = Random::new(2);
        let (n, k) = (1003, 700);
        let draw = |random: &mut Random, len: usize| -> Vec<f32> { (0..len).map(|_| random.unit()).collect() };
        let (x, weight) = (draw(&mut random, k), draw(&mut random, n * k));
        let (lhs, rhs) = (Matrix::dense(&x, 1, k), Matrix::dense(&weight, n, k).transposed());
        let (mut shared, mut alone) = (vec![0.0; n], vec![0.0; n]);
        product(&mut shared, lhs, rhs, 1.0, false, Threads::Pool);
        product(&mut alone, lhs, rhs, 1.0, false, Threads::Caller);
        let worst = shared.iter().zip(&alone).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-4, "{worst}");
    }

    #[test]
    fn transposed_views_and_accumulation() {
        let mut random = Random::new(1);
        for [m, n, k] in [[1, 1, 1], [2, 3, 4], [17, 5, 9], [1, 40, 33], [40, 1, 33], [70, 65, 200]] {
            let draw = |random: &mut Random, len: usize| -> Vec<f32> { (0..len).map(|_| random.unit()).collect() };
            let (a, b, start) = (draw(&mut random, m * k), draw(&mut random, n * k), draw(&mut random, m * n));
            let mut out = start.clone();
            let (lhs, rhs) = (Matrix::dense(&a, m, k), Matrix::dense(&b, n, k).transposed());
            product(&mut out, lhs, rhs, 0.5, true, Threads::Caller);
            for i in 0..m {
                for j in 0..n {
                    let dot: f64 = (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[j * k + l])).sum();
                    let expected = f64::from(start[i * n + j]) + 0.5 * dot;
                    assert!((f64::from(out[i * n + j]) - expected).abs() < 1e-4, "[{m}, {n}, {k}] at {i}, {j}");
                }
            }
        }
    }
}
