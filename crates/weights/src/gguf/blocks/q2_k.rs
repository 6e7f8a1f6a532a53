//! Q2_K, read only: 256 quants of 2 bits in groups of 16 with a scale and a minimum of 4 bits.
//!
//! Layout: 16 bytes of scale and minimum, 64 bytes of quants, d and dmin as F16. Of 128 numbers, `i`, `i + 32`, `i + 64`
//! and `i + 96` share a byte.

use super::multiversion::multiversioned;
use super::rounding;

multiversioned! {
    pub(super) fn decode(bytes: &[u8], values: &mut [f32]) {
        for (x, block) in values.as_chunks_mut::<256>().0.iter_mut().zip(bytes.as_chunks::<84>().0) {
            let (scales, rest) = block.split_at(16);
            let (quants, rest) = rest.split_at(64);
            let (d, dmin) = (rounding::widened([rest[0], rest[1]]), rounding::widened([rest[2], rest[3]]));
            for (group, (x, scale)) in x.as_chunks_mut::<16>().0.iter_mut().zip(scales).enumerate() {
                let (step, drop) = (d * f32::from(scale & 15), dmin * f32::from(scale >> 4));
                let (half, pair, side) = (group / 8, group % 8 / 2, group % 2);
                for (x, q) in x.iter_mut().zip(&quants[32 * half + 16 * side..][..16]) {
                    *x = step * f32::from(q >> (2 * pair) & 3) - drop;
                }
            }
        }
    }
}
