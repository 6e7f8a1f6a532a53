//! Steps of the formats of 4 and 5 bits: two quants of a block share a byte, element `j` with element `j + 16`.
//!
//! Loops that encode go straight from numbers to bytes: over arrays in between the compiler does not vectorise them well.
#![allow(unsafe_code, reason = "instructions of a detected set")]

#[cfg(target_arch = "x86_64")]
use super::multiversion::set;
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
pub(super) fn unpack<const SET: u8>(bytes: &[u8; 16], x: &mut [f32; 32], number: impl Fn(u8) -> f32) {
    let [low, high] = halves(x);
    let table = table(number);
    look_up::<SET, false>(&table, bytes, low);
    look_up::<SET, true>(&table, bytes, high);
}

/// Numbers from pairs of four bits and the fifth bits.
#[inline(always)]
pub(super) fn unpack_five<const SET: u8>(
    bytes: &[u8; 16],
    fifth: [u8; 4],
    x: &mut [f32; 32],
    number: impl Fn(u8) -> f32,
) {
    let [low, high] = halves(x);
    let tables = [table(&number), table(|q| number(q + 16))];
    let [f0, f1, f2, f3] = fifth;
    look_up_five::<SET, false>(&tables, bytes, u16::from_le_bytes([f0, f1]), low);
    look_up_five::<SET, true>(&tables, bytes, u16::from_le_bytes([f2, f3]), high);
}

/// What sixteen codes stand for. A loop: maps over arrays are calls here and there.
#[inline(always)]
pub(super) fn table(number: impl Fn(u8) -> f32) -> [f32; 16] {
    let mut table = [0.0; 16];
    for (q, value) in (0..).zip(&mut table) {
        *value = number(q);
    }
    table
}

#[inline(always)]
fn halves(x: &mut [f32; 32]) -> [&mut [f32; 16]; 2] {
    let [low, high] = x.as_chunks_mut::<16>().0 else { unreachable!("invariant: twice 16") };
    [low, high]
}

/// Of sixteen bytes the lower four bits, or the upper ones, as numbers of a table. A table takes two vector operations to
/// make, and each number one to find; the same arithmetic number by number does not vectorise well.
#[inline(always)]
pub(super) fn look_up<const SET: u8, const HIGH: bool>(table: &[f32; 16], bytes: &[u8; 16], x: &mut [f32; 16]) {
    #[cfg(target_arch = "x86_64")]
    if SET == set::AVX512 {
        // SAFETY: bodies of this set run where it was detected.
        return unsafe { lookup::avx512::<HIGH>(table, bytes, x) };
    } else if SET == set::AVX2 {
        // SAFETY: as above.
        return unsafe { lookup::avx2::<HIGH>(table, bytes, x) };
    }
    for (x, byte) in x.iter_mut().zip(bytes) {
        *x = table[usize::from(if HIGH { byte >> 4 } else { byte & 15 })];
    }
}

/// The same with a fifth bit each, which says in which of two tables.
#[inline(always)]
fn look_up_five<const SET: u8, const HIGH: bool>(
    tables: &[[f32; 16]; 2],
    bytes: &[u8; 16],
    fifth: u16,
    x: &mut [f32; 16],
) {
    #[cfg(target_arch = "x86_64")]
    if SET == set::AVX512 {
        // SAFETY: as above.
        return unsafe { lookup::avx512_five::<HIGH>(tables, bytes, fifth, x) };
    }
    for (j, (x, byte)) in x.iter_mut().zip(bytes).enumerate() {
        *x = tables[usize::from(fifth >> j & 1)][usize::from(if HIGH { byte >> 4 } else { byte & 15 })];
    }
}

/// Tables in registers.
#[cfg(target_arch = "x86_64")]
mod lookup {
    use std::arch::x86_64::*;

    /// The bytes as indices, of which only the lowest bits are looked at.
    ///
    /// # Safety
    /// AVX-512 is there.
    #[inline(always)]
    unsafe fn indices<const HIGH: bool>(bytes: &[u8; 16]) -> __m512i {
        unsafe {
            let wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.as_ptr().cast()));
            if HIGH { _mm512_srli_epi32::<4>(wide) } else { wide }
        }
    }

    /// # Safety
    /// AVX-512 is there.
    #[inline(always)]
    pub(super) unsafe fn avx512<const HIGH: bool>(table: &[f32; 16], bytes: &[u8; 16], x: &mut [f32; 16]) {
        unsafe {
            let table = _mm512_loadu_ps(table.as_ptr());
            _mm512_storeu_ps(x.as_mut_ptr(), _mm512_permutexvar_ps(indices::<HIGH>(bytes), table));
        }
    }

    /// # Safety
    /// AVX-512 is there.
    #[inline(always)]
    pub(super) unsafe fn avx512_five<const HIGH: bool>(
        tables: &[[f32; 16]; 2],
        bytes: &[u8; 16],
        fifth: u16,
        x: &mut [f32; 16],
    ) {
        unsafe {
            let (low, high) = (_mm512_loadu_ps(tables[0].as_ptr()), _mm512_loadu_ps(tables[1].as_ptr()));
            let indices = indices::<HIGH>(bytes);
            let found = _mm512_permutexvar_ps(indices, low);
            _mm512_storeu_ps(x.as_mut_ptr(), _mm512_mask_permutexvar_ps(found, fifth, indices, high));
        }
    }

    /// # Safety
    /// AVX2 is there.
    #[inline(always)]
    pub(super) unsafe fn avx2<const HIGH: bool>(table: &[f32; 16], bytes: &[u8; 16], x: &mut [f32; 16]) {
        unsafe {
            let (low, high) = (_mm256_loadu_ps(table.as_ptr()), _mm256_loadu_ps(table.as_ptr().add(8)));
            for part in 0..2 {
                let wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(bytes.as_ptr().add(8 * part).cast()));
                let codes = if HIGH { _mm256_srli_epi32::<4>(wide) } else { wide };
                // The fourth bit of a code, as the sign that a blend looks at, says in which half of the table it is.
                let is_high = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes));
                let (low, high) = (_mm256_permutevar8x32_ps(low, codes), _mm256_permutevar8x32_ps(high, codes));
                _mm256_storeu_ps(x.as_mut_ptr().add(8 * part), _mm256_blendv_ps(low, high, is_high));
            }
        }
    }
}
