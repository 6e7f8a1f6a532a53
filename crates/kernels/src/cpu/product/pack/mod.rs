//! Operands of a product laid out as the tiles read them: panels of some lines (rows of the left operand, columns of the
//! right one), lane by lane along the inner dimension.
//!
//! Packing converts: to bf16 pairs or to f32, whichever the tiles multiply. A pair that the inner dimension does not fill
//! and lines that the panel lacks are zeros.

mod blocks;
mod source;
#[cfg(target_arch = "x86_64")]
mod vectors;

use std::mem::MaybeUninit;

use burn::tensor::bf16;

use super::ahead::Ahead;
use super::{Elements, Matrix, Precision};
use source::{Pairs, Plain, Rounded, Source, Widened};

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

    /// The memory they lie in, to be fetched before they are packed.
    pub(super) fn ahead(self) -> Ahead {
        let (first, size) = match self.elements {
            Elements::F32(values) => (values.as_ptr().cast(), size_of::<f32>()),
            Elements::Bf16(values) => (values.as_ptr().cast(), size_of::<bf16>()),
            // Few bytes, and decoding them takes longer than fetching.
            Elements::Blocks(..) => return Ahead::NOTHING,
        };
        match (self.inner_stride, self.stride) {
            (1, stride) => Ahead::rows(first, self.count, self.inner * size, stride * size),
            (stride, 1) => Ahead::rows(first, self.inner, self.count * size, stride * size),
            _ => Ahead::NOTHING,
        }
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
            (Elements::Blocks(packed, first), _) => self.pack_blocks(packed, first, panels, widths, precision),
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
                            vectors::transposed(
                                source,
                                first * lines.stride,
                                lines.stride,
                                count,
                                lines.inner,
                                panel,
                                width,
                            );
                        }
                    }
                } else if lines.stride == 1 {
                    // SAFETY: as above.
                    unsafe { vectors::across(source, lines, panels, widths) }
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
