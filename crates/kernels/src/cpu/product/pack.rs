//! Operands of a product laid out as the tiles read them: panels of some lines (rows of the left operand, columns of the
//! right one), lane by lane along the inner dimension.
//!
//! Packing converts: to bf16 pairs or to f32, whichever the tiles multiply. A pair that the inner dimension does not fill
//! and lines that the panel lacks are zeros.

use std::mem::MaybeUninit;

use burn::tensor::bf16;

use super::{Elements, Matrix, Precision};
use crate::cpu::vector;

/// Four bytes of a panel that is being made.
pub(super) type Lane = MaybeUninit<u32>;

/// Some lines of an operand and a stretch of its inner dimension.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lines<'a> {
    elements: Elements<'a>,
    /// Elements between lines, and between steps of the inner dimension.
    stride: usize,
    inner_stride: usize,
    count: usize,
    inner: usize,
    /// Factor of f32 elements.
    scale: f32,
}

impl<'a> Lines<'a> {
    /// Rows of a left operand.
    pub(super) fn rows(matrix: Matrix<'a>) -> Self {
        Self {
            elements: matrix.elements,
            stride: matrix.row_stride,
            inner_stride: matrix.column_stride,
            count: matrix.rows,
            inner: matrix.columns,
            scale: 1.0,
        }
    }

    /// Columns of a right operand.
    pub(super) fn columns(matrix: Matrix<'a>) -> Self {
        Self::rows(matrix.transposed())
    }

    pub(super) fn scaled(self, scale: f32) -> Self {
        Self { scale, ..self }
    }

    /// `count` lines from `first` on, and of those `inner` elements from `start` on.
    pub(super) fn part(self, first: usize, count: usize, start: usize, inner: usize) -> Self {
        assert!(first + count <= self.count && start + inner <= self.inner, "pack: lines outside of the operand");
        let skipped = first * self.stride + start * self.inner_stride;
        let elements = if count * inner == 0 { self.elements.from(0) } else { self.elements.from(skipped) };
        Self { elements, count, inner, ..self }
    }

    /// Writes the lines to all of `panel`, `[steps, width]`.
    pub(super) fn pack(self, panel: &mut [Lane], width: usize, precision: Precision) {
        self.pack_strips(panel, [width; 2], precision);
    }

    /// Writes them to the panels of several strips, one after another: each of `width` lines but the last, whose panel is
    /// `last` wide.
    pub(super) fn pack_strips(self, panels: &mut [Lane], [width, last]: [usize; 2], precision: Precision) {
        let (steps, strips) = (precision.steps(self.inner), self.count.div_ceil(width).max(1));
        let rest = self.count - (strips - 1) * width;
        assert!(rest <= last && panels.len() == steps * ((strips - 1) * width + last), "pack: panels of another size");
        if self.count == 0 || self.inner == 0 {
            return panels.fill(Lane::new(0));
        }
        let end = (self.count - 1) * self.stride + (self.inner - 1) * self.inner_stride;
        assert!(end < self.elements.len(), "pack: lines inside the operand");
        let widths = [width, last];
        match (self.elements, precision) {
            (Elements::F32(values), Precision::F32) => {
                self.pack_from(&Plain { values, scale: self.scale }, panels, widths);
            }
            (Elements::Bf16(values), Precision::F32) => self.pack_from(&Widened(values), panels, widths),
            (Elements::F32(values), Precision::Bf16) => {
                self.pack_from(&Rounded { values, scale: self.scale }, panels, widths);
            }
            (Elements::Bf16(values), Precision::Bf16) => self.pack_from(&Pairs(values), panels, widths),
        }
    }

    fn pack_from<S: Source>(self, source: &S, panels: &mut [Lane], widths: [usize; 2]) {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
            fn avx512<S: Source>(lines: Lines<'_>, source: &S, panels: &mut [Lane], widths: [usize; 2]) {
                if lines.inner_stride == 1 {
                    let [width, last] = widths;
                    let steps = lines.inner.div_ceil(S::PER_LANE);
                    for (strip, panel) in panels.chunks_mut(steps * width).enumerate() {
                        let first = strip * width;
                        let (count, width) =
                            (width.min(lines.count - first), if panel.len() == steps * width { width } else { last });
                        // SAFETY: `Lines::pack_strips` has checked that all lines lie in the source, and the size of the panels.
                        unsafe {
                            transpose::lines(
                                source,
                                first * lines.stride,
                                lines.stride,
                                count,
                                lines.inner,
                                panel,
                                width,
                            )
                        }
                    }
                } else {
                    lines.pack_plainly(source, panels, widths);
                }
            }
            #[target_feature(enable = "avx2,fma")]
            fn avx2<S: Source>(lines: Lines<'_>, source: &S, panels: &mut [Lane], widths: [usize; 2]) {
                lines.pack_plainly(source, panels, widths);
            }
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
            {
                // SAFETY: the features were detected.
                return unsafe { avx512(self, source, panels, widths) };
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                // SAFETY: as above.
                return unsafe { avx2(self, source, panels, widths) };
            }
        }
        self.pack_plainly(source, panels, widths);
    }

    /// Step by step over all strips, so that lines which are neighbours in memory are read in one go; else element by
    /// element.
    #[inline(always)]
    fn pack_plainly<S: Source>(self, source: &S, panels: &mut [Lane], [width, last]: [usize; 2]) {
        let (steps, strips) = (self.inner.div_ceil(S::PER_LANE), self.count.div_ceil(width));
        let whole = self.inner / S::PER_LANE;
        for step in 0..steps {
            let (at, paired) = (step * S::PER_LANE * self.inner_stride, step < whole);
            if self.stride == 1 && step + PREFETCHED < whole {
                source.prefetch(at + PREFETCHED * S::PER_LANE * self.inner_stride, self.inner_stride, self.count);
            }
            for strip in 0..strips {
                let (first, here) = (strip * width, if strip + 1 == strips { last } else { width });
                let count = here.min(self.count - first);
                let lanes = &mut panels[strip * steps * width + step * here..][..here];
                if self.stride == 1 {
                    source.lanes(at + first, self.inner_stride, paired, &mut lanes[..count]);
                } else {
                    for (line, lane) in lanes[..count].iter_mut().enumerate() {
                        let at = at + (first + line) * self.stride;
                        *lane = Lane::new(source.lane(at, self.inner_stride, paired));
                    }
                }
                lanes[count..].fill(Lane::new(0));
            }
        }
    }
}

/// Steps that are fetched ahead: rows of a large matrix are pages apart, which no machine foresees.
const PREFETCHED: usize = 4;

/// Elements of one format seen as lanes of another.
trait Source {
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

struct Plain<'a> {
    values: &'a [f32],
    scale: f32,
}
struct Widened<'a>(&'a [bf16]);
struct Rounded<'a> {
    values: &'a [f32],
    scale: f32,
}
struct Pairs<'a>(&'a [bf16]);

/// The bits of the nearest bf16.
#[inline(always)]
fn rounded(value: f32) -> u32 {
    u32::from(vector::narrowed(value).to_bits())
}

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn first_of_16(count: usize) -> __mmask16 {
    if count >= 16 { !0 } else { (1 << count) - 1 }
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
            let values = _mm512_maskz_loadu_ps(first_of_16(elements), self.values.as_ptr().add(at));
            _mm512_castps_si512(_mm512_mul_ps(values, _mm512_set1_ps(self.scale)))
        }
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
            let values = _mm256_maskz_loadu_epi16(first_of_16(elements), self.0.as_ptr().add(at).cast());
            _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(values))
        }
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
        let low = &self.values[at..at + lanes.len()];
        if full {
            let high = &self.values[at + next..at + next + lanes.len()];
            for ((lane, low), high) in lanes.iter_mut().zip(low).zip(high) {
                *lane = Lane::new(rounded(low * self.scale) | rounded(high * self.scale) << 16);
            }
        } else {
            for (lane, low) in lanes.iter_mut().zip(low) {
                *lane = Lane::new(rounded(low * self.scale));
            }
        }
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load(&self, at: usize, elements: usize) -> __m512i {
        #[inline(always)]
        unsafe fn half(values: *const f32, count: usize, scale: f32) -> __m256i {
            unsafe {
                let values = _mm512_maskz_loadu_ps(first_of_16(count), values);
                let values = _mm512_mul_ps(values, _mm512_set1_ps(scale));
                let bits = _mm512_castps_si512(values);
                let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
                let nearest = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
                let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(values, values);
                let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
                _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(_mm512_mask_blend_epi32(nan, nearest, quiet)))
            }
        }
        unsafe {
            let from = self.values.as_ptr().add(at);
            let low = half(from, elements, self.scale);
            let high =
                if elements > 16 { half(from.add(16), elements - 16, self.scale) } else { _mm256_setzero_si256() };
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
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
        let low = &self.0[at..at + lanes.len()];
        if full {
            let high = &self.0[at + next..at + next + lanes.len()];
            for ((lane, low), high) in lanes.iter_mut().zip(low).zip(high) {
                *lane = Lane::new(u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16);
            }
        } else {
            for (lane, low) in lanes.iter_mut().zip(low) {
                *lane = Lane::new(u32::from(low.to_bits()));
            }
        }
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load(&self, at: usize, elements: usize) -> __m512i {
        let mask: __mmask32 = if elements >= 32 { !0 } else { (1 << elements) - 1 };
        unsafe { _mm512_maskz_loadu_epi16(mask, self.0.as_ptr().add(at).cast()) }
    }
}

#[cfg(target_arch = "x86_64")]
mod transpose {
    use super::*;

    /// Lines with a dense inner dimension, sixteen of them and sixteen steps at a time.
    ///
    /// # Safety
    /// AVX-512 is there, `count` lines of `inner` elements, `stride` apart from `first` on, lie in the source, and the panel has a lane for
    /// each step and each of `width ≥ count` lines.
    #[inline(always)]
    pub(super) unsafe fn lines<S: Source>(
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
}
