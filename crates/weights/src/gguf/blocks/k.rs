//! What Q4_K and Q5_K share: 8 sub-blocks of 32, each with a scale and a minimum of 6 bits under two F16.
//!
//! Layout: d and dmin as F16, 12 bytes of scales and minimums, then the quants.

use super::fit::{Fit, Search, WIDTH, fit};
use super::nibbles::{look_up, table};
use super::rounding;

/// Numbers of a block.
pub(super) const BLOCK: usize = 256;
/// Blocks whose sub-blocks fill the lanes of a search.
pub(super) const BLOCKS: usize = WIDTH / 8;

/// Scales, minimums and quants of a block, before quants are packed.
pub(super) struct Parts {
    d: [u8; 2],
    dmin: [u8; 2],
    scales: [u8; 12],
    pub(super) quants: [u8; BLOCK],
}

impl Parts {
    /// What the block begins with.
    #[inline(always)]
    pub(super) fn head(&self) -> [u8; 16] {
        let mut head = [0; 16];
        head[..2].copy_from_slice(&self.d);
        head[2..4].copy_from_slice(&self.dmin);
        head[4..].copy_from_slice(&self.scales);
        head
    }
}

/// Finds the parts of up to [`BLOCKS`] blocks at once.
#[inline(always)]
pub(super) fn parts(x: &[[f32; BLOCK]], search: Search, mut put: impl FnMut(usize, &Parts)) {
    let mut columns = [[0.0; WIDTH]; 32];
    for (lane, sub) in x.as_flattened().as_chunks::<32>().0.iter().enumerate() {
        for (column, &x) in columns.iter_mut().zip(sub) {
            column[lane] = x;
        }
    }
    let fit = fit(&columns, search);
    for (block, x) in x.iter().enumerate() {
        put(block, &assembled(x, &fit, 8 * block, search));
    }
}

/// Rounds scales and minimums of a block to 6 bits, and its numbers to what these make of them.
#[inline(always)]
fn assembled(x: &[f32; BLOCK], fit: &Fit, first: usize, search: Search) -> Parts {
    let lanes = first..first + 8;
    let (scale, max_scale) = six_bits(&fit.scale[lanes.clone()]);
    let (min, max_min) = six_bits(&fit.drop[lanes]);
    let [d, dmin] = [max_scale, max_min].map(|max| rounding::half(max / 63.0));
    let mut quants = [0; BLOCK];
    for (j, (x, quants)) in x.as_chunks::<32>().0.iter().zip(quants.as_chunks_mut::<32>().0).enumerate() {
        let step = rounding::widened(d) * f32::from(scale[j]);
        if step != 0.0 {
            let drop = rounding::widened(dmin) * f32::from(min[j]);
            for (q, x) in quants.iter_mut().zip(x) {
                *q = rounding::nearest((x + drop) / step).clamp(0, search.limit as i32) as u8;
            }
        } else {
            // The search's own quants stay.
            let (inverse, base) = (fit.inverse[first + j], fit.base[first + j]);
            for (q, x) in quants.iter_mut().zip(x) {
                *q = rounding::nearest(inverse * (x - base)).clamp(0, search.limit as i32) as u8;
            }
        }
    }
    Parts { d, dmin, scales: pack(scale, min), quants }
}

/// Numbers as multiples of a 63rd of the largest, and that one.
#[inline(always)]
fn six_bits(x: &[f32]) -> ([u8; 8], f32) {
    let mut max = 0.0;
    for &x in x {
        max = if x > max { x } else { max };
    }
    let inverse = if max > 0.0 { 63.0 / max } else { 0.0 };
    let mut bits = [0; 8];
    for (bits, &x) in bits.iter_mut().zip(x) {
        *bits = (rounding::nearest(inverse * x) as u8).min(63);
    }
    (bits, max)
}

/// Six bits each: the first four sub-blocks in bytes of their own, whose upper bits take those of the other four.
#[inline(always)]
fn pack(scale: [u8; 8], min: [u8; 8]) -> [u8; 12] {
    let mut bytes = [0; 12];
    for j in 0..4 {
        bytes[j] = scale[j] | scale[j + 4] >> 4 << 6;
        bytes[j + 4] = min[j] | min[j + 4] >> 4 << 6;
        bytes[j + 8] = scale[j + 4] & 15 | min[j + 4] << 4;
    }
    bytes
}

/// The reverse of [`pack`].
#[inline(always)]
fn unpack(bytes: [u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut scale, mut min) = ([0; 8], [0; 8]);
    for j in 0..4 {
        scale[j] = bytes[j] & 63;
        min[j] = bytes[j + 4] & 63;
        scale[j + 4] = bytes[j + 8] & 15 | bytes[j] >> 6 << 4;
        min[j + 4] = bytes[j + 8] >> 4 | bytes[j + 4] >> 6 << 4;
    }
    (scale, min)
}

/// The factor and the drop of each sub-block.
#[inline(always)]
pub(super) fn steps(head: &[u8; 16]) -> ([f32; 8], [f32; 8]) {
    let [d0, d1, m0, m1, scales @ ..] = *head;
    let (d, dmin) = (rounding::widened([d0, d1]), rounding::widened([m0, m1]));
    let (scale, min) = unpack(scales);
    let (mut step, mut drop) = ([0.0; 8], [0.0; 8]);
    for j in 0..8 {
        step[j] = d * f32::from(scale[j]);
        drop[j] = dmin * f32::from(min[j]);
    }
    (step, drop)
}

/// Four bits each: of 64 numbers, the first 32 in the lower halves of 32 bytes and the others in the upper ones.
#[inline(always)]
pub(super) fn pack_nibbles(quants: &[u8; BLOCK], bytes: &mut [u8; 128]) {
    for (quants, bytes) in quants.as_chunks::<64>().0.iter().zip(bytes.as_chunks_mut::<32>().0) {
        for (j, byte) in bytes.iter_mut().enumerate() {
            *byte = quants[j] & 15 | quants[j + 32] << 4;
        }
    }
}

/// Numbers from [`pack_nibbles`]: `number` takes a sub-block and four bits.
#[inline(always)]
pub(super) fn look_up_nibbles<const SET: u8>(bytes: &[u8], x: &mut [f32; BLOCK], number: impl Fn(usize, u8) -> f32) {
    for (pair, (x, bytes)) in x.as_chunks_mut::<64>().0.iter_mut().zip(bytes.as_chunks::<32>().0).enumerate() {
        let tables = [table(|q| number(2 * pair, q)), table(|q| number(2 * pair + 1, q))];
        let (x, bytes) = (x.as_chunks_mut::<16>().0, bytes.as_chunks::<16>().0);
        for half in 0..2 {
            look_up::<SET, false>(&tables[0], &bytes[half], &mut x[half]);
            look_up::<SET, true>(&tables[1], &bytes[half], &mut x[2 + half]);
        }
    }
}

/// Numbers from [`pack_nibbles`]; `number` takes a sub-block, an index into it, and four bits.
#[inline(always)]
pub(super) fn unpack_nibbles(bytes: &[u8], x: &mut [f32; BLOCK], number: impl Fn(usize, usize, u8) -> f32) {
    for (pair, (x, bytes)) in x.as_chunks_mut::<64>().0.iter_mut().zip(bytes.as_chunks::<32>().0).enumerate() {
        let (low, high) = x.split_at_mut(32);
        for (i, (x, byte)) in low.iter_mut().zip(bytes).enumerate() {
            *x = number(2 * pair, i, byte & 15);
        }
        for (i, (x, byte)) in high.iter_mut().zip(bytes).enumerate() {
            *x = number(2 * pair + 1, i, byte >> 4);
        }
    }
}
