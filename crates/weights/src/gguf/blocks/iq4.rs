//! IQ4_NL and IQ4_XS: quants of 4 bits that stand for unevenly spaced numbers.
//!
//! IQ4_NL is laid out as Q4_0 is. IQ4_XS, read only: d as F16, the upper two bits of 8 scales, 4 bytes of their lower
//! four, then 8 times 16 bytes of pairs.

use super::fit::{Lane, WIDTH};
use super::multiversion::multiversioned;
use super::{extremes, nibbles, rounding};

/// What the quants stand for.
const LEVELS: [f32; 16] =
    [-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0];
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
            expand::<SET>(rounding::widened([*d0, *d1]), pairs, x);
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
                expand::<SET>(d * f32::from(scale as i8 - 32), pairs, x);
            }
        }
    }
}

#[inline(always)]
fn expand<const SET: u8>(d: f32, pairs: &[u8; 16], x: &mut [f32; 32]) {
    nibbles::unpack::<SET>(pairs, x, |q| d * LEVELS[usize::from(q & 15)]);
}

/// The level nearest to a number, the upper one of two. Differences to the levels are exact near the middle of two.
#[inline(always)]
fn nearest(x: f32) -> u8 {
    // Counted down, so that what is no number gets the last.
    let mut q = 15;
    for pair in LEVELS.windows(2) {
        q -= u8::from(x < (pair[0] + pair[1]) / 2.0);
    }
    q
}

/// [`nearest`], as what it stands for, for a number times each of some factors.
#[inline(always)]
fn levels(x: f32, factors: &Lane) -> Lane {
    let mut levels = [LEVELS[0]; WIDTH];
    for pair in LEVELS.windows(2) {
        let (middle, gap) = ((pair[0] + pair[1]) / 2.0, pair[1] - pair[0]);
        for (level, factor) in levels.iter_mut().zip(factors) {
            *level += if factor * x < middle { 0.0 } else { gap };
        }
    }
    levels
}

/// The scale by weighted least squares, a number weighing its square. The candidates are the lanes.
#[inline(always)]
fn fit(x: &[f32; 32]) -> f32 {
    let farthest = extremes::farthest(x);
    if farthest.abs() < NOTHING {
        return 0.0;
    }
    let mut factors = [1.0 / (-farthest / LEVELS[0]); WIDTH];
    for (factor, k) in factors[1..].iter_mut().zip(-TRIES..=TRIES) {
        *factor = (k as f32 + LEVELS[0]) / farthest;
    }
    let (mut sum_xl, mut sum_l2) = ([0.0; WIDTH], [0.0; WIDTH]);
    for &x in x {
        let (levels, weight) = (levels(x, &factors), x * x);
        for lane in 0..WIDTH {
            let weighted = weight * levels[lane];
            sum_xl[lane] += weighted * x;
            sum_l2[lane] += weighted * levels[lane];
        }
    }
    let mut d = sum_xl[0] / sum_l2[0];
    let mut best = d * sum_xl[0];
    for (sum_xl, sum_l2) in sum_xl.into_iter().zip(sum_l2).skip(1) {
        if sum_l2 > 0.0 && sum_xl * sum_xl > best * sum_l2 {
            d = sum_xl / sum_l2;
            best = d * sum_xl;
        }
    }
    d
}
