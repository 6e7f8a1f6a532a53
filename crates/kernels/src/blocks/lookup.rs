//! Two codes of four bits a byte, the first in the upper half, as numbers of a table times a scale for each 64 of them.
#![allow(unsafe_code, reason = "instructions of a detected set")]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Numbers under one scale, and the bytes of their codes.
const BLOCK: usize = 64;
const PAIRS: usize = BLOCK / 2;

/// Decodes whole blocks. Every form multiplies the same two numbers, so all give the same bits.
pub(super) fn decode(table: &[f32; 16], codes: &[u8], scale: impl Fn(usize) -> f32, values: &mut [f32]) {
    assert!(codes.len().is_multiple_of(PAIRS) && values.len() == 2 * codes.len(), "lookup: whole blocks");
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
            // SAFETY: the features were detected, and there are as many numbers as codes.
            return unsafe { avx512(table, codes, scale, values) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            return unsafe { avx2(table, codes, scale, values) };
        }
    }
    plain(table, codes, scale, values);
}

fn plain(table: &[f32; 16], codes: &[u8], scale: impl Fn(usize) -> f32, values: &mut [f32]) {
    for (block, (codes, values)) in codes.chunks_exact(PAIRS).zip(values.chunks_exact_mut(BLOCK)).enumerate() {
        let scaled = table.map(|value| value * scale(block));
        for (pair, values) in codes.iter().zip(values.as_chunks_mut::<2>().0) {
            *values = [scaled[usize::from(pair >> 4)], scaled[usize::from(pair & 15)]];
        }
    }
}

/// The sixteen codes of eight bytes, a byte each, in order.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn codes_of_8(pairs: *const u8) -> __m128i {
    unsafe {
        let pairs = _mm_loadl_epi64(pairs.cast());
        let low = _mm_set1_epi8(15);
        let (first, second) = (_mm_and_si128(_mm_srli_epi16::<4>(pairs), low), _mm_and_si128(pairs, low));
        _mm_unpacklo_epi8(first, second)
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn avx512(table: &[f32; 16], codes: &[u8], scale: impl Fn(usize) -> f32, values: &mut [f32]) {
    // SAFETY: sixteen numbers lie in the table; eight bytes and sixteen numbers of a block are read and written at a time.
    unsafe {
        let table = _mm512_loadu_ps(table.as_ptr());
        for (block, (codes, values)) in codes.chunks_exact(PAIRS).zip(values.chunks_exact_mut(BLOCK)).enumerate() {
            let scaled = _mm512_mul_ps(table, _mm512_set1_ps(scale(block)));
            for part in 0..4 {
                let codes = _mm512_cvtepu8_epi32(codes_of_8(codes.as_ptr().add(8 * part)));
                _mm512_storeu_ps(values.as_mut_ptr().add(16 * part), _mm512_permutexvar_ps(codes, scaled));
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn avx2(table: &[f32; 16], codes: &[u8], scale: impl Fn(usize) -> f32, values: &mut [f32]) {
    // SAFETY: as above, eight numbers at a time.
    unsafe {
        let halves = [_mm256_loadu_ps(table.as_ptr()), _mm256_loadu_ps(table.as_ptr().add(8))];
        for (block, (codes, values)) in codes.chunks_exact(PAIRS).zip(values.chunks_exact_mut(BLOCK)).enumerate() {
            let scale = _mm256_set1_ps(scale(block));
            let [low, high] = halves.map(|half| _mm256_mul_ps(half, scale));
            for part in 0..4 {
                let sixteen = codes_of_8(codes.as_ptr().add(8 * part));
                for (half, codes) in [sixteen, _mm_unpackhi_epi64(sixteen, sixteen)].into_iter().enumerate() {
                    let codes = _mm256_cvtepu8_epi32(codes);
                    // The fourth bit of a code, as the sign that a blend looks at, says which half of the table it means.
                    let is_high = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes));
                    let low = _mm256_permutevar8x32_ps(low, codes);
                    let high = _mm256_permutevar8x32_ps(high, codes);
                    let to = values.as_mut_ptr().add(16 * part + 8 * half);
                    _mm256_storeu_ps(to, _mm256_blendv_ps(low, high, is_high));
                }
            }
        }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn all_forms_give_the_same_bits() {
        let table: [f32; 16] = std::array::from_fn(|i| (i as f32 - 7.3) * 0.13);
        let codes: Vec<u8> = (0..PAIRS * 5).map(|i| (i * 37 + 11) as u8).collect();
        let scale = |block: usize| 0.031 * (block as f32 + 1.7);
        let mut expected = vec![0.0; 2 * codes.len()];
        plain(&table, &codes, scale, &mut expected);
        assert_eq!(expected[..2], [table[0] * scale(0), table[11] * scale(0)]);
        let mut values = vec![f32::NAN; expected.len()];
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the feature was detected.
            unsafe { avx2(&table, &codes, scale, &mut values) };
            assert_eq!(values, expected);
        }
        values.fill(f32::NAN);
        decode(&table, &codes, scale, &mut values);
        assert_eq!(values, expected);
    }
}
