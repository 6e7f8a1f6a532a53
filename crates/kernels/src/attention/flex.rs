//! Attention on the CPU in blocks of queries: no score outlives its block, no key or value is repeated or copied.

use std::marker::PhantomData;
use std::sync::Arc;

use burn::Tensor;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::backward::{Saved, Step};
use crate::cpu::columns::Columns;
use crate::cpu::element::{Element, by_element};
use crate::cpu::kept::Kept;
use crate::cpu::operand::{Operand, record};
use crate::cpu::product::{Matrix, Number, Precision, Threads, product};
use crate::cpu::vector;
use crate::{Input, Segments};

/// `None` when an operand is not an f32 or bf16 tensor on burn-flex, or they differ in their type.
///
/// Scores, their softmax and all sums are f32. The products of bf16 operands are bf16 ones, for which the weights of the
/// softmax, and in the backward the gradients of the scores, are rounded.
pub(super) fn attention(
    inputs: [&Input<3>; 2],
    v: &Tensor<3>,
    segments: &Arc<Segments>,
    scale: f32,
    window: Option<usize>,
) -> Option<Tensor<3>> {
    let [q, k] = inputs.map(Input::tensor);
    let ([_, heads, size], [_, kv_heads, _]) = (q.dims(), k.dims());
    if k.dtype() != q.dtype() || v.dtype() != q.dtype() {
        return None;
    }
    let layout = Layout { heads, kv_heads, size, scale, window };
    let parents = [Operand::of_float(q)?, Operand::of_float(k)?, Operand::of_float(v)?];
    Some(by_element!(q.dtype(), E => forward::<E>(parents, inputs, segments, layout)))
}

fn forward<E: Element + Number>(
    parents: [Operand; 3],
    inputs: [&Input<3>; 2],
    segments: &Arc<Segments>,
    layout: Layout,
) -> Tensor<3> {
    let [q, k, v] = parents.each_ref().map(Operand::contiguous);
    let Layout { heads, kv_heads, size, .. } = layout;
    let tokens = segments.tokens();
    let (mut out, mut lse) = (vec![E::default(); tokens * heads * size], vec![0.0; tokens * heads]);
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
            layout.attend::<E>(block, kv_head, [&q, &k, &v], scratch, out, lse);
        }
    });
    let out = E::tensor(out, [tokens, heads, size]);
    let saved_out = out.clone();
    let segments = segments.clone();
    record(Step::<E>(PhantomData), parents, out, || {
        let (q, k) = (Kept::of(inputs[0], q), Kept::of(inputs[1], k));
        Saved { q, k, v, out: saved_out, lse, segments, layout }
    })
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
pub(super) struct Scratch<E> {
    /// Queries, in f32 scaled ones, `[group·rows, d]`, all rows of a head together.
    pub(super) q: Vec<E>,
    /// Scores, then weights: `[group·rows, keys]`.
    pub(super) scores: Vec<f32>,
    /// Output of the block, or gradient of its queries: `[group·rows, d]`.
    pub(super) out: Vec<f32>,
    /// Upstream gradients, `[group·rows, d]`.
    pub(super) dout: Vec<E>,
    /// Gradients of the scores, `[group·rows, keys]`.
    pub(super) dscores: Vec<f32>,
    /// Rows of the output and of its gradient in f32 where they are not held so.
    pub(super) wide: [Vec<f32>; 2],
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
    pub(super) fn head<'a, E: Element + Number>(
        &self,
        tensor: &'a FlexTensor,
        block: Block,
        kv_head: usize,
    ) -> Matrix<'a> {
        let columns = Columns::<E>::of(tensor).part(kv_head, self.kv_heads);
        columns.rows_from(block.start + block.from).matrix(block.keys())
    }

    /// Factors of gathered queries, and of the products with them: bf16 queries are not rounded once more.
    pub(super) fn scales<E: Number>(&self) -> [f32; 2] {
        if E::PRECISION == Precision::F32 { [self.scale, 1.0] } else { [1.0, self.scale] }
    }

    /// Gathers the rows of a block and group from a `[T, N, d]` tensor.
    pub(super) fn gather<E: Element>(&self, rows: &mut Vec<E>, source: &[E], block: Block, kv_head: usize) {
        rows.clear();
        for head in kv_head * self.group()..(kv_head + 1) * self.group() {
            for token in block.start + block.first..block.start + block.end {
                rows.extend_from_slice(&source[(token * self.heads + head) * self.size..][..self.size]);
            }
        }
    }

    /// Fills `scratch.q` and `scratch.scores` for a block and group; nothing is masked yet.
    pub(super) fn score<E: Element + Number>(
        &self,
        block: Block,
        kv_head: usize,
        q: &[E],
        keys: Matrix,
        scratch: &mut Scratch<E>,
    ) {
        let [of_queries, of_products] = self.scales::<E>();
        self.gather(&mut scratch.q, q, block, kv_head);
        if of_queries != 1.0 {
            E::update(&mut scratch.q, &mut Vec::new(), |q| vector::scale(q, of_queries));
        }
        let rows = self.group() * block.rows();
        scratch.scores.resize(rows * block.keys(), 0.0);
        let q_RD = Matrix::first_of(E::elements(&scratch.q), rows, self.size);
        product(&mut scratch.scores, q_RD, keys.transposed(), of_products, false, Threads::Caller);
    }

    /// Writes the output and log-sum-exp of a block and group into the block's rows.
    fn attend<E: Element + Number>(
        &self,
        block: Block,
        kv_head: usize,
        [q, k, v]: [&FlexTensor; 3],
        scratch: &mut Scratch<E>,
        out: &mut [E],
        lse: &mut [f32],
    ) {
        self.score(block, kv_head, E::slice(q), self.head::<E>(k, block, kv_head), scratch);
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
        let values = self.head::<E>(v, block, kv_head);
        product(&mut scratch.out, weights, values, 1.0, false, Threads::Caller);
        for ((row, sum), values) in sums.iter().enumerate().zip(scratch.out.chunks_exact(self.size)) {
            let target = &mut out[place(row) * self.size..][..self.size];
            let share = 1.0 / sum;
            E::write(target, &mut scratch.wide[0], |target| vector::scaled(target, values, share));
        }
    }
}
