//! Elements of one format seen as lanes of another.
#![allow(unsafe_code, reason = "instructions of a detected set")]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use burn::tensor::bf16;

use super::Lane;
use crate::cpu::vector;

/// Elements of one format seen as lanes of another.
pub(super) trait Source {
    /// Elements that make a lane.
    const PER_LANE: usize;

    /// The lane of the element at `at` and, if the lane is full, that `next` behind it.
    fn lane(&self, at: usize, next: usize, full: bool) -> u32;

    /// Lanes of neighbouring elements from `at` on.
    #[inline(always)]
    fn lanes(&self, at: usize, next: usize, full: bool, lanes: &mut [Lane]) {
        for (index, lane) in lanes.iter_mut().enumerate() {
            *lane = Lane::new(self.lane(at + index, next, full));
        }
    }

    /// Has the machine fetch `count` elements from `at` on, and for pairs from `next` behind it.
    fn prefetch(&self, at: usize, next: usize, count: usize);

    /// Sixteen lanes of neighbouring elements from `at` on, of which the first `elements` elements are there.
    ///
    /// # Safety
    /// AVX-512 is there and the elements lie in the source.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load(&self, at: usize, elements: usize) -> std::arch::x86_64::__m512i;

    /// Lanes of the first `count` of sixteen neighbouring lines: their elements from `at` on and, if lanes are full, those
    /// `next` behind.
    ///
    /// # Safety
    /// As above.
    #[cfg(target_arch = "x86_64")]
    unsafe fn across(&self, at: usize, next: usize, full: bool, count: usize) -> std::arch::x86_64::__m512i;
}

/// A hint, and nothing where the machine has none.
#[inline(always)]
fn fetch<T>(values: &[T], at: usize, count: usize) {
    #[cfg(target_arch = "x86_64")]
    for element in (at..at + count).step_by(64 / size_of::<T>()) {
        // SAFETY: a prefetch reads nothing and never faults; the place is computed without leaving the address space.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(values.as_ptr().wrapping_add(element).cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (values, at, count);
}

pub(super) struct Plain<'a> {
    pub(super) values: &'a [f32],
    pub(super) scale: f32,
}
pub(super) struct Widened<'a>(pub(super) &'a [bf16]);
pub(super) struct Rounded<'a> {
    pub(super) values: &'a [f32],
    pub(super) scale: f32,
}
pub(super) struct Pairs<'a>(pub(super) &'a [bf16]);

/// Lanes of two rows of neighbouring elements, or of one above zeros.
#[inline(always)]
fn join<T>(lanes: &mut [Lane], low: &[T], high: Option<&[T]>, bits: impl Fn(&T) -> u32) {
    let low = &low[..lanes.len()];
    match high.map(|high| &high[..low.len()]) {
        Some(high) => {
            for ((lane, low), high) in lanes.iter_mut().zip(low).zip(high) {
                *lane = Lane::new(bits(low) | bits(high) << 16);
            }
        }
        None => {
            for (lane, low) in lanes.iter_mut().zip(low) {
                *lane = Lane::new(bits(low));
            }
        }
    }
}

/// The bits of the nearest bf16.
#[inline(always)]
fn rounded(value: f32) -> u32 {
    u32::from(vector::narrowed(value).to_bits())
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn first_of_16(count: usize) -> __mmask16 {
    if count >= 16 { !0 } else { (1 << count) - 1 }
}

/// The first `count` of sixteen numbers, zeros behind them. Loads under a mask take several times as long as others on some
/// machines, so that only the last ones of a line have one.
///
/// # Safety
/// AVX-512 is there and the numbers can be read.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn sixteen_f32(from: *const f32, count: usize) -> __m512 {
    unsafe { if count >= 16 { _mm512_loadu_ps(from) } else { _mm512_maskz_loadu_ps(first_of_16(count), from) } }
}

/// As [`sixteen_f32`].
///
/// # Safety
/// As above.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn sixteen_bf16(from: *const bf16, count: usize) -> __m256i {
    unsafe {
        if count >= 16 {
            _mm256_loadu_si256(from.cast())
        } else {
            _mm256_maskz_loadu_epi16(first_of_16(count), from.cast())
        }
    }
}

/// The first `count` of sixteen numbers times `scale`, rounded as [`rounded`].
///
/// # Safety
/// AVX-512 is there and the numbers can be read.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn rounded_16(values: *const f32, count: usize, scale: f32) -> __m256i {
    unsafe {
        let values = sixteen_f32(values, count);
        let values = _mm512_mul_ps(values, _mm512_set1_ps(scale));
        let bits = _mm512_castps_si512(values);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let nearest = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(values, values);
        let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
        _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(_mm512_mask_blend_epi32(nan, nearest, quiet)))
    }
}

impl Source for Plain<'_> {
    const PER_LANE: usize = 1;
    #[inline(always)]
    fn prefetch(&self, at: usize, _: usize, count: usize) {
        fetch(self.values, at, count);
    }
    #[inline(always)]
    fn lane(&self, at: usize, _: usize, _: bool) -> u32 {
        (self.values[at] * self.scale).to_bits()
    }
    #[inline(always)]
    fn lanes(&self, at: usize, _: usize, _: bool, lanes: &mut [Lane]) {
        let values = &self.values[at..at + lanes.len()];
        for (lane, value) in lanes.iter_mut().zip(values) {
            *lane = Lane::new((value * self.scale).to_bits());
        }
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load(&self, at: usize, elements: usize) -> __m512i {
        unsafe {
            let values = sixteen_f32(self.values.as_ptr().add(at), elements);
            _mm512_castps_si512(_mm512_mul_ps(values, _mm512_set1_ps(self.scale)))
        }
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn across(&self, at: usize, _: usize, _: bool, count: usize) -> __m512i {
        unsafe { self.load(at, count) }
    }
}

impl Source for Widened<'_> {
    const PER_LANE: usize = 1;
    #[inline(always)]
    fn prefetch(&self, at: usize, _: usize, count: usize) {
        fetch(self.0, at, count);
    }
    #[inline(always)]
    fn lane(&self, at: usize, _: usize, _: bool) -> u32 {
        u32::from(self.0[at].to_bits()) << 16
    }
    #[inline(always)]
    fn lanes(&self, at: usize, _: usize, _: bool, lanes: &mut [Lane]) {
        let values = &self.0[at..at + lanes.len()];
        for (lane, value) in lanes.iter_mut().zip(values) {
            *lane = Lane::new(u32::from(value.to_bits()) << 16);
        }
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load(&self, at: usize, elements: usize) -> __m512i {
        unsafe {
            let values = sixteen_bf16(self.0.as_ptr().add(at), elements);
            _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(values))
        }
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn across(&self, at: usize, _: usize, _: bool, count: usize) -> __m512i {
        unsafe { self.load(at, count) }
    }
}

impl Source for Rounded<'_> {
    const PER_LANE: usize = 2;
    #[inline(always)]
    fn prefetch(&self, at: usize, next: usize, count: usize) {
        fetch(self.values, at, count);
        fetch(self.values, at + next, count);
    }
    #[inline(always)]
    fn lane(&self, at: usize, next: usize, full: bool) -> u32 {
        let high = if full { rounded(self.values[at + next] * self.scale) } else { 0 };
        rounded(self.values[at] * self.scale) | high << 16
    }
    #[inline(always)]
    fn lanes(&self, at: usize, next: usize, full: bool, lanes: &mut [Lane]) {
        let high = full.then(|| &self.values[at + next..]);
        join(lanes, &self.values[at..], high, |value| rounded(value * self.scale));
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load(&self, at: usize, elements: usize) -> __m512i {
        unsafe {
            let from = self.values.as_ptr().add(at);
            let low = rounded_16(from, elements, self.scale);
            let high = if elements > 16 {
                rounded_16(from.add(16), elements - 16, self.scale)
            } else {
                _mm256_setzero_si256()
            };
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
        }
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn across(&self, at: usize, next: usize, full: bool, count: usize) -> __m512i {
        unsafe {
            let from = self.values.as_ptr();
            let low = _mm512_cvtepu16_epi32(rounded_16(from.add(at), count, self.scale));
            if !full {
                return low;
            }
            let high = _mm512_cvtepu16_epi32(rounded_16(from.add(at + next), count, self.scale));
            _mm512_or_si512(low, _mm512_slli_epi32::<16>(high))
        }
    }
}

impl Source for Pairs<'_> {
    const PER_LANE: usize = 2;
    #[inline(always)]
    fn prefetch(&self, at: usize, next: usize, count: usize) {
        fetch(self.0, at, count);
        fetch(self.0, at + next, count);
    }
    #[inline(always)]
    fn lane(&self, at: usize, next: usize, full: bool) -> u32 {
        let high = if full { u32::from(self.0[at + next].to_bits()) } else { 0 };
        u32::from(self.0[at].to_bits()) | high << 16
    }
    #[inline(always)]
    fn lanes(&self, at: usize, next: usize, full: bool, lanes: &mut [Lane]) {
        let high = full.then(|| &self.0[at + next..]);
        join(lanes, &self.0[at..], high, |value: &bf16| u32::from(value.to_bits()));
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load(&self, at: usize, elements: usize) -> __m512i {
        unsafe {
            let from = self.0.as_ptr().add(at);
            if elements >= 32 {
                _mm512_loadu_si512(from.cast())
            } else {
                _mm512_maskz_loadu_epi16((1 << elements) - 1, from.cast())
            }
        }
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn across(&self, at: usize, next: usize, full: bool, count: usize) -> __m512i {
        let row = |at: usize| unsafe {
            let values = sixteen_bf16(self.0.as_ptr().add(at), count);
            _mm512_cvtepu16_epi32(values)
        };
        unsafe {
            let low = row(at);
            if full { _mm512_or_si512(low, _mm512_slli_epi32::<16>(row(at + next))) } else { low }
        }
    }
}
