//! Q3_K, read only: 256 quants of 3 bits around 4 in groups of 16 with a scale of 6 bits.
//!
//! Layout: 32 bytes of third bits, 64 bytes of the others (as in Q2_K), 12 bytes of scales, d as F16. The scales' lower four
//! bits are in the first 8 bytes, their upper two in the last 4.

use super::multiversion::multiversioned;
use super::rounding;

multiversioned! {
    pub(super) fn decode(bytes: &[u8], values: &mut [f32]) {
        for (x, block) in values.as_chunks_mut::<256>().0.iter_mut().zip(bytes.as_chunks::<110>().0) {
            let (third, rest) = block.split_at(32);
            let (quants, rest) = rest.split_at(64);
            let (scales, d) = rest.split_at(12);
            let d = rounding::widened([d[0], d[1]]);
            for (group, x) in x.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                let low = scales[group % 8] >> (group / 8 * 4) & 15;
                let high = scales[8 + group % 4] >> (group / 4 * 2) & 3;
                let step = d * f32::from((low | high << 4) as i8 - 32);
                let (half, pair, side) = (group / 8, group % 8 / 2, group % 2);
                let quants = &quants[32 * half + 16 * side..][..16];
                for ((x, q), third) in x.iter_mut().zip(quants).zip(&third[16 * side..][..16]) {
                    let q = q >> (2 * pair) & 3 | (third >> (4 * half + pair) & 1) << 2;
                    *x = step * f32::from(q as i8 - 4);
                }
            }
        }
    }
}
