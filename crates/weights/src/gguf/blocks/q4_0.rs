//! Q4_0: 32 quants of 4 bits around 8, under one scale. Layout: d as F16, 16 bytes of pairs.

use super::multiversion::multiversioned;
use super::{extremes, nibbles, rounding};

multiversioned! {
    pub(super) fn encode(values: &[f32], bytes: &mut [u8]) {
        for (x, block) in values.as_chunks::<32>().0.iter().zip(bytes.as_chunks_mut::<18>().0) {
            let d = extremes::farthest(x) / -8.0;
            let quants = nibbles::quants(x, 0.0, rounding::inverse(d), 8.5, 15);
            let [d0, d1, pairs @ ..] = block;
            [*d0, *d1] = rounding::half(d);
            nibbles::pack(&quants, pairs);
        }
    }

    pub(super) fn decode(bytes: &[u8], values: &mut [f32]) {
        for (x, block) in values.as_chunks_mut::<32>().0.iter_mut().zip(bytes.as_chunks::<18>().0) {
            let [d0, d1, pairs @ ..] = block;
            let d = rounding::widened([*d0, *d1]);
            nibbles::unpack::<SET>(pairs, x, |q| f32::from(q as i8 - 8) * d);
        }
    }
}
