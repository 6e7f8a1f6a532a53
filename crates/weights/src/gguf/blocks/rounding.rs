//! Roundings as ggml's x86-64 build does them, also where C leaves the result open: bytes of subnormal and huge blocks
//! depend on it.

use half::f16;

/// Adding it leaves an integer, rounded to nearest even, in the low bits of a number below 2²² in magnitude.
pub(super) const SHIFTER: f32 = 12_582_912.0;

/// The nearest integer, ties to even; of larger numbers what is left of them in 23 bits.
#[inline(always)]
pub(super) fn nearest(x: f32) -> i32 {
    ((x + SHIFTER).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

/// The integer part; `i32::MIN` for what does not fit, as `cvttss2si` gives it.
#[inline(always)]
pub(super) fn truncated(x: f32) -> i32 {
    // A cast would clamp, which the compiler does one number at a time.
    let fitting = if x.abs() < 2_147_483_648.0 { x } else { -2_147_483_648.0 };
    // SAFETY: it is no NaN and between -2³¹ and 2³¹, the upper end excluded.
    #[expect(unsafe_code, reason = "a conversion that vectorises")]
    unsafe {
        fitting.to_int_unchecked()
    }
}

/// The nearest integer, ties away from zero, of numbers below 2²³ in magnitude.
#[inline(always)]
pub(super) fn rounded(x: f32) -> i32 {
    // The largest number below a half: a half itself would carry the numbers just below a half up.
    truncated(x + 0.499_999_97_f32.copysign(x))
}

/// `1 / x`, or 0.
#[inline(always)]
pub(super) fn inverse(x: f32) -> f32 {
    if x != 0.0 { 1.0 / x } else { 0.0 }
}

/// A number as the two bytes of its F16.
#[inline(always)]
pub(super) fn half(x: f32) -> [u8; 2] {
    f16::from_f32(x).to_le_bytes()
}

/// An F16 as a number, exactly.
#[inline(always)]
pub(super) fn widened(bytes: [u8; 2]) -> f32 {
    let half = u32::from(u16::from_le_bytes(bytes));
    // The exponent's bias differs by 112; the product brings subnormals to where they belong.
    let magnitude = f32::from_bits((half & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
    let special = if half & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(magnitude.to_bits() | special | (half & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_widens_as_its_definition_says() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (widened(bits.to_le_bytes()), f16::from_bits(bits).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{bits:04x}");
        }
    }

    #[test]
    fn roundings_agree_with_the_standard_ones_where_those_are_defined() {
        for step in -1_000_000..1_000_000 {
            let base = step as f32 / 4096.0;
            for x in [base.next_down(), base, base.next_up()] {
                assert_eq!(nearest(x), x.round_ties_even() as i32, "{x}");
                assert_eq!(rounded(x), x.round() as i32, "{x}");
                assert_eq!(truncated(x), x.trunc() as i32, "{x}");
            }
        }
        assert_eq!(truncated(f32::NAN), i32::MIN);
        assert_eq!(truncated(f32::INFINITY), i32::MIN);
        assert_eq!(truncated(2_147_483_648.0), i32::MIN);
    }
}
