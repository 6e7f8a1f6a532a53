//! Q5_0: 32 quants of 5 bits around 16, under one scale. Layout: d as F16, 4 bytes of fifth bits, 16 bytes of pairs.

use super::multiversion::multiversioned;
use super::{extremes, nibbles, rounding};

multiversioned! {
    pub(super) fn encode(values: &[f32], bytes: &mut [u8]) {
        for (x, block) in values.as_chunks::<32>().0.iter().zip(bytes.as_chunks_mut::<22>().0) {
            let d = extremes::farthest(x) / -16.0;
            let mut quants = nibbles::quants(x, 0.0, rounding::inverse(d), 16.5, 31);
            let [d0, d1, h0, h1, h2, h3, pairs @ ..] = block;
            [*d0, *d1] = rounding::half(d);
            [*h0, *h1, *h2, *h3] = nibbles::take_fifth_bits(&mut quants);
            nibbles::pack(&quants, pairs);
        }
    }

    pub(super) fn decode(bytes: &[u8], values: &mut [f32]) {
        for (x, block) in values.as_chunks_mut::<32>().0.iter_mut().zip(bytes.as_chunks::<22>().0) {
            let [d0, d1, h0, h1, h2, h3, pairs @ ..] = block;
            let d = rounding::widened([*d0, *d1]);
            nibbles::unpack_five::<SET>(pairs, [*h0, *h1, *h2, *h3], x, |q| f32::from(q as i8 - 16) * d);
        }
    }
}
