//! Q4_1: 32 quants of 4 bits above a minimum. Layout: d and m as F16, 16 bytes of pairs.

use super::multiversion::multiversioned;
use super::{extremes, nibbles, rounding};

multiversioned! {
    pub(super) fn encode(values: &[f32], bytes: &mut [u8]) {
        for (x, block) in values.as_chunks::<32>().0.iter().zip(bytes.as_chunks_mut::<20>().0) {
            let (low, high) = extremes::range(x);
            let d = (high - low) / 15.0;
            let quants = nibbles::quants(x, low, rounding::inverse(d), 0.5, 15);
            let [d0, d1, m0, m1, pairs @ ..] = block;
            [*d0, *d1] = rounding::half(d);
            [*m0, *m1] = rounding::half(low);
            nibbles::pack(&quants, pairs);
        }
    }

    pub(super) fn decode(bytes: &[u8], values: &mut [f32]) {
        for (x, block) in values.as_chunks_mut::<32>().0.iter_mut().zip(bytes.as_chunks::<20>().0) {
            let [d0, d1, m0, m1, pairs @ ..] = block;
            let (d, m) = (rounding::widened([*d0, *d1]), rounding::widened([*m0, *m1]));
            nibbles::unpack::<SET>(pairs, x, |q| f32::from(q) * d + m);
        }
    }
}
