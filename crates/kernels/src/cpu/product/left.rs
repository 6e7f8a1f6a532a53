//! Left operands: packed for any number of products, or read where they lie.

use rayon::prelude::*;

use super::pack::{Lane, Lines};
use super::{Elements, Matrix, Precision, Threads};

/// Elements from which packing is shared among threads.
const SHARE_PACKING_FROM: usize = 64 * 1024;

/// A left operand ready to be multiplied, for any number of products.
#[derive(Debug)]
pub(crate) struct Left {
    lanes: Vec<u32>,
    pub(super) rows: usize,
    pub(super) inner: usize,
    /// Rows of a panel; the last may have fewer, and is filled up with zeros.
    pub(super) height: usize,
    precision: Precision,
}

impl Left {
    /// Packs `scale · matrix`; a scale other than one needs f32 elements.
    pub(crate) fn pack(matrix: Matrix, scale: f32, precision: Precision, threads: Threads) -> Self {
        Self::pack_in(matrix, scale, precision, precision.kernels().rows, threads)
    }

    /// The same in panels of at most `most` rows.
    pub(super) fn pack_in(matrix: Matrix, scale: f32, precision: Precision, most: usize, threads: Threads) -> Self {
        assert!(scale == 1.0 || matrix.is_in(Precision::F32), "product: bf16 operands are not scaled");
        let (rows, inner) = (matrix.rows, matrix.columns);
        let height = rows.div_ceil(rows.div_ceil(most).max(1)).max(1);
        let size = height * precision.steps(inner);
        let count = rows.div_ceil(height) * size;
        let mut lanes = Vec::with_capacity(count);
        let lines = Lines::rows(matrix).scaled(scale);
        let pack = |(panel, lanes): (usize, &mut [Lane])| {
            let first = panel * height;
            lines.part(first, height.min(rows - first), 0, inner).pack(lanes, height, precision);
        };
        if threads == Threads::Pool && rows * inner >= SHARE_PACKING_FROM {
            lanes.spare_capacity_mut()[..count].par_chunks_exact_mut(size).enumerate().for_each(pack);
        } else if size > 0 {
            lanes.spare_capacity_mut()[..count].chunks_exact_mut(size).enumerate().for_each(pack);
        }
        // SAFETY: `Lines::pack` writes all of every panel.
        unsafe { lanes.set_len(count) };
        Self { lanes, rows, inner, height, precision }
    }

    /// Format in which it is multiplied.
    pub(crate) fn precision(&self) -> Precision {
        self.precision
    }

    fn steps(&self) -> usize {
        self.precision.steps(self.inner)
    }

    /// The panel's lanes from `step` on.
    fn panel(&self, panel: usize, step: usize) -> *const u32 {
        let at = panel * self.steps() * self.height + step * self.height;
        self.lanes[at..].as_ptr()
    }
}

/// One term of a sum of products.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Term<'a> {
    pub(crate) left: &'a Left,
    pub(crate) right: Matrix<'a>,
}

/// How tiles find a left operand.
#[derive(Clone, Copy)]
pub(super) enum Rows<'a> {
    Packed(&'a Left),
    /// Where it lies: each row dense, in the format that is multiplied.
    InPlace(Matrix<'a>),
}

impl<'a> Rows<'a> {
    /// `None` when its lanes do not lie as tiles read them.
    pub(super) fn in_place(matrix: Matrix<'a>, precision: Precision) -> Option<Self> {
        let per_lane = precision.per_lane();
        let whole = matrix.columns.is_multiple_of(per_lane) && matrix.row_stride.is_multiple_of(per_lane);
        (matrix.is_in(precision) && matrix.column_stride == 1 && whole).then_some(Self::InPlace(matrix))
    }

    pub(super) fn inner(self) -> usize {
        match self {
            Self::Packed(left) => left.inner,
            Self::InPlace(matrix) => matrix.columns,
        }
    }

    /// Lanes of `height` rows from `first` on, from `step` on: where they begin, between rows, between steps.
    pub(super) fn lanes(self, first: usize, height: usize, step: usize) -> (*const u32, usize, usize) {
        match self {
            Self::Packed(left) => (left.panel(first / height, step), 1, height),
            Self::InPlace(Matrix { elements, row_stride, .. }) => match elements {
                Elements::F32(values) => (values[first * row_stride + step..].as_ptr().cast(), row_stride, 1),
                Elements::Bf16(values) => (values[first * row_stride + 2 * step..].as_ptr().cast(), row_stride / 2, 1),
                Elements::Blocks(..) => unreachable!("invariant: blocks do not lie as tiles read them"),
            },
        }
    }
}
