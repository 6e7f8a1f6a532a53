//! Attention on the CPU in blocks of queries: no score outlives its block, no key or value is repeated or copied.

use std::sync::Arc;

use burn::Tensor;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::backward::{Saved, Step};
use crate::Segments;
use crate::cpu::operand::{Operand, from_vec, record, slice};
use crate::cpu::product::{Matrix, Threads, product};
use crate::cpu::vector;

/// `None` when an operand is not an f32 tensor on burn-flex.
pub(super) fn attention(
    q: &Tensor<3>,
    k: &Tensor<3>,
    v: &Tensor<3>,
    segments: &Arc<Segments>,
    scale: f32,
    window: Option<usize>,
) -> Option<Tensor<3>> {
    let ([tokens, heads, size], [_, kv_heads, _]) = (q.dims(), k.dims());
    let layout = Layout { heads, kv_heads, size, scale, window };
    let parents = [Operand::of(q)?, Operand::of(k)?, Operand::of(v)?];
    let [q, k, v] = parents.each_ref().map(Operand::contiguous);

    let (mut out, mut lse) = (vec![0.0; tokens * heads * size], vec![0.0; tokens * heads]);
    let (mut rest_out, mut rest_lse) = (out.as_mut_slice(), lse.as_mut_slice());
    let mut blocks = Vec::new();
    for block in segments.iter().flat_map(|(start, len)| layout.blocks(start, len, 0..len)) {
        let (block_out, after_out) = rest_out.split_at_mut(block.rows() * heads * size);
        let (block_lse, after_lse) = rest_lse.split_at_mut(block.rows() * heads);
        (rest_out, rest_lse) = (after_out, after_lse);
        blocks.push((block, block_out, block_lse));
    }
    blocks.into_par_iter().for_each_init(Scratch::default, |scratch, (block, out, lse)| {
        for kv_head in 0..kv_heads {
            layout.attend(block, kv_head, [&q, &k, &v], scratch, out, lse);
        }
    });
    let out = from_vec(out, [tokens, heads, size]);
    let saved_out = out.clone();
    Some(record(Step, parents, out, || Saved { q, k, v, out: saved_out, lse, segments: segments.clone(), layout }))
}

/// Sizes and the rule of visibility.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) size: usize,
    pub(super) scale: f32,
    pub(super) window: Option<usize>,
}

/// Queries `first..end` of the segment at `start` and the keys `from..end` any of them sees; all but `start` counted
/// from the segment's beginning.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub(super) start: usize,
    pub(super) first: usize,
    pub(super) end: usize,
    pub(super) from: usize,
}

impl Block {
    pub(super) fn rows(&self) -> usize {
        self.end - self.first
    }

    pub(super) fn keys(&self) -> usize {
        self.end - self.from
    }
}

/// Buffers of a task, used again for every block.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Scaled queries, `[group·rows, d]`, all rows of a head together.
    pub(super) q: Vec<f32>,
    /// Scores, then weights: `[group·rows, keys]`.
    pub(super) scores: Vec<f32>,
    /// Output of the block, or gradient of its queries: `[group·rows, d]`.
    pub(super) out: Vec<f32>,
    /// Upstream gradients, `[group·rows, d]`.
    pub(super) dout: Vec<f32>,
    /// Gradients of the scores, `[group·rows, keys]`.
    pub(super) dscores: Vec<f32>,
}

/// Scores held by a task, at most, unless a sequence is very long: half of a common second-level cache.
const BLOCK_SCORES: usize = 128 * 1024;
/// Queries of a block, at most: half a block of the scores on the diagonal is computed in vain.
const BLOCK_ROWS: usize = 64;

impl Layout {
    pub(super) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Cuts `queries` of a segment into blocks.
    pub(super) fn blocks(&self, start: usize, len: usize, queries: std::ops::Range<usize>) -> Vec<Block> {
        let keys = self.window.map_or(len, |window| len.min(window + BLOCK_ROWS));
        let rows = (BLOCK_SCORES / (keys * self.group()).max(1)).clamp(8, BLOCK_ROWS) / 8 * 8;
        let block = |first: usize| {
            let from = self.window.map_or(0, |window| (first + 1).saturating_sub(window));
            Block { start, first, end: queries.end.min(first + rows), from }
        };
        queries.clone().step_by(rows).map(block).collect()
    }

    /// Columns of a block's scores that query `row` of the block sees.
    pub(super) fn visible(&self, block: Block, row: usize) -> std::ops::Range<usize> {
        let query = block.first + row;
        let oldest = self.window.map_or(0, |window| (query + 1).saturating_sub(window)).max(block.from);
        oldest - block.from..query + 1 - block.from
    }

    /// The keys or values of a block for one head, where they lie.
    pub(super) fn head<'a>(&self, tensor: &'a FlexTensor, block: Block, kv_head: usize) -> Matrix<'a> {
        let stride = self.kv_heads * self.size;
        let first = (block.start + block.from) * stride + kv_head * self.size;
        Matrix::strided(&slice(tensor)[first..], block.keys(), self.size, stride)
    }

    /// Gathers the rows of a block and group from a `[T, N, d]` tensor, times `factor`.
    pub(super) fn gather(&self, rows: &mut Vec<f32>, source: &[f32], block: Block, kv_head: usize, factor: f32) {
        rows.clear();
        for head in kv_head * self.group()..(kv_head + 1) * self.group() {
            for token in block.start + block.first..block.start + block.end {
                let row = &source[(token * self.heads + head) * self.size..][..self.size];
                rows.extend(row.iter().map(|value| value * factor));
            }
        }
    }

    /// Fills `scratch.q` and `scratch.scores` for a block and group; nothing is masked yet.
    pub(super) fn score(&self, block: Block, kv_head: usize, q: &FlexTensor, k: &FlexTensor, scratch: &mut Scratch) {
        self.gather(&mut scratch.q, slice(q), block, kv_head, self.scale);
        let rows = self.group() * block.rows();
        scratch.scores.resize(rows * block.keys(), 0.0);
        let q_RD = Matrix::dense(&scratch.q, rows, self.size);
        let keys = self.head(k, block, kv_head).transposed();
        product(&mut scratch.scores, q_RD, keys, 1.0, false, Threads::Caller);
    }

    /// Writes the output and log-sum-exp of a block and group into the block's rows.
    fn attend(
        &self,
        block: Block,
        kv_head: usize,
        [q, k, v]: [&FlexTensor; 3],
        scratch: &mut Scratch,
        out: &mut [f32],
        lse: &mut [f32],
    ) {
        self.score(block, kv_head, q, k, scratch);
        let (group, rows, keys) = (self.group(), block.rows(), block.keys());
        let place = |row: usize| (row % rows) * self.heads + kv_head * group + row / rows;
        let mut sums = Vec::with_capacity(group * rows);
        for (row, scores) in scratch.scores.chunks_exact_mut(keys).enumerate() {
            let visible = self.visible(block, row % rows);
            scores[..visible.start].fill(0.0);
            scores[visible.end..].fill(0.0);
            let scores = &mut scores[visible];
            let max = vector::max(scores);
            let sum = vector::exp_and_sum(scores, max);
            lse[place(row)] = max + sum.ln();
            sums.push(sum);
        }
        scratch.out.resize(group * rows * self.size, 0.0);
        let weights = Matrix::dense(&scratch.scores, group * rows, keys);
        product(&mut scratch.out, weights, self.head(v, block, kv_head), 1.0, false, Threads::Caller);
        for ((row, sum), values) in sums.iter().enumerate().zip(scratch.out.chunks_exact(self.size)) {
            let target = &mut out[place(row) * self.size..][..self.size];
            let share = 1.0 / sum;
            for (target, value) in target.iter_mut().zip(values) {
                *target = value * share;
            }
        }
    }
}
