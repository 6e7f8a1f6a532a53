//! Q5_1: 32 quants of 5 bits above a minimum. Layout: d and m as F16, 4 bytes of fifth bits, 16 bytes of pairs.

use super::multiversion::multiversioned;
use super::{extremes, nibbles, rounding};

multiversioned! {
    pub(super) fn encode(values: &[f32], bytes: &mut [u8]) {
        for (x, block) in values.as_chunks::<32>().0.iter().zip(bytes.as_chunks_mut::<24>().0) {
            let (low, high) = extremes::range(x);
            let d = (high - low) / 31.0;
            let mut quants = nibbles::quants(x, low, rounding::inverse(d), 0.5, i8::MAX);
            let [d0, d1, m0, m1, h0, h1, h2, h3, pairs @ ..] = block;
            [*d0, *d1] = rounding::half(d);
            [*m0, *m1] = rounding::half(low);
            [*h0, *h1, *h2, *h3] = nibbles::take_fifth_bits(&mut quants);
            nibbles::pack(&quants, pairs);
        }
    }

    pub(super) fn decode(bytes: &[u8], values: &mut [f32]) {
        for (x, block) in values.as_chunks_mut::<32>().0.iter_mut().zip(bytes.as_chunks::<24>().0) {
            let [d0, d1, m0, m1, h0, h1, h2, h3, pairs @ ..] = block;
            let (d, m) = (rounding::widened([*d0, *d1]), rounding::widened([*m0, *m1]));
            nibbles::unpack_five::<SET>(pairs, [*h0, *h1, *h2, *h3], x, |q| f32::from(q) * d + m);
        }
    }
}
