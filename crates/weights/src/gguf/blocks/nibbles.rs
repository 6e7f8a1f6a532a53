//! Steps of the formats of 4 and 5 bits: two quants of a block share a byte, element `j` with element `j + 16`.
//!
//! Loops go straight from bytes to numbers and back: over arrays in between the compiler does not vectorise them well.

use super::rounding;

/// Quants `min(limit, trunc((x - base)·id + shift))` of a block; what C makes of numbers out of range included.
#[inline(always)]
pub(super) fn quants(x: &[f32; 32], base: f32, id: f32, shift: f32, limit: i8) -> [u8; 32] {
    let mut quants = [0; 32];
    for (q, x) in quants.iter_mut().zip(x) {
        *q = (rounding::truncated((x - base) * id + shift) as i8).min(limit) as u8;
    }
    quants
}

/// Four bits each; more of the first of a pair go in as they are.
#[inline(always)]
pub(super) fn pack(quants: &[u8; 32], bytes: &mut [u8; 16]) {
    for (j, byte) in bytes.iter_mut().enumerate() {
        *byte = quants[j] | quants[j + 16] << 4;
    }
}

/// The fifth bits of a block, bit `j` that of element `j`; they are taken out of `quants`.
#[inline(always)]
pub(super) fn take_fifth_bits(quants: &mut [u8; 32]) -> [u8; 4] {
    let mut bits = [0; 4];
    for (bits, quants) in bits.iter_mut().zip(quants.as_chunks_mut::<8>().0) {
        let eight = u64::from_le_bytes(*quants);
        // The product brings the lowest bit of byte `j` to bit `56 + j`.
        *bits = ((eight >> 4 & 0x0101_0101_0101_0101).wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
        *quants = (eight & 0x0f0f_0f0f_0f0f_0f0f).to_le_bytes();
    }
    bits
}

/// Numbers from pairs of four bits.
#[inline(always)]
pub(super) fn unpack(bytes: &[u8; 16], x: &mut [f32; 32], number: impl Fn(u8) -> f32) {
    let (low, high) = x.split_at_mut(16);
    for (x, byte) in low.iter_mut().zip(bytes) {
        *x = number(byte & 15);
    }
    for (x, byte) in high.iter_mut().zip(bytes) {
        *x = number(byte >> 4);
    }
}

/// Numbers from pairs of four bits and the fifth bits.
#[inline(always)]
pub(super) fn unpack_five(bytes: &[u8; 16], fifth: [u8; 4], x: &mut [f32; 32], number: impl Fn(u8) -> f32) {
    let fifth = u32::from_le_bytes(fifth);
    let (low, high) = x.split_at_mut(16);
    for (j, (x, byte)) in low.iter_mut().zip(bytes).enumerate() {
        *x = number(byte & 15 | ((fifth >> j & 1) as u8) << 4);
    }
    for (j, (x, byte)) in high.iter_mut().zip(bytes).enumerate() {
        *x = number(byte >> 4 | ((fifth >> (j + 16) & 1) as u8) << 4);
    }
}
