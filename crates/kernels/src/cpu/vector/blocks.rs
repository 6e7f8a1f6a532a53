//! Blocks of moments and values that are held in fewer bits.

use burn::tensor::bf16;

use super::narrow::narrowed;
use super::reduce;
use crate::adamw_compact::random_bits;

/// One of the two nearest bf16: the one behind the one towards zero if 16 random bits are below the bits that fall away.
#[inline(always)]
fn narrowed_at_random(x: f32, random: u32) -> bf16 {
    let bits = x.to_bits();
    let behind = u32::from(random < (bits & 0xffff));
    if x.is_nan() { narrowed(x) } else { bf16::from_bits(((bits >> 16) + behind) as u16) }
}

multiversioned! {
    /// Largest magnitude; 0 for an empty row.
    pub(crate) fn max_abs(row: &[f32]) -> f32 {
        let _ = FMA;
        reduce([row], 0.0, 0.0, |[x], max| if x.abs() > max { x.abs() } else { max }, f32::max)
    }

    /// `x /= divisor`.
    pub(crate) fn divide(row: &mut [f32], divisor: f32) {
        let _ = FMA;
        for value in row.iter_mut() {
            *value /= divisor;
        }
    }

    /// Each number rounded to one of the two nearest bf16 by [`random_bits`], from those of `group` on.
    pub(crate) fn narrow_at_random(out: &mut [bf16], x: &[f32], key: u64, group: u64) {
        let _ = FMA;
        let x = &x[..out.len()];
        for (index, (out, x)) in out.chunks_mut(4).zip(x.chunks(4)).enumerate() {
            let random = random_bits(key, group + index as u64);
            for ((out, x), random) in out.iter_mut().zip(x).zip(random) {
                *out = narrowed_at_random(*x, random);
            }
        }
    }
}
