//! Steps of the formats of 4 and 5 bits: two quants of a block share a byte, element `j` with element `j + 16`.

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

/// The low four bits of each; the first of a pair goes in as it is.
#[inline(always)]
pub(super) fn pack(quants: &[u8; 32], bytes: &mut [u8; 16]) {
    for (j, byte) in bytes.iter_mut().enumerate() {
        *byte = quants[j] | quants[j + 16] << 4;
    }
}

/// The reverse of [`pack`].
#[inline(always)]
pub(super) fn unpack(bytes: &[u8; 16]) -> [u8; 32] {
    let mut quants = [0; 32];
    for (j, byte) in bytes.iter().enumerate() {
        quants[j] = byte & 15;
        quants[j + 16] = byte >> 4;
    }
    quants
}

/// The fifth bits: bit `j` is that of element `j`.
#[inline(always)]
pub(super) fn fifth_bits(quants: &[u8; 32]) -> [u8; 4] {
    let mut bits = 0_u32;
    for (j, &q) in quants.iter().enumerate() {
        bits |= u32::from(q >> 4 & 1) << j;
    }
    bits.to_le_bytes()
}

/// Puts [`fifth_bits`] back.
#[inline(always)]
pub(super) fn with_fifth_bits(quants: &mut [u8; 32], bits: [u8; 4]) {
    let bits = u32::from_le_bytes(bits);
    for (j, q) in quants.iter_mut().enumerate() {
        *q |= ((bits >> j & 1) << 4) as u8;
    }
}
