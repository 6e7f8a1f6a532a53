//! Rows of bf16, which are the upper halves of f32.

use burn::tensor::bf16;

/// The same number.
#[inline(always)]
pub(crate) fn widened(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

/// The nearest bf16, ties to the even one; what is no number stays so.
#[inline(always)]
fn narrowed(x: f32) -> bf16 {
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
}
