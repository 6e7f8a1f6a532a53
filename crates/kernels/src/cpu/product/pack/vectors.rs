//! Packing in AVX-512: sixteen lanes at a time.
#![allow(unsafe_code, reason = "instructions of a detected set")]

use std::arch::x86_64::{
    __m512i, _mm512_mask_storeu_epi32, _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_storeu_si512,
    _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use super::source::{Source, first_of_16};
use super::{Lane, Lines, PREFETCHED};

/// Lines with a dense inner dimension, sixteen of them and sixteen steps at a time.
///
/// # Safety
/// AVX-512 is there, `count` lines of `inner` elements, `stride` apart from `first` on, lie in the source, and the panel has a lane for
/// each step and each of `width ≥ count` lines.
#[inline(always)]
pub(super) unsafe fn transposed<S: Source>(
    source: &S,
    first: usize,
    stride: usize,
    count: usize,
    inner: usize,
    panel: &mut [Lane],
    width: usize,
) {
    let steps = inner.div_ceil(S::PER_LANE);
    let mut line = 0;
    while line < width {
        let stored = first_of_16(width - line);
        let mut step = 0;
        while step < steps {
            let at = step * S::PER_LANE;
            let mut block = [unsafe { _mm512_setzero_si512() }; 16];
            for (index, lanes) in block.iter_mut().enumerate() {
                if line + index < count {
                    *lanes = unsafe { source.load(first + (line + index) * stride + at, inner - at) };
                }
            }
            let block = unsafe { square(block) };
            for (index, lanes) in block.into_iter().enumerate() {
                if step + index < steps {
                    let place = (step + index) * width + line;
                    // SAFETY: sixteen lanes lie in the panel, and those beyond the width of a step belong to steps that are
                    // written later; or the mask leaves out what lies beyond.
                    unsafe {
                        let fits = width - line >= 16 || line == 0 && place + 16 <= panel.len();
                        let place: *mut i32 = panel.as_mut_ptr().add(place).cast();
                        if fits {
                            _mm512_storeu_si512(place.cast(), lanes);
                        } else {
                            _mm512_mask_storeu_epi32(place, stored, lanes);
                        }
                    }
                }
            }
            step += 16;
        }
        line += 16;
    }
}

/// Neighbouring lines, step by step over all strips.
///
/// # Safety
/// AVX-512 is there, and the lines and panels are those that `Lines::pack_strips` has checked.
#[inline(always)]
pub(super) unsafe fn across<S: Source>(source: &S, lines: Lines<'_>, panels: &mut [Lane], [width, last]: [usize; 2]) {
    let (steps, strips) = (lines.inner.div_ceil(S::PER_LANE), lines.count.div_ceil(width));
    let whole = lines.inner / S::PER_LANE;
    let (len, panels) = (panels.len(), panels.as_mut_ptr());
    for step in 0..steps {
        let (at, full) = (step * S::PER_LANE * lines.inner_stride, step < whole);
        if step + PREFETCHED < whole {
            source.prefetch(at + PREFETCHED * S::PER_LANE * lines.inner_stride, lines.inner_stride, lines.count);
        }
        for strip in 0..strips {
            let (first, here) = (strip * width, if strip + 1 == strips { last } else { width });
            let count = here.min(lines.count - first);
            let place = strip * steps * width + step * here;
            let end = if strip + 1 == strips { len } else { (strip + 1) * steps * width };
            let mut line = 0;
            while line < here {
                // SAFETY: the lines lie in the source; sixteen lanes lie in the strip's panel and those beyond its width
                // belong to the next step, which is written later, or the mask leaves them out.
                unsafe {
                    let lanes = source.across(
                        at + first + line.min(count),
                        lines.inner_stride,
                        full,
                        count.saturating_sub(line),
                    );
                    let to: *mut i32 = panels.add(place + line).cast();
                    if here - line >= 16 || line == 0 && place + 16 <= end {
                        _mm512_storeu_si512(to.cast(), lanes);
                    } else {
                        _mm512_mask_storeu_epi32(to, first_of_16(here - line), lanes);
                    }
                }
                line += 16;
            }
        }
    }
}

/// Sixteen vectors of sixteen lanes, rows and columns swapped: pairs, fours, then halves and quarters of vectors.
#[inline(always)]
unsafe fn square(rows: [__m512i; 16]) -> [__m512i; 16] {
    unsafe {
        let mut pairs = rows;
        for i in 0..8 {
            pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
            pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
        }
        let mut fours = pairs;
        for i in 0..4 {
            for j in 0..2 {
                let (low, high) = (pairs[4 * i + j], pairs[4 * i + 2 + j]);
                fours[4 * i + 2 * j] = _mm512_unpacklo_epi64(low, high);
                fours[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(low, high);
            }
        }
        // Quarter q of fours[4i + c] holds column 4q + c of rows 4i..4i + 4.
        let mut columns = fours;
        for c in 0..4 {
            let [a, b, d, e] = [fours[c], fours[4 + c], fours[8 + c], fours[12 + c]];
            let low = _mm512_shuffle_i32x4::<0b01_00_01_00>(a, b);
            let high = _mm512_shuffle_i32x4::<0b11_10_11_10>(a, b);
            let low2 = _mm512_shuffle_i32x4::<0b01_00_01_00>(d, e);
            let high2 = _mm512_shuffle_i32x4::<0b11_10_11_10>(d, e);
            columns[c] = _mm512_shuffle_i32x4::<0b10_00_10_00>(low, low2);
            columns[4 + c] = _mm512_shuffle_i32x4::<0b11_01_11_01>(low, low2);
            columns[8 + c] = _mm512_shuffle_i32x4::<0b10_00_10_00>(high, high2);
            columns[12 + c] = _mm512_shuffle_i32x4::<0b11_01_11_01>(high, high2);
        }
        columns
    }
}
