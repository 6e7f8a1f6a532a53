//! Gradients of attention on the CPU: weights formed again, block by block, from the kept log-sum-exp.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::flex::{Block, Layout, Scratch};
use crate::Segments;
use crate::cpu::element::Element;
use crate::cpu::kept::Kept;
use crate::cpu::operand::contiguous;
use crate::cpu::product::{Matrix, Number, Threads, product};
use crate::cpu::rows::{add, filled};
use crate::cpu::vector;

#[derive(Debug)]
pub(super) struct Step<E>(pub(super) PhantomData<E>);

#[derive(Clone, Debug)]
pub(super) struct Saved {
    pub(super) q: Kept,
    pub(super) k: Kept,
    pub(super) v: FlexTensor,
    pub(super) out: FlexTensor,
    /// Log-sum-exp of the scores, `[T, N]`.
    pub(super) lse: Vec<f32>,
    pub(super) segments: Arc<Segments>,
    pub(super) layout: Layout,
}

/// Some queries of a segment and one key head: what a task computes.
#[derive(Clone, Debug)]
struct Strip {
    start: usize,
    len: usize,
    queries: Range<usize>,
    kv_head: usize,
}

/// Gradients of a strip.
struct StripGradients<E> {
    strip: Strip,
    /// Of its queries, which are no other strip's: `[queries, group, d]`.
    dq: Vec<E>,
    /// Keys `first_key..queries.end` of the segment it touches.
    first_key: usize,
    /// Of those keys, `[keys, d]`, in f32 until those of all strips are added.
    dk: Vec<f32>,
    dv: Vec<f32>,
}

/// A segment is shared among at most so many tasks a key head: each brings own sums for the keys it sees.
const STRIPS: usize = 4;
/// Queries of a strip, at least.
const STRIP_ROWS: usize = 256;

impl<E: Element + Number> Backward<Flex, 3> for Step<E> {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dout = contiguous(grads.consume::<Flex>(&ops.node));
        let saved = ops.state;
        let gradients = |scratch: &mut Scratch<E>, strip| saved.strip_gradients(strip, E::slice(&dout), scratch);
        let mut strips: Vec<StripGradients<E>> =
            saved.strips().into_par_iter().map_init(Scratch::default, gradients).collect();
        let (layout, tokens) = (saved.layout, saved.q.get().layout().shape()[0]);
        let Layout { heads, kv_heads, size, .. } = layout;
        // What the strips have read is gone before the first sum is there, and what is summed up before the next.
        drop((saved, dout));
        let [q_node, k_node, v_node] = ops.parents;
        if let Some(node) = q_node {
            let dq = layout.scatter::<E, E>(&strips, tokens, heads, |strip| (strip.strip.queries.start, &strip.dq));
            grads.register::<Flex>(node.id, E::tensor(dq, [tokens, heads, size]));
        }
        strips.iter_mut().for_each(|strip| strip.dq = Vec::new());
        if let Some(node) = k_node {
            let dk = layout.scatter::<E, f32>(&strips, tokens, kv_heads, |strip| (strip.first_key, &strip.dk));
            grads.register::<Flex>(node.id, E::tensor(dk, [tokens, kv_heads, size]));
        }
        strips.iter_mut().for_each(|strip| strip.dk = Vec::new());
        if let Some(node) = v_node {
            let dv = layout.scatter::<E, f32>(&strips, tokens, kv_heads, |strip| (strip.first_key, &strip.dv));
            grads.register::<Flex>(node.id, E::tensor(dv, [tokens, kv_heads, size]));
        }
    }
}

impl Saved {
    fn strips(&self) -> Vec<Strip> {
        let mut strips = Vec::new();
        for (start, len) in self.segments.iter() {
            let rows = len.div_ceil(STRIPS).next_multiple_of(64).max(STRIP_ROWS);
            for first in (0..len).step_by(rows) {
                let queries = first..len.min(first + rows);
                let strip = |kv_head| Strip { start, len, queries: queries.clone(), kv_head };
                strips.extend((0..self.layout.kv_heads).map(strip));
            }
        }
        strips
    }

    /// With `p = exp(s - lse)` and `delta = Σ dout·out`: `dv += pᵀ·dout`, `ds = p ⊙ (dout·vᵀ - delta)`,
    /// `dq = scale·ds·k`, `dk += dsᵀ·(scale·q)`.
    fn strip_gradients<E: Element + Number>(
        &self,
        strip: Strip,
        dout: &[E],
        scratch: &mut Scratch<E>,
    ) -> StripGradients<E> {
        let layout = self.layout;
        let (group, size, kv_head) = (layout.group(), layout.size, strip.kv_head);
        let blocks = layout.blocks(strip.start, strip.len, strip.queries.clone());
        let first_key = blocks.first().map_or(0, |block| block.from);
        let keys = strip.queries.end - first_key;
        let mut dq = vec![E::default(); strip.queries.len() * group * size];
        let (mut dk, mut dv) = (vec![0.0; keys * size], vec![0.0; keys * size]);
        for block in blocks {
            let (rows, columns) = (block.rows(), block.keys());
            let key_rows = layout.head::<E>(self.k.get(), block, kv_head);
            let value_rows = layout.head::<E>(&self.v, block, kv_head);
            layout.score(block, kv_head, E::slice(self.q.get()), key_rows, scratch);
            layout.gather(&mut scratch.dout, dout, block, kv_head);
            let dout_RD = Matrix::first_of(E::elements(&scratch.dout), group * rows, size);
            scratch.dscores.resize(group * rows * columns, 0.0);
            product(&mut scratch.dscores, dout_RD, value_rows.transposed(), 1.0, false, Threads::Caller);
            self.softmax_backward::<E>(block, kv_head, scratch);
            let dout_RD = Matrix::first_of(E::elements(&scratch.dout), group * rows, size);

            let seen = (block.from - first_key) * size..(block.end - first_key) * size;
            let weights = Matrix::dense(&scratch.scores, group * rows, columns);
            product(&mut dv[seen.clone()], weights.transposed(), dout_RD, 1.0, true, Threads::Caller);
            let dscores_RK = Matrix::dense(&scratch.dscores, group * rows, columns);
            let q_RD = Matrix::first_of(E::elements(&scratch.q), group * rows, size);
            let [_, of_products] = layout.scales::<E>();
            product(&mut dk[seen], dscores_RK.transposed(), q_RD, of_products, true, Threads::Caller);
            scratch.out.resize(group * rows * size, 0.0);
            product(&mut scratch.out, dscores_RK, key_rows, layout.scale, false, Threads::Caller);
            for (row, values) in scratch.out.chunks_exact(size).enumerate() {
                let query = block.first - strip.queries.start + row % rows;
                let target = &mut dq[(query * group + row / rows) * size..][..size];
                E::write(target, &mut scratch.wide[0], |target| target.copy_from_slice(values));
            }
        }
        StripGradients { strip, dq, first_key, dk, dv }
    }

    /// Turns scores into weights and their upstream gradients into those of the scores.
    fn softmax_backward<E: Element>(&self, block: Block, kv_head: usize, scratch: &mut Scratch<E>) {
        let Layout { heads, size, .. } = self.layout;
        let (rows, columns, out) = (block.rows(), block.keys(), E::slice(&self.out));
        let Scratch { scores, dscores, dout, wide: [wide_out, wide_dout], .. } = scratch;
        let of_rows = scores.chunks_exact_mut(columns).zip(dscores.chunks_exact_mut(columns));
        for ((row, (weights, dweights)), dout) in of_rows.enumerate().zip(dout.chunks_exact(size)) {
            let token = block.start + block.first + row % rows;
            let place = token * heads + kv_head * self.layout.group() + row / rows;
            let delta = vector::dot(E::read(dout, wide_dout), E::read(&out[place * size..][..size], wide_out));
            let visible = self.layout.visible(block, row % rows);
            for hidden in [0..visible.start, visible.end..columns] {
                weights[hidden.clone()].fill(0.0);
                dweights[hidden].fill(0.0);
            }
            let (weights, dweights) = (&mut weights[visible.clone()], &mut dweights[visible]);
            if let ([weight], [dweight]) = (&mut *weights, &mut *dweights) {
                // The weight of a single key is 1 whatever its score: the difference below would leave its rounding.
                (*weight, *dweight) = (1.0, 0.0);
            } else {
                vector::softmax_backward(weights, dweights, self.lse[place], delta);
            }
        }
    }
}

impl Layout {
    /// Adds the parts of all strips into a `[T, heads, d]` tensor, in the order of the strips.
    fn scatter<'a, E: Element, P: Element>(
        &self,
        strips: &'a [StripGradients<E>],
        tokens: usize,
        heads: usize,
        part: impl Fn(&'a StripGradients<E>) -> (usize, &'a Vec<P>) + Sync,
    ) -> Vec<E> {
        let (size, width) = (self.size, heads * self.size);
        let share = heads / self.kv_heads * size;
        filled(tokens * width, width, |first_token, block: &mut [E]| {
            let end_token = first_token + block.len() / width;
            let mut wide = Vec::new();
            E::write(block, &mut Vec::new(), |block| {
                block.fill(0.0);
                for strip in strips {
                    let (first, values) = part(strip);
                    let start = strip.strip.start + first;
                    let tokens = start.max(first_token)..(start + values.len() / share).min(end_token);
                    for token in tokens {
                        let target = (token - first_token) * width + strip.strip.kv_head * share;
                        let values = P::read(&values[(token - start) * share..][..share], &mut wide);
                        add(&mut block[target..][..share], values);
                    }
                }
            });
        })
    }
}
