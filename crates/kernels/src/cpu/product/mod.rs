//! Matrix products on strided views, in f32 or from bf16 with f32 sums.
//!
//! Both operands are packed into panels (Goto and van de Geijn, 2008), the left one once for all products that share it,
//! the right one panel by panel by the thread that needs it; a tile of the output stays in registers along the whole inner
//! dimension, over all terms of a sum of products. A transposed operand is a swap of strides, never a copy. The order of
//! summation depends on the sizes only, so a product has the same bits on any number of threads.
#![allow(unsafe_code, reason = "tiles take raw pointers, and threads write disjoint parts of one output")]

mod ahead;
mod few;
mod finish;
mod job;
mod left;
mod matrix;
mod pack;
mod tile;

pub(crate) use finish::Number;
use finish::{Finish, Target};
use job::Job;
use left::Rows;
pub(crate) use left::{Left, Term};
pub(crate) use matrix::{Elements, Matrix};
use tile::{Kernels, kernels};

/// Format in which operands are multiplied; sums are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Precision {
    F32,
    Bf16,
}

impl Precision {
    /// The format of a product of these: bf16 where one of them is, and the machine multiplies it.
    pub(crate) fn of(operands: &[Matrix]) -> Self {
        let bf16 = operands.iter().any(|matrix| matrix.precision() == Self::Bf16);
        if bf16 && kernels(Self::Bf16).is_some() { Self::Bf16 } else { Self::F32 }
    }

    fn kernels(self) -> &'static Kernels {
        kernels(self).expect("invariant: chosen because it is there")
    }

    /// Elements of a lane.
    fn per_lane(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 => 2,
        }
    }

    /// Lanes that so many elements take along the inner dimension.
    fn steps(self, inner: usize) -> usize {
        inner.div_ceil(self.per_lane())
    }
}

/// What products run on, found when the program starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instructions {
    /// Of f32 products: `AVX-512`, `AVX2`, or `portable` for what every machine of the kind has.
    pub f32: &'static str,
    /// Of products from bf16: `AVX-512-BF16`; `None` where they are widened and multiplied in f32.
    pub bf16: Option<&'static str>,
}

/// What this machine multiplies with.
#[must_use]
pub fn instructions() -> Instructions {
    Instructions { f32: Precision::F32.kernels().name, bf16: kernels(Precision::Bf16).map(|kernels| kernels.name) }
}

/// Who computes a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Threads {
    /// The calling thread: inside a task of a parallel loop.
    Caller,
    /// All threads of the pool, when the product is large enough to share.
    Pool,
}

/// `scale · Σ left·right (+ bias)` as a new matrix in C order.
pub(crate) fn new_sum_of_products<T: Number>(
    terms: &[Term],
    bias: Option<Elements>,
    scale: f32,
    threads: Threads,
) -> Vec<T> {
    let (rows, columns) = (terms[0].left.rows, terms[0].right.columns);
    let mut out = Vec::with_capacity(rows * columns);
    let target = Target::new(T::place(out.as_mut_ptr()), columns, 1);
    run_terms(target, terms, Finish { bias, scale, accumulate: false }, threads);
    // SAFETY: without accumulation every number of the output is written and none is read.
    unsafe { out.set_len(rows * columns) };
    out
}

/// Runs on an output that has room for all rows and columns of the terms.
fn run_terms(out: Target, terms: &[Term], finish: Finish, threads: Threads) {
    let first = terms[0];
    let (rows, columns) = (first.left.rows, first.right.columns);
    for Term { left, right } in terms {
        assert!(
            left.rows == rows && left.height == first.left.height && left.precision() == first.left.precision(),
            "product: terms of one output"
        );
        assert!(
            right.columns == columns && right.rows == left.inner,
            "product: [{rows}, {}] by [{}, {}]",
            left.inner,
            right.rows,
            right.columns
        );
    }
    if let Some(bias) = finish.bias {
        assert_eq!(bias.len(), columns, "product: a bias of {columns}");
    }
    if rows * columns == 0 {
        return;
    }
    let (precision, height) = (first.left.precision(), first.left.height);
    let terms: Vec<_> = terms.iter().map(|term| (Rows::Packed(term.left), term.right)).collect();
    Job { out, terms: &terms, finish, rows, columns, height, kernels: precision.kernels(), precision }.run(threads);
}

/// Rows of a left operand, at most, for which the right one is left where it lies.
const FEW_ROWS: usize = 32;
/// Columns of a left operand that are packed at a time.
const PACKED_INNER: usize = 8192;

/// Whether [`product`] takes so many rows without packing a right operand with dense columns.
pub(crate) fn few_rows(rows: usize) -> bool {
    rows <= FEW_ROWS
}

/// `out = scale · lhs·rhs (+ out)`, `[rows, columns]` in C order.
pub(crate) fn product(out: &mut [f32], lhs: Matrix, rhs: Matrix, scale: f32, accumulate: bool, threads: Threads) {
    assert_eq!(out.len(), lhs.rows * rhs.columns, "product: an output of [{}, {}]", lhs.rows, rhs.columns);
    let out = Target::new(f32::place(out.as_mut_ptr()), rhs.columns, 1);
    multiply(out, lhs, rhs, Finish { bias: None, scale, accumulate }, threads);
}

/// `scale · lhs·rhs` as a new matrix in C order.
pub(crate) fn new_product<T: Number>(lhs: Matrix, rhs: Matrix, scale: f32, threads: Threads) -> Vec<T> {
    new_multiply(lhs, rhs, [rhs.columns, 1], scale, threads)
}

/// `(scale · lhs·rhs)ᵀ` as a new matrix in C order.
pub(crate) fn new_transposed_product<T: Number>(lhs: Matrix, rhs: Matrix, scale: f32, threads: Threads) -> Vec<T> {
    new_multiply(lhs, rhs, [1, lhs.rows], scale, threads)
}

/// `lhs·rhs (+ bias)` in f32, finished by `f`, then rounded once.
pub(crate) fn finished_product<T: Number>(
    lhs: Matrix,
    rhs: Matrix,
    bias: Option<Elements>,
    f: impl FnOnce(&mut [f32]),
) -> Vec<T> {
    let mut out: Vec<f32> = new_product(lhs, rhs, 1.0, Threads::Pool);
    if let Some(bias) = bias {
        assert_eq!(bias.len(), rhs.columns, "product: a bias of {}", rhs.columns);
        for row in out.chunks_exact_mut(rhs.columns.max(1)) {
            bias.add_to(row);
        }
    }
    f(&mut out);
    T::rounded(out)
}

fn new_multiply<T: Number>(
    lhs: Matrix,
    rhs: Matrix,
    [row_stride, column_stride]: [usize; 2],
    scale: f32,
    threads: Threads,
) -> Vec<T> {
    let len = lhs.rows * rhs.columns;
    let mut out = Vec::with_capacity(len);
    let target = Target::new(T::place(out.as_mut_ptr()), row_stride, column_stride);
    multiply(target, lhs, rhs, Finish { bias: None, scale, accumulate: false }, threads);
    // SAFETY: without accumulation every number of the output is written before any is read.
    unsafe { out.set_len(len) };
    out
}

/// Runs on an output that has room for all rows and columns.
fn multiply(out: Target, lhs: Matrix, rhs: Matrix, finish: Finish, threads: Threads) {
    let (rows, columns, inner, precision) = (lhs.rows, rhs.columns, lhs.columns, Precision::of(&[lhs, rhs]));
    assert_eq!(rhs.rows, inner, "product: [{rows}, {inner}] by [{}, {columns}]", rhs.rows);
    if rows * columns == 0 {
        return;
    }
    if few_rows(rows) && columns > rows {
        if few::fits(lhs, rhs) {
            return few::multiply(out, lhs, rhs, finish, threads);
        }
        let kernels = precision.kernels();
        if rows <= kernels.columns()
            && let Some(in_place) = Rows::in_place(rhs.transposed(), precision)
        {
            // A few rows by a matrix whose columns are dense: the transposed product reads that matrix once, as it lies.
            let (out, height) = (out.transposed(), kernels.direct_rows(rows).min(columns));
            let terms = [(in_place, lhs.transposed())];
            let job = Job { out, terms: &terms, finish, rows: columns, columns: rows, height, kernels, precision };
            return job.run(threads);
        }
    }
    // The sum over a very long inner dimension goes through an f32 output, block by block.
    let block = if out.is_f32() { PACKED_INNER } else { inner.max(1) };
    let mut first = 0;
    loop {
        let here = block.min(inner - first);
        let left = Left::pack(lhs.columns_from(first, here), 1.0, precision, threads);
        let finish = Finish { accumulate: finish.accumulate || first > 0, ..finish };
        run_terms(out, &[Term { left: &left, right: rhs.rows_from(first, here) }], finish, threads);
        first += here;
        if first >= inner {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
