//! One output, cut into tasks of threads and those into tiles.

use std::ops::Range;

use rayon::prelude::*;

use super::ahead::Ahead;
use super::finish::{Finish, Place, Target};
use super::left::Rows;
use super::pack::{Lane, Lines};
use super::tile::{Kernels, Strips, TILE, Tile};
use super::{Elements, Matrix, Precision, Threads};

/// Lanes of the inner dimension in one panel: it shares the second-level cache with the left operand's.
const BLOCK_STEPS: usize = 1024;
/// Multiply-adds below which sharing a product costs more than it gains.
const SHARE_FROM: usize = 128 * 128 * 128;
/// Multiply-adds that a task should have at least.
const TASK: usize = 1 << 20;
/// Lanes of the right operand's panels that are packed at a time: half of a common second-level cache.
const GROUP_LANES: usize = 128 * 1024;
/// Neighbouring columns of blocks that are decoded together: no format has longer blocks, so none is decoded twice.
const DECODED_COLUMNS: usize = 256;
/// Panels of the left operand for which the right one is not worth packing.
const DIRECT_PANELS: usize = 2;

/// A sum of products on its way to its output.
pub(super) struct Job<'a> {
    pub(super) out: Target,
    pub(super) terms: &'a [(Rows<'a>, Matrix<'a>)],
    pub(super) finish: Finish<'a>,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Rows of a panel.
    pub(super) height: usize,
    pub(super) kernels: &'static Kernels,
    pub(super) precision: Precision,
}

/// A stretch of one term's inner dimension, in lanes.
#[derive(Clone, Copy)]
struct Stretch {
    term: usize,
    first: usize,
    steps: usize,
}

impl Job<'_> {
    /// Stretches that are multiplied in one go: one panel of the right operand each, together no longer than a block.
    fn stages(&self) -> Vec<Vec<Stretch>> {
        let mut stages: Vec<Vec<Stretch>> = vec![Vec::new()];
        let mut room = BLOCK_STEPS;
        for (term, (left, _)) in self.terms.iter().enumerate() {
            let all = self.precision.steps(left.inner());
            let mut first = 0;
            while first < all {
                if room == 0 {
                    stages.push(Vec::new());
                    room = BLOCK_STEPS;
                }
                // A rest that is hardly worth a stage of its own joins the one before it.
                let left_over = all - first;
                let steps = if left_over <= room + room / 8 { left_over } else { room };
                stages.last_mut().expect("invariant: one at least").push(Stretch { term, first, steps });
                first += steps;
                room = room.saturating_sub(steps);
            }
        }
        stages
    }

    /// Computes all of it.
    pub(super) fn run(&self, threads: Threads) {
        let work = self.rows * self.columns * self.terms.iter().map(|(left, _)| left.inner()).sum::<usize>();
        let stages = self.stages();
        let width = self.kernels.columns();
        let (panels, strips) = (self.rows.div_ceil(self.height), self.columns.div_ceil(width));
        let unit = self.unit();
        let units = strips.div_ceil(unit);
        if threads == Threads::Caller || work < SHARE_FROM {
            return self.tasks(&stages, 0..strips, 0..panels, &mut Scratch::default());
        }
        // Columns first: each task packs the right operand's panels it needs. Tasks that share columns decode them each for
        // itself, so where that is work there are fewer.
        let of_thread = if unit > 1 { 2 } else { 4 };
        let tasks = (of_thread * rayon::current_num_threads()).min(work.div_ceil(TASK)).max(1);
        let across = units.min(tasks);
        let down = panels.min(tasks.div_ceil(across));
        let share = |count: usize, parts: usize, part: usize| (part * count / parts)..((part + 1) * count / parts);
        (0..across * down).into_par_iter().for_each_init(Scratch::default, |scratch, task| {
            let units = share(units, across, task / down);
            let strips = units.start * unit..strips.min(units.end * unit);
            self.tasks(&stages, strips, share(panels, down, task % down), scratch);
        });
    }

    /// Strips that are packed together, at least.
    fn unit(&self) -> usize {
        let is_decoded = |right: &Matrix| matches!(right.elements, Elements::Blocks(..)) && right.column_stride == 1;
        let width = self.kernels.columns();
        if self.terms.iter().any(|(_, right)| is_decoded(right)) { (DECODED_COLUMNS / width).max(1) } else { 1 }
    }

    fn tasks(&self, stages: &[Vec<Stretch>], strips: Range<usize>, panels: Range<usize>, scratch: &mut Scratch) {
        let width = self.kernels.columns();
        // A panel of the left operand meets several of the right one while it is in the first-level cache.
        let steps = stages.iter().map(|stage| stage.iter().map(|stretch| stretch.steps).sum()).max().unwrap_or(0);
        let group = (GROUP_LANES / (width * steps).max(1)).max(1);
        let packed = group.next_multiple_of(self.unit());
        let tiles = if stages.len() > 1 { panels.len() * packed.min(strips.len()) } else { 1 };
        scratch.tiles.resize(tiles * TILE, 0.0);
        let plain = self.finish.bias.is_none() && self.finish.scale == 1.0;
        for first in strips.clone().step_by(packed) {
            let strips = first..strips.end.min(first + packed);
            for (stage, stretches) in stages.iter().enumerate() {
                self.rights(stretches, strips.clone(), panels.len(), scratch);
                let last = stage + 1 == stages.len();
                // What is packed next comes out of memory meanwhile. Behind the last strip that is most likely the next task's.
                let (next, of_strips) = match stages.get(stage + 1) {
                    Some(next) => (next, strips.clone()),
                    None => (&stages[0], strips.end..(strips.end + group).min(self.columns.div_ceil(width))),
                };
                let mut wanted = next.iter().map(|stretch| self.right_lines(*stretch, of_strips.clone()).ahead());
                let mut ahead = Ahead::NOTHING;
                let groups = strips.clone().step_by(group).map(|first| first..strips.end.min(first + group));
                for (group, panel) in groups.flat_map(|group| panels.clone().map(move |panel| (group.clone(), panel))) {
                    let rows = self.height.min(self.rows - panel * self.height);
                    self.lefts(stretches, panel, scratch);
                    for (index, strip) in group.map(|strip| (strip - strips.start, strip)) {
                        if ahead.is_over() {
                            ahead = wanted.next().unwrap_or(Ahead::NOTHING);
                        }
                        let (first_column, columns, width) = self.strip(strip);
                        let place = Place { first_row: panel * self.height, rows, first_column, columns };
                        let (tile, height) = self.tile(rows, width);
                        let operands = &scratch.strips[index * stretches.len()..][..stretches.len()];
                        // SAFETY: both operands hold as many lanes as `steps` says of the tile's rows and columns; a whole tile
                        // lies in the output, and any tile is no larger than TILE; no other task has the place; the
                        // kernels were chosen by what the machine has.
                        unsafe {
                            match self.out.direct(place).filter(|_| plain && rows == height && columns == width) {
                                Some(out) => {
                                    let resume = stage > 0 || self.finish.accumulate;
                                    tile(operands, out, self.out.row_stride(), resume, &mut ahead);
                                }
                                None => {
                                    let slot =
                                        if tiles == 1 { 0 } else { (panel - panels.start) * strips.len() + index };
                                    let values = &mut scratch.tiles[slot * TILE..][..TILE];
                                    tile(operands, values.as_mut_ptr(), width, stage > 0, &mut ahead);
                                    if last {
                                        self.out.put(values, width, place, self.finish);
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    /// First column of a strip, its columns, and those of its tiles.
    fn strip(&self, strip: usize) -> (usize, usize, usize) {
        let (width, lanes) = (self.kernels.columns(), self.kernels.lanes);
        let first = strip * width;
        let columns = (self.columns - first).min(width);
        (first, columns, if columns <= lanes { lanes } else { width })
    }

    /// The tile for so many rows of a panel, and the rows it computes.
    fn tile(&self, rows: usize, width: usize) -> (Tile, usize) {
        match self.terms[0].0 {
            Rows::Packed(_) => (self.kernels.tile(self.height, width), self.height),
            Rows::InPlace(_) => (self.kernels.direct_tile(rows, width), rows),
        }
    }

    /// A stretch of the right operand's columns in these strips.
    fn right_lines(&self, stretch: Stretch, strips: Range<usize>) -> Lines<'_> {
        let (width, per_lane) = (self.kernels.columns(), self.precision.per_lane());
        let (left, right) = self.terms[stretch.term];
        let (first, start) = (strips.start * width, stretch.first * per_lane);
        let columns = (strips.end * width).min(self.columns).saturating_sub(first);
        let inner = (stretch.steps * per_lane).min(left.inner() - start);
        Lines::columns(right).part(first.min(self.columns), columns, start, inner)
    }

    /// Puts where a panel of the left operand lies beside each stretch of the right one.
    fn lefts(&self, stretches: &[Stretch], panel: usize, scratch: &mut Scratch) {
        for (index, stretch) in stretches.iter().enumerate() {
            let (left, row, step) = self.terms[stretch.term].0.lanes(panel * self.height, self.height, stretch.first);
            for strip in scratch.strips.iter_mut().skip(index).step_by(stretches.len()) {
                *strip = Strips { left, row, step, ..*strip };
            }
        }
    }

    /// Where tiles find the right operand's lanes, by strip and stretch: packed, or for few rows where they lie, if they lie
    /// as tiles read them.
    fn rights(&self, stretches: &[Stretch], strips: Range<usize>, panels: usize, scratch: &mut Scratch) {
        let per_lane = self.precision.per_lane();
        let steps: usize = stretches.iter().map(|stretch| stretch.steps).sum();
        let size = strips.len() * steps * self.kernels.columns();
        if scratch.right.len() < size {
            scratch.right.resize(size, Lane::new(0));
        }
        let nowhere = Strips::of_right(0, std::ptr::null(), 0);
        scratch.strips.clear();
        scratch.strips.resize(strips.len() * stretches.len(), nowhere);
        let (first, _, width) = self.strip(strips.start);
        let (last, columns, last_width) = self.strip(strips.end - 1);
        let mut rest = scratch.right.as_mut_slice();
        for (index, stretch) in stretches.iter().enumerate() {
            let right = self.terms[stretch.term].1;
            let start = stretch.first * per_lane;
            let of_strips = scratch.strips.iter_mut().skip(index).step_by(stretches.len()).enumerate();
            if panels <= DIRECT_PANELS
                && (last + columns - first).is_multiple_of(width)
                && self.precision == Precision::F32
                && let (Elements::F32(values), 1) = (right.elements, right.column_stride)
            {
                let here = &values[start * right.row_stride + first..];
                for (strip, operands) in of_strips {
                    *operands =
                        Strips::of_right(stretch.steps, here[strip * width..].as_ptr().cast(), right.row_stride);
                }
                continue;
            }
            let size = stretch.steps * ((strips.len() - 1) * width + last_width);
            let (panels, behind) = rest.split_at_mut(size);
            rest = behind;
            let lines = self.right_lines(*stretch, strips.clone());
            lines.pack_strips(panels, [width, last_width], self.precision);
            for (strip, operands) in of_strips {
                let panel = panels[strip * stretch.steps * width..].as_ptr().cast();
                let width = if strip + 1 == strips.len() { last_width } else { width };
                *operands = Strips::of_right(stretch.steps, panel, width);
            }
        }
    }
}

/// Buffers of one thread.
#[derive(Default)]
struct Scratch {
    right: Vec<Lane>,
    tiles: Vec<f32>,
    strips: Vec<Strips>,
}

// SAFETY: the pointers in `strips` are written and used within one call.
unsafe impl Send for Scratch {}
