//! Packing out of blocks: a few lines at a time are decoded into a buffer that stays in the first caches, and packed from
//! there as any f32 numbers are. So a product has the bits that it has with the decoded numbers.

use std::cell::RefCell;

use super::{Elements, Lane, Lines, Precision};
use crate::blocks::Packed;

/// Numbers of a line that are decoded at a time, where the inner dimension is dense: a multiple of every format's block.
const STRETCH: usize = 512;
/// Numbers that are decoded at a time, where neighbouring lines are: those of a step, for an even number of steps.
const STEPS_OF: usize = 8192;

thread_local! {
    static DECODED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl Lines<'_> {
    /// As `pack_strips`, of lines that begin at `first` and are neither empty nor none.
    pub(super) fn pack_blocks(
        self,
        packed: &dyn Packed,
        first: usize,
        panels: &mut [Lane],
        widths: [usize; 2],
        precision: Precision,
    ) {
        DECODED.with_borrow_mut(|decoded| {
            if self.inner_stride == 1 {
                self.decode_along(packed, first, panels, widths, precision, decoded);
            } else if self.stride == 1 {
                self.decode_across(packed, first, panels, widths, precision, decoded);
            } else {
                // No weight lies like this.
                decoded.resize((self.count - 1) * self.stride + (self.inner - 1) * self.inner_stride + 1, 0.0);
                packed.decode(first, decoded);
                Lines { elements: Elements::F32(decoded), ..self }.pack_strips(panels, widths, precision);
            }
        });
    }

    /// Strip by strip, a stretch of all its lines at a time.
    fn decode_along(
        self,
        packed: &dyn Packed,
        first: usize,
        panels: &mut [Lane],
        [width, last]: [usize; 2],
        precision: Precision,
        decoded: &mut Vec<f32>,
    ) {
        let (steps, strips) = (precision.steps(self.inner), self.count.div_ceil(width));
        // Where in its line the part begins: stretches end at multiples of their length, which blocks do not cross.
        let column = if self.stride > 1 { first % self.stride } else { 0 };
        decoded.resize(width.min(self.count) * STRETCH, 0.0);
        for (strip, panel) in panels.chunks_mut(steps * width).enumerate() {
            let line = strip * width;
            let (count, width) = (width.min(self.count - line), if strip + 1 == strips { last } else { width });
            let mut start = 0;
            while start < self.inner {
                let to_border = STRETCH - (column + start) % STRETCH;
                // Pairs stay together.
                let here = (to_border + to_border % precision.per_lane()).min(STRETCH).min(self.inner - start);
                for (index, values) in decoded.chunks_exact_mut(here).take(count).enumerate() {
                    packed.decode(first + (line + index) * self.stride + start, values);
                }
                let lines = Lines { elements: Elements::F32(decoded), stride: here, count, inner: here, ..self };
                let from = start / precision.per_lane() * width;
                let panel = &mut panel[from..from + precision.steps(here) * width];
                lines.pack_strips(panel, [width; 2], precision);
                start += here;
            }
        }
    }

    /// Some steps of all lines at a time.
    fn decode_across(
        self,
        packed: &dyn Packed,
        first: usize,
        panels: &mut [Lane],
        [width, last]: [usize; 2],
        precision: Precision,
        decoded: &mut Vec<f32>,
    ) {
        let (steps, strips) = (precision.steps(self.inner), self.count.div_ceil(width));
        let at_once = (STEPS_OF / self.count).max(2).next_multiple_of(2);
        decoded.resize(at_once * self.count, 0.0);
        for start in (0..self.inner).step_by(at_once) {
            let here = at_once.min(self.inner - start);
            for (index, values) in decoded.chunks_exact_mut(self.count).take(here).enumerate() {
                packed.decode(first + (start + index) * self.inner_stride, values);
            }
            for (strip, panel) in panels.chunks_mut(steps * width).enumerate() {
                let line = strip * width;
                let (count, width) = (width.min(self.count - line), if strip + 1 == strips { last } else { width });
                let lines = Lines {
                    elements: Elements::F32(&decoded[line..]),
                    inner_stride: self.count,
                    count,
                    inner: here,
                    ..self
                };
                let from = start / precision.per_lane() * width;
                lines.pack_strips(&mut panel[from..from + precision.steps(here) * width], [width; 2], precision);
            }
        }
    }
}
