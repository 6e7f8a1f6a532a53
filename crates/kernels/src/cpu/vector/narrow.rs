//! Rows of bf16, which are the upper halves of f32.

use burn::tensor::bf16;

use super::{LANES, fma, fold};

/// The same number.
#[inline(always)]
pub(crate) fn widened(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

/// The nearest bf16, ties to the even one; what is no number stays so.
#[inline(always)]
pub(crate) fn narrowed(x: f32) -> bf16 {
    const QUIET: u32 = 0x40;
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    bf16::from_bits(if x.is_nan() { bits >> 16 | QUIET } else { nearest } as u16)
}

multiversioned! {
    /// The same numbers in f32.
    pub(crate) fn widen(out: &mut [f32], x: &[bf16]) {
        let _ = FMA;
        for (out, x) in out.iter_mut().zip(x) {
            *out = widened(*x);
        }
    }

    /// Each number rounded to the nearest bf16, ties to the even one.
    pub(crate) fn narrow(out: &mut [bf16], x: &[f32]) {
        let _ = FMA;
        for (out, x) in out.iter_mut().zip(x) {
            *out = narrowed(*x);
        }
    }

    /// `Σ x·y`.
    pub(crate) fn dot_of_bf16(x: &[f32], y: &[bf16]) -> f32 {
        let mut lanes = [0.0; LANES];
        let (x, x_rest) = x.as_chunks::<LANES>();
        let (y, y_rest) = y.as_chunks::<LANES>();
        for (x, y) in x.iter().zip(y) {
            for lane in 0..LANES {
                lanes[lane] = fma::<FMA>(x[lane], widened(y[lane]), lanes[lane]);
            }
        }
        for ((sum, x), y) in lanes.iter_mut().zip(x_rest).zip(y_rest) {
            *sum = fma::<FMA>(*x, widened(*y), *sum);
        }
        fold(lanes, |a, b| a + b)
    }
}
