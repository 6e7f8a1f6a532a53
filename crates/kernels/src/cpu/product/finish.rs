//! From a finished tile of sums to the output: factor, bias, the output's old values, its number format.

use burn::tensor::bf16;

use super::{Elements, Precision};
use crate::cpu::rows::filled;
use crate::cpu::vector::{self, narrowed, widened};

/// What becomes of a sum of products.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Finish<'a> {
    /// Added to every row.
    pub(crate) bias: Option<Elements<'a>>,
    /// Factor of the products.
    pub(crate) scale: f32,
    /// Whether the output's old values are added.
    pub(crate) accumulate: bool,
}

impl Default for Finish<'_> {
    fn default() -> Self {
        Self { bias: None, scale: 1.0, accumulate: false }
    }
}

/// Memory that several threads write to, each its own part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    kind: TargetKind,
    row_stride: usize,
    column_stride: usize,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum TargetKind {
    F32(*mut f32),
    Bf16(*mut bf16),
}

// SAFETY: the tasks of a job write disjoint tiles of memory that is borrowed mutably for the length of the job.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

impl Target {
    /// The same memory as the transposed output.
    pub(super) fn transposed(self) -> Self {
        Self { row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }

    pub(super) fn is_f32(self) -> bool {
        matches!(self.kind, TargetKind::F32(_))
    }

    pub(super) fn new(kind: TargetKind, row_stride: usize, column_stride: usize) -> Self {
        Self { kind, row_stride, column_stride }
    }
}

/// Number formats that an output may have.
pub(crate) trait Number: Copy {
    /// Format in which activations of this format are multiplied.
    const PRECISION: Precision;

    fn place(first: *mut Self) -> TargetKind;

    fn elements(values: &[Self]) -> Elements<'_>;

    /// The numbers in this format: themselves, or rounded to nearest, ties to even.
    fn rounded(values: Vec<f32>) -> Vec<Self>;
}

impl Number for f32 {
    const PRECISION: Precision = Precision::F32;

    fn place(first: *mut Self) -> TargetKind {
        TargetKind::F32(first)
    }

    fn elements(values: &[Self]) -> Elements<'_> {
        Elements::F32(values)
    }

    fn rounded(values: Vec<f32>) -> Vec<Self> {
        values
    }
}

impl Number for bf16 {
    const PRECISION: Precision = Precision::Bf16;

    fn place(first: *mut Self) -> TargetKind {
        TargetKind::Bf16(first)
    }

    fn elements(values: &[Self]) -> Elements<'_> {
        Elements::Bf16(values)
    }

    fn rounded(values: Vec<f32>) -> Vec<Self> {
        filled(values.len(), 1, |first, block: &mut [bf16]| {
            vector::narrow(block, &values[first..first + block.len()]);
        })
    }
}

/// Part of the output that a tile holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) first_row: usize,
    pub(super) rows: usize,
    pub(super) first_column: usize,
    pub(super) columns: usize,
}

impl Target {
    /// Where a tile of f32 sums may be written without any finish; `None` for other formats and orders.
    pub(super) fn direct(self, place: Place) -> Option<*mut f32> {
        match (self.kind, self.column_stride) {
            // SAFETY: the place lies in the output.
            (TargetKind::F32(out), 1) => {
                Some(unsafe { out.add(place.first_row * self.row_stride + place.first_column) })
            }
            _ => None,
        }
    }

    pub(super) fn row_stride(self) -> usize {
        self.row_stride
    }

    /// Finishes `tile`, whose rows are `width` numbers apart, and writes it to its place.
    ///
    /// # Safety
    /// The place lies in the output, and nothing else reads or writes it meanwhile.
    pub(super) unsafe fn put(self, tile: &mut [f32], width: usize, place: Place, finish: Finish) {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
            unsafe fn avx512(target: Target, tile: &mut [f32], width: usize, place: Place, finish: Finish) {
                unsafe { target.put_body(tile, width, place, finish) }
            }
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2(target: Target, tile: &mut [f32], width: usize, place: Place, finish: Finish) {
                unsafe { target.put_body(tile, width, place, finish) }
            }
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
            {
                // SAFETY: the features were detected; the rest is the caller's word.
                return unsafe { avx512(self, tile, width, place, finish) };
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                // SAFETY: as above.
                return unsafe { avx2(self, tile, width, place, finish) };
            }
        }
        // SAFETY: the caller's word.
        unsafe { self.put_body(tile, width, place, finish) }
    }

    #[inline(always)]
    unsafe fn put_body(self, tile: &mut [f32], width: usize, place: Place, finish: Finish) {
        let Finish { bias, scale, accumulate } = finish;
        let Place { first_row, rows, first_column, columns } = place;
        for (row, values) in (first_row..first_row + rows).zip(tile.chunks_exact_mut(width)) {
            let values = &mut values[..columns];
            if scale != 1.0 {
                values.iter_mut().for_each(|value| *value *= scale);
            }
            match bias {
                None => {}
                Some(Elements::F32(bias)) => {
                    values.iter_mut().zip(&bias[first_column..]).for_each(|(value, bias)| *value += bias);
                }
                Some(Elements::Bf16(bias)) => {
                    values.iter_mut().zip(&bias[first_column..]).for_each(|(value, bias)| *value += widened(*bias));
                }
                Some(bias @ Elements::Blocks(..)) => bias.from(first_column).add_to(values),
            }
            let at = row * self.row_stride + first_column * self.column_stride;
            // SAFETY: the caller's word.
            unsafe {
                match (self.kind, self.column_stride) {
                    (TargetKind::F32(out), 1) => {
                        let out = std::slice::from_raw_parts_mut(out.add(at), columns);
                        if accumulate {
                            out.iter_mut().zip(&*values).for_each(|(out, value)| *out += value);
                        } else {
                            out.copy_from_slice(values);
                        }
                    }
                    (TargetKind::Bf16(out), 1) => {
                        let out = std::slice::from_raw_parts_mut(out.add(at), columns);
                        if accumulate {
                            values.iter_mut().zip(&*out).for_each(|(value, out)| *value += widened(*out));
                        }
                        out.iter_mut().zip(&*values).for_each(|(out, value)| *out = narrowed(*value));
                    }
                    (TargetKind::F32(out), stride) => {
                        for (column, value) in values.iter().enumerate() {
                            let out = out.add(at + column * stride);
                            *out = if accumulate { *out + value } else { *value };
                        }
                    }
                    (TargetKind::Bf16(out), stride) => {
                        for (column, value) in values.iter().enumerate() {
                            let out = out.add(at + column * stride);
                            *out = narrowed(if accumulate { widened(*out) + value } else { *value });
                        }
                    }
                }
            }
        }
    }
}
