//! IQ4_NL and IQ4_XS: quants of 4 bits that stand for unevenly spaced numbers.
//!
//! IQ4_NL is laid out as Q4_0 is. IQ4_XS, read only: d as F16, the upper two bits of 8 scales, 4 bytes of their lower
//! four, then 8 times 16 bytes of pairs.

use super::multiversion::multiversioned;
use super::{extremes, nibbles, rounding};

/// What the quants stand for.
const LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// Candidate scales put the farthest number at `LEVELS[0] + k` for `k` from `-TRIES` to `TRIES`.
const TRIES: i32 = 7;
/// Below it nothing but zeros is seen.
const NOTHING: f32 = 1e-15;

multiversioned! {
    pub(super) fn encode_nl(values: &[f32], bytes: &mut [u8]) {
        for (x, block) in values.as_chunks::<32>().0.iter().zip(bytes.as_chunks_mut::<18>().0) {
            let d = fit(x);
            let inverse = rounding::inverse(d);
            let quants = x.map(|x| nearest(inverse * x));
            let [d0, d1, pairs @ ..] = block;
            [*d0, *d1] = rounding::half(d);
            nibbles::pack(&quants, pairs);
        }
    }

    pub(super) fn decode_nl(bytes: &[u8], values: &mut [f32]) {
        for (x, block) in values.as_chunks_mut::<32>().0.iter_mut().zip(bytes.as_chunks::<18>().0) {
            let [d0, d1, pairs @ ..] = block;
            expand(rounding::widened([*d0, *d1]), pairs, x);
        }
    }

    pub(super) fn decode_xs(bytes: &[u8], values: &mut [f32]) {
        for (x, block) in values.as_chunks_mut::<256>().0.iter_mut().zip(bytes.as_chunks::<136>().0) {
            let [d0, d1, h0, h1, ..] = *block;
            let (d, high) = (rounding::widened([d0, d1]), u16::from_le_bytes([h0, h1]));
            let subs = x.as_chunks_mut::<32>().0.iter_mut().zip(block[8..].as_chunks::<16>().0);
            for (j, (x, pairs)) in subs.enumerate() {
                let low = block[4 + j / 2] >> (j % 2 * 4) & 15;
                let scale = low | ((high >> (2 * j) & 3) << 4) as u8;
                expand(d * f32::from(scale as i8 - 32), pairs, x);
            }
        }
    }
}

#[inline(always)]
fn expand(d: f32, pairs: &[u8; 16], x: &mut [f32; 32]) {
    nibbles::unpack(pairs, x, |q| d * f32::from(LEVELS[usize::from(q & 15)]));
}

/// The level nearest to a number, the upper one of two.
#[inline(always)]
fn nearest(x: f32) -> u8 {
    let [first, .., last] = LEVELS.map(f32::from);
    if x <= first {
        return 0;
    }
    if x >= last {
        return 15;
    }
    let upper = LEVELS.iter().position(|&level| x < f32::from(level)).unwrap_or(15).max(1);
    let [below, above] = [upper - 1, upper].map(|q| f32::from(LEVELS[q]));
    (if x - below < above - x { upper - 1 } else { upper }) as u8
}

/// The scale by weighted least squares, a number weighing its square.
#[inline(always)]
fn fit(x: &[f32; 32]) -> f32 {
    let farthest = extremes::farthest(x);
    if farthest.abs() < NOTHING {
        return 0.0;
    }
    let first = f32::from(LEVELS[0]);
    let sums = |inverse: f32| {
        let (mut sum_xl, mut sum_l2) = (0.0_f32, 0.0_f32);
        for &x in x {
            let (level, weight) = (f32::from(LEVELS[usize::from(nearest(inverse * x))]), x * x);
            sum_xl += weight * level * x;
            sum_l2 += weight * level * level;
        }
        (sum_xl, sum_l2)
    };
    let (sum_xl, sum_l2) = sums(1.0 / (-farthest / first));
    let mut d = sum_xl / sum_l2;
    let mut best = d * sum_xl;
    for k in -TRIES..=TRIES {
        let (sum_xl, sum_l2) = sums((k as f32 + first) / farthest);
        if sum_l2 > 0.0 && sum_xl * sum_xl > best * sum_l2 {
            d = sum_xl / sum_l2;
            best = d * sum_xl;
        }
    }
    d
}
