//! Q8_0: 32 signed bytes under one scale. Layout: d as F16, 32 × i8.

use super::multiversion::multiversioned;
use super::{extremes, rounding};

multiversioned! {
    pub(super) fn encode(values: &[f32], bytes: &mut [u8]) {
        for (x, block) in values.as_chunks::<32>().0.iter().zip(bytes.as_chunks_mut::<34>().0) {
            let d = extremes::magnitude(x) / 127.0;
            let id = rounding::inverse(d);
            let [d0, d1, quants @ ..] = block;
            [*d0, *d1] = rounding::half(d);
            for (q, x) in quants.iter_mut().zip(x) {
                *q = rounding::rounded(x * id) as u8;
            }
        }
    }

    pub(super) fn decode(bytes: &[u8], values: &mut [f32]) {
        for (x, block) in values.as_chunks_mut::<32>().0.iter_mut().zip(bytes.as_chunks::<34>().0) {
            let [d0, d1, quants @ ..] = block;
            let d = rounding::widened([*d0, *d1]);
            for (x, &q) in x.iter_mut().zip(quants) {
                *x = f32::from(q as i8) * d;
            }
        }
    }
}
