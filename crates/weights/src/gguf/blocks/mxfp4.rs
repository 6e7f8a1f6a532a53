//! MXFP4: 32 floating-point numbers of 4 bits under a power of two. Layout: the exponent, 16 bytes of pairs as in Q4_0.

use super::multiversion::multiversioned;
use super::{extremes, nibbles, rounding};

/// What the quants stand for: twice the values of E2M1.
const LEVELS: [f32; 16] = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

multiversioned! {
    pub(super) fn encode(values: &[f32], bytes: &mut [u8]) {
        for (x, block) in values.as_chunks::<32>().0.iter().zip(bytes.as_chunks_mut::<17>().0) {
            let [exponent, pairs @ ..] = block;
            *exponent = exponent_of(extremes::magnitude(x));
            let d = scale(*exponent);
            nibbles::pack(&x.map(|x| nearest(x, d)), pairs);
        }
    }

    pub(super) fn decode(bytes: &[u8], values: &mut [f32]) {
        for (x, block) in values.as_chunks_mut::<32>().0.iter_mut().zip(bytes.as_chunks::<17>().0) {
            let [exponent, pairs @ ..] = block;
            let d = scale(*exponent);
            nibbles::unpack::<SET>(pairs, x, |q| LEVELS[usize::from(q & 15)] * d);
        }
    }
}

/// The exponent that puts the largest magnitude between 4 and 8. Numbers just below a power of two count as that power,
/// because the logarithm is rounded to F32.
fn exponent_of(magnitude: f32) -> u8 {
    if magnitude > 0.0 {
        rounding::truncated((f64::from(magnitude).log2() as f32).floor() - 2.0 + 127.0) as u8
    } else {
        0
    }
}

/// Half of the power of two that an exponent stands for.
#[inline(always)]
fn scale(exponent: u8) -> f32 {
    f32::from_bits(if exponent < 2 { 0x0020_0000 << exponent } else { (u32::from(exponent) - 1) << 23 })
}

/// The quant of the level nearest to a number, the first of several.
#[inline(always)]
fn nearest(x: f32, d: f32) -> u8 {
    let (mut best, mut distance) = (0, x.abs());
    for (q, level) in (1..).zip(&LEVELS[1..]) {
        let next = (level * d - x).abs();
        best = if next < distance { q } else { best };
        distance = if next < distance { next } else { distance };
    }
    best
}
