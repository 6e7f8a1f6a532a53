//! Loops over rows, compiled for several instruction sets and chosen at run time.
//!
//! The bodies are plain Rust that the compiler vectorises; sums run in [`LANES`] parallel lanes that are added in a fixed
//! order. One binary serves every machine; the bits may differ between machines, never between runs.
#![allow(unsafe_code, reason = "calls into functions compiled for a detected instruction set")]

/// Parallel sums of a reduction: four vectors of AVX2, two of AVX-512.
const LANES: usize = 32;

/// Compiles a body for AVX-512, AVX2 with FMA, and the target's baseline.
///
/// The body gets `FMA`: whether a fused multiply-add is an instruction (else `mul_add` would be a library call).
macro_rules! multiversioned {
    ($($(#[$meta:meta])* pub(crate) fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)? $body:block)*) => {$(
        $(#[$meta])*
        pub(crate) fn $name($($arg: $type),*) $(-> $ret)? {
            #[inline(always)]
            fn body<const FMA: bool>($($arg: $type),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
                fn avx512($($arg: $type),*) $(-> $ret)? {
                    body::<true>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $type),*) $(-> $ret)? {
                    body::<true>($($arg),*)
                }
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("fma")
                {
                    // SAFETY: the features the function is compiled for were detected.
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: as above.
                    return unsafe { avx2($($arg),*) };
                }
                body::<false>($($arg),*)
            }
            #[cfg(not(target_arch = "x86_64"))]
            body::<{ cfg!(target_arch = "aarch64") }>($($arg),*)
        }
    )*};
}

mod activation;
mod adamw;
mod blocks;
pub(crate) mod delta;
mod heads;
mod narrow;
mod softmax;

pub(crate) use activation::{
    sigmoid, sigmoid_gate, sigmoid_gate_backward, silu, silu_backward, swiglu, swiglu_backward,
};
pub(crate) use adamw::{AdamW, adamw};
pub(crate) use blocks::{divide, max_abs, narrow_at_random};
pub(crate) use heads::{Angles, norm_rotate, norm_rotate_backward, rotate_heads};
pub(crate) use narrow::{dot_of_bf16, narrow, narrowed, widen, widened};
pub(crate) use softmax::{exp_and_sum, scaled_exp, softmax_backward, softmax_gradient, sum_of_exp};

#[inline(always)]
fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `exp(x)` within 2 units in the last place; 0 below the smallest normal number, finite above `ln(f32::MAX)`.
///
/// `x = n·ln 2 + r` with `|r| ≤ ln(2)/2`, the polynomial of degree 6 of Cephes' `expf` on `r`, then `2ⁿ` by exponent bits.
#[inline(always)]
fn exp_of<const FMA: bool>(x: f32) -> f32 {
    /// Adding and taking it away rounds to an integer, which stays in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.336_54, 88.376_26);
    let shifted = fma::<FMA>(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma::<FMA>(n, -LN2_LOW, fma::<FMA>(n, -LN2_HIGH, clamped));
    let mut p = fma::<FMA>(1.987_569_1e-4, r, 1.398_199_9e-3);
    p = fma::<FMA>(p, r, 8.333_452e-3);
    p = fma::<FMA>(p, r, 4.166_579_6e-2);
    p = fma::<FMA>(p, r, 1.666_666_5e-1);
    p = fma::<FMA>(p, r, 0.5);
    let y = fma::<FMA>(p, r * r, r) + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    let result = y * power;
    if x < -87.336_54 { 0.0 } else { result }
}

/// Folds rows of one length in [`LANES`] lanes, then the lanes pairwise.
///
/// What is left beside whole vectors is padded with `neutral`, which must leave a lane as it is: a scalar loop over it
/// would cost more than the rest of a short row.
#[inline(always)]
fn reduce<const N: usize>(
    rows: [&[f32]; N],
    neutral: f32,
    start: f32,
    term: impl Fn([f32; N], f32) -> f32,
    join: impl Fn(f32, f32) -> f32,
) -> f32 {
    let len = rows[0].len();
    let chunks = rows.map(|row| row[..len].as_chunks::<LANES>());
    let mut lanes = [start; LANES];
    for index in 0..len / LANES {
        let chunk = chunks.map(|(whole, _)| &whole[index]);
        for lane in 0..LANES {
            lanes[lane] = term(chunk.map(|row| row[lane]), lanes[lane]);
        }
    }
    if !len.is_multiple_of(LANES) {
        let chunk = chunks.map(|(_, rest)| padded(rest, neutral));
        for lane in 0..LANES {
            lanes[lane] = term(chunk.map(|row| row[lane]), lanes[lane]);
        }
    }
    fold(lanes, join)
}

/// Joins the lanes pairwise.
#[inline(always)]
fn fold(mut lanes: [f32; LANES], join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = join(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn padded(rest: &[f32], neutral: f32) -> [f32; LANES] {
    let mut chunk = [neutral; LANES];
    chunk[..rest.len()].copy_from_slice(rest);
    chunk
}

multiversioned! {
    /// Largest element; negative infinity for an empty row.
    pub(crate) fn max(row: &[f32]) -> f32 {
        let _ = FMA;
        reduce([row], f32::NEG_INFINITY, f32::NEG_INFINITY, |[x], max| if x > max { x } else { max }, f32::max)
    }

    /// `Σ x`.
    pub(crate) fn sum(row: &[f32]) -> f32 {
        let _ = FMA;
        reduce([row], 0.0, 0.0, |[x], sum| sum + x, |a, b| a + b)
    }

    /// `Σ x²`.
    pub(crate) fn sum_of_squares(row: &[f32]) -> f32 {
        reduce([row], 0.0, 0.0, |[x], sum| fma::<FMA>(x, x, sum), |a, b| a + b)
    }

    /// `Σ x·y`.
    pub(crate) fn dot(x: &[f32], y: &[f32]) -> f32 {
        reduce([x, y], 0.0, 0.0, |[x, y], sum| fma::<FMA>(x, y, sum), |a, b| a + b)
    }

    /// `Σ x·y·z`.
    pub(crate) fn dot_of_three(x: &[f32], y: &[f32], z: &[f32]) -> f32 {
        reduce([x, y, z], 0.0, 0.0, |[x, y, z], sum| fma::<FMA>(x * y, z, sum), |a, b| a + b)
    }

    /// `x *= factor`.
    pub(crate) fn scale(row: &mut [f32], factor: f32) {
        let _ = FMA;
        for value in row.iter_mut() {
            *value *= factor;
        }
    }

    /// `out = factor·x`.
    pub(crate) fn scaled(out: &mut [f32], x: &[f32], factor: f32) {
        let _ = FMA;
        for (out, x) in out.iter_mut().zip(x) {
            *out = factor * x;
        }
    }

    /// `sum += factor·x`.
    pub(crate) fn accumulate_scaled(sum: &mut [f32], x: &[f32], factor: f32) {
        for (sum, x) in sum.iter_mut().zip(x) {
            *sum = fma::<FMA>(factor, *x, *sum);
        }
    }

    /// `sum += x`.
    pub(crate) fn accumulate(sum: &mut [f32], x: &[f32]) {
        let _ = FMA;
        for (sum, x) in sum.iter_mut().zip(x) {
            *sum += x;
        }
    }

    /// `out = x + y`.
    pub(crate) fn sums(out: &mut [f32], x: &[f32], y: &[f32]) {
        let _ = FMA;
        for ((out, x), y) in out.iter_mut().zip(x).zip(y) {
            *out = x + y;
        }
    }

    /// `out = x - y`.
    pub(crate) fn difference(out: &mut [f32], x: &[f32], y: &[f32]) {
        let _ = FMA;
        for ((out, x), y) in out.iter_mut().zip(x).zip(y) {
            *out = x - y;
        }
    }

    /// `out = x·factor·weight`, the normalisation once the factor is known.
    pub(crate) fn scaled_product(out: &mut [f32], x: &[f32], factor: f32, weight: &[f32]) {
        let _ = FMA;
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * factor * weight;
        }
    }

    /// `dx = r·w·dy - x·c`: the backward of a normalisation once its two row factors are known.
    pub(crate) fn norm_backward(dx: &mut [f32], x: &[f32], weight: &[f32], dy: &[f32], r: f32, c: f32) {
        for (((dx, x), weight), dy) in dx.iter_mut().zip(x).zip(weight).zip(dy) {
            *dx = fma::<FMA>(-c, *x, r * weight * dy);
        }
    }

    /// `sum += factor·x·y`.
    pub(crate) fn accumulate_product(sum: &mut [f32], factor: f32, x: &[f32], y: &[f32]) {
        for ((sum, x), y) in sum.iter_mut().zip(x).zip(y) {
            *sum = fma::<FMA>(factor * x, *y, *sum);
        }
    }

    /// `sum += Σ x·y` over pairs of rows, in one pass over the sum.
    pub(crate) fn accumulate_products(sum: &mut [f32], pairs: &[(&[f32], &[f32])]) {
        let (whole, rest) = sum.as_chunks_mut::<LANES>();
        let rest_from = whole.len() * LANES;
        for (index, chunk) in whole.iter_mut().enumerate() {
            let (range, mut lanes) = (index * LANES..(index + 1) * LANES, *chunk);
            for (x, y) in pairs {
                let (x, y) = (&x[range.clone()], &y[range.clone()]);
                for lane in 0..LANES {
                    lanes[lane] = fma::<FMA>(x[lane], y[lane], lanes[lane]);
                }
            }
            *chunk = lanes;
        }
        for (x, y) in pairs {
            for ((sum, x), y) in rest.iter_mut().zip(&x[rest_from..]).zip(&y[rest_from..]) {
                *sum = fma::<FMA>(*x, *y, *sum);
            }
        }
    }

    /// `sum += x ⊙ mask`.
    pub(crate) fn add_dropped(sum: &mut [f32], x: &[f32], dropout: crate::Dropout, first: u64) {
        let _ = FMA;
        for (index, (sum, x)) in sum.iter_mut().zip(x).enumerate() {
            *sum += x * dropout.factor(first + index as u64);
        }
    }

    /// Factors of a dropout mask, times `x`.
    pub(crate) fn drop(out: &mut [f32], x: &[f32], dropout: crate::Dropout, first: u64) {
        let _ = FMA;
        for (index, (out, x)) in out.iter_mut().zip(x).enumerate() {
            *out = x * dropout.factor(first + index as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::Random;

    fn worst_ulps<const FMA: bool>() -> f64 {
        (-8_700_000..8_800_000)
            .step_by(37)
            .map(|step| {
                let x = step as f32 * 1e-5;
                let exact = f64::from(x).exp();
                let unit = f64::from((exact as f32).next_up()) - f64::from(exact as f32);
                (f64::from(exp_of::<FMA>(x)) - exact).abs() / unit
            })
            .fold(0.0, f64::max)
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        assert!(worst_ulps::<true>() < 2.0, "fused: {}", worst_ulps::<true>());
        assert!(worst_ulps::<false>() < 2.0, "unfused: {}", worst_ulps::<false>());
    }

    #[test]
    fn exp_saturates_without_infinities() {
        assert_eq!(exp_of::<true>(0.0), 1.0);
        assert_eq!(exp_of::<true>(-1e30), 0.0);
        assert_eq!(exp_of::<true>(f32::NEG_INFINITY), 0.0);
        assert!(exp_of::<true>(1e30).is_finite());
        assert!(exp_of::<true>(f32::NAN).is_nan());
    }

    #[test]
    fn reductions_agree_with_f64_on_any_length() {
        let mut random = Random::new(1);
        for len in [0, 1, 2, 31, 32, 33, 63, 64, 100, 1000] {
            let draw = |random: &mut Random| -> Vec<f32> { (0..len).map(|_| random.unit()).collect() };
            let (x, y) = (draw(&mut random), draw(&mut random));
            let exact: f64 = x.iter().zip(&y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
            assert!((f64::from(dot(&x, &y)) - exact).abs() < 1e-4, "dot of {len}");
            let exact: f64 = x.iter().map(|&x| f64::from(x).exp()).sum();
            assert!((f64::from(sum_of_exp(&x, 0.0)) - exact).abs() < 1e-3, "sum of exp of {len}");
            assert_eq!(max(&x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
    }
}
