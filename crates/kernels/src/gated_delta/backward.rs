//! Gradients of the gated delta rule on the CPU: chunks in reverse, each formed again from the state before it.

use std::marker::PhantomData;
use std::sync::Arc;

use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::chunk::{CHUNK, Chunk, Operands, Sizes, Strip};
use super::flex::{shares, strips};
use crate::Segments;
use crate::cpu::columns::{Columns, ColumnsMut, rowwise};
use crate::cpu::element::{Element, narrowed};
use crate::cpu::product::{Matrix, Threads, product};
use crate::cpu::vector;
use crate::cpu::vector::delta::{OverlapRow, overlaps_backward};

#[derive(Debug)]
pub(super) struct Step<E>(pub(super) PhantomData<E>);

#[derive(Clone, Debug)]
pub(super) struct Saved {
    pub(super) operands: Operands,
    /// States between the chunks of each strip, `[chunks - 1, group, dk, dv]`, strip by strip.
    pub(super) borders: Vec<f32>,
    pub(super) segments: Arc<Segments>,
}

impl<E: Element> Backward<Flex, 5> for Step<E> {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 5>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dout = rowwise(grads.consume::<Flex>(&ops.node));
        let Saved { operands, borders, segments } = &ops.state;
        let Operands { q, k, v, g, beta, sizes } = operands;
        let len = |operand: &FlexTensor| operand.layout().shape().num_elements();
        let mut heads = [q, k, v].map(|operand| vec![E::default(); len(operand)]);
        let mut gates = [g, beta].map(|operand| vec![0.0; len(operand)]);
        let [dq, dk, dv] = heads.each_mut().map(|all| shares(all, segments, sizes.key_heads));
        let [dg, dbeta] = gates.each_mut().map(|all| shares(all, segments, sizes.key_heads));
        let outputs = dq.into_iter().zip(dk).zip(dv).zip(dg).zip(dbeta);
        let mut rest = borders.as_slice();
        let tasks = strips(segments, sizes.key_heads).into_iter().zip(outputs).map(|(strip, outputs)| {
            let (borders, behind) = rest.split_at(strip.border_numbers(*sizes));
            rest = behind;
            (strip, borders, outputs)
        });
        let tasks: Vec<_> = tasks.collect();
        let dout = Columns::<E>::of(&dout);
        tasks.into_par_iter().for_each_init(Scratch::default, |scratch, (strip, borders, outputs)| {
            let ((((dq, dk), dv), dg), dbeta) = outputs;
            let out = StripGradients { dq, dk, dv, dg, dbeta };
            operands.strip_gradients(strip, borders, dout.part(strip.key_head, sizes.key_heads), out, scratch);
        });
        let shape = |operand: &FlexTensor| operand.layout().shape().clone();
        let [q_node, k_node, v_node, g_node, beta_node] = ops.parents;
        for ((node, values), operand) in [q_node, k_node, v_node].into_iter().zip(heads).zip([q, k, v]) {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, E::tensor(values, shape(operand)));
            }
        }
        for ((node, values), operand) in [g_node, beta_node].into_iter().zip(gates).zip([g, beta]) {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, narrowed(values, shape(operand), operand.dtype()));
            }
        }
    }
}

/// Where the gradients of a strip go.
struct StripGradients<'a, E> {
    dq: ColumnsMut<'a, E>,
    dk: ColumnsMut<'a, E>,
    dv: ColumnsMut<'a, E>,
    dg: ColumnsMut<'a>,
    dbeta: ColumnsMut<'a>,
}

/// Buffers of a task, used again for every chunk of `n` tokens.
#[derive(Debug, Default)]
struct Scratch {
    chunk: Chunk,
    /// Of the states after the chunk, then before it: `[group, dk, dv]`.
    dstates: Vec<f32>,
    /// Of `k̂`, then `q̂`, from all value heads of the group: `[2n, dk]`.
    dkq: Vec<f32>,
    /// Of `k̂·k̂ᵀ`, then `q̂·k̂ᵀ`: `[2n, n]`.
    doverlaps: Vec<f32>,
    /// Of `beta ⊙ R`, then of the output; then of `k̂·S` and `q̂·S`: `[2n, dv]`.
    drows: Vec<f32>,
    /// Of N, `[n, dv]`.
    dwrites: Vec<f32>,
    /// Of M with the sign turned, then of P: `[2n, n]`.
    dmatrices: Vec<f32>,
    /// Of G.
    dcumulative: Vec<f32>,
    /// A row of a gradient in f32.
    wide: Vec<f32>,
}

impl Operands {
    fn strip_gradients<E: Element>(
        &self,
        strip: Strip,
        borders: &[f32],
        dout: Columns<E>,
        mut out: StripGradients<E>,
        scratch: &mut Scratch,
    ) {
        let (group, state_len) = (self.sizes.group(), self.sizes.state());
        scratch.dstates.resize(group * state_len, 0.0);
        for first in strip.chunks().rev() {
            scratch.chunk.load::<E>(self, strip.tokens(first), strip.key_head);
            let n = scratch.chunk.len();
            for (sums, len) in [(&mut scratch.dkq, 2 * n * self.sizes.key), (&mut scratch.doverlaps, 2 * n * n)] {
                sums.clear();
                sums.resize(len, 0.0);
            }
            for member in 0..group {
                let border = (first / CHUNK * group + member).checked_sub(group);
                let state = border.map(|border| &borders[border * state_len..][..state_len]);
                let head = strip.key_head * group + member;
                scratch.chunk.read::<E>(self, head, state);
                scratch.drows.resize(2 * n * self.sizes.value, 0.0);
                for (row, values) in
                    scratch.drows[n * self.sizes.value..].chunks_exact_mut(self.sizes.value).enumerate()
                {
                    let token = strip.start + first + row;
                    let dout = &dout.row(token)[member * self.sizes.value..][..self.sizes.value];
                    values.copy_from_slice(E::read(dout, &mut scratch.wide));
                }
                scratch.value_head(self.sizes, member, state, strip.ends(first), first, &mut out);
            }
            scratch.key_head(self.sizes, first, &mut out);
        }
    }
}

impl Scratch {
    /// Gradients of one value head's v, g and beta; its parts of those of the keys, queries and state.
    ///
    /// With `dS'` the gradient of the state after the chunk, `dO` that of the output and `F = e^(G[last]-G)`:
    /// `dN = Pᵀ·dO + F ⊙ (k̂·dS')`, `dX = (I + M)⁻ᵀ·dN` for `X = beta ⊙ R`, `dM = -dX·Nᵀ`, `dP = dO·Nᵀ`,
    /// `d(k̂·S) = -e^G ⊙ beta ⊙ dX`, `d(q̂·S) = e^G ⊙ dO`, `dS = e^G[last]·dS' + k̂ᵀ·d(k̂·S) + q̂ᵀ·d(q̂·S)`.
    fn value_head<E: Element>(
        &mut self,
        sizes: Sizes,
        member: usize,
        state: Option<&[f32]>,
        ends: bool,
        first: usize,
        out: &mut StripGradients<E>,
    ) {
        let Self { chunk, dstates, dkq, doverlaps, drows, dwrites, dmatrices, dcumulative, wide } = self;
        let Sizes { key, value: size, .. } = sizes;
        let n = chunk.len();
        let dstate = &mut dstates[member * sizes.state()..][..sizes.state()];
        let keys = Matrix::dense(&chunk.kq[..n * key], n, key);
        dcumulative.clear();
        dcumulative.resize(n, 0.0);

        dwrites.resize(n * size, 0.0);
        if !ends {
            product(dwrites, keys, Matrix::dense(dstate, key, size), 1.0, false, Threads::Caller);
            let rows = dwrites.chunks_exact_mut(size).zip(chunk.writes.chunks_exact(size));
            for ((row, remains), (dwrites, writes)) in chunk.remains().iter().enumerate().zip(rows) {
                vector::scale(dwrites, *remains);
                let change = vector::dot(dwrites, writes);
                dcumulative[row] -= change;
                dcumulative[n - 1] += change;
            }
            if let Some(state) = state {
                dcumulative[n - 1] += chunk.whole_reach() * vector::dot(state, dstate);
            }
        }
        let (derrors, dout) = drows.split_at_mut(n * size);
        let weights = Matrix::dense(&chunk.weights, n, n);
        product(dwrites, weights.transposed(), Matrix::dense(dout, n, size), 1.0, !ends, Threads::Caller);
        let inverse = Matrix::dense(&chunk.inverse, n, n);
        product(derrors, inverse.transposed(), Matrix::dense(dwrites, n, size), 1.0, false, Threads::Caller);
        dmatrices.resize(2 * n * n, 0.0);
        let writes = Matrix::dense(&chunk.writes, n, size);
        product(dmatrices, Matrix::dense(drows, 2 * n, size), writes.transposed(), 1.0, false, Threads::Caller);

        let (derrors, dout) = drows.split_at_mut(n * size);
        let rows = derrors.chunks_exact_mut(size).zip(dout.chunks_exact_mut(size)).enumerate();
        for (row, (derrors, dout)) in rows {
            let (beta, reach, range) = (chunk.beta[row], chunk.reach[row], row * size..(row + 1) * size);
            let (key_reads, query_reads) = chunk.reads.split_at(n * size);
            let (dbeta, through) = overlap_row(chunk, dmatrices, doverlaps, row, dcumulative);
            out.dbeta.row(first + row)[member] = dbeta + vector::dot(derrors, &chunk.errors[range.clone()]);
            vector::scale(derrors, beta);
            let dv = &mut out.dv.row(first + row)[member * size..][..size];
            E::write(dv, wide, |dv| dv.copy_from_slice(derrors));
            let read = vector::dot(dout, &query_reads[range.clone()]) - vector::dot(derrors, &key_reads[range]);
            dcumulative[row] += through + read;
            vector::scale(derrors, -reach);
            vector::scale(dout, reach);
        }
        let mut sum = 0.0;
        for (row, change) in dcumulative.iter().enumerate().rev() {
            sum += f64::from(*change);
            out.dg.row(first + row)[member] = sum as f32;
        }

        if !ends {
            chunk.fade_writes(size);
            let writes = Matrix::dense(&chunk.writes, n, size);
            let dstate = Matrix::dense(dstate, key, size);
            product(&mut dkq[..n * key], writes, dstate.transposed(), 1.0, true, Threads::Caller);
        }
        if let Some(state) = state {
            let kq = Matrix::dense(&chunk.kq, 2 * n, key);
            let dreads = Matrix::dense(drows, 2 * n, size);
            product(dkq, dreads, Matrix::dense(state, key, size).transposed(), 1.0, true, Threads::Caller);
            if !ends {
                vector::scale(dstate, chunk.whole_reach());
            }
            product(dstate, kq.transposed(), dreads, 1.0, !ends, Threads::Caller);
        }
    }

    /// Gradients of the keys and queries, once all value heads have added theirs.
    ///
    /// For `k̂ = f·k` with `f` the inverse of its length, `dk = f·(dk̂ - k̂·(k̂·dk̂))`.
    fn key_head<E: Element>(&mut self, sizes: Sizes, first: usize, out: &mut StripGradients<E>) {
        let Self { chunk, dkq, doverlaps, wide, .. } = self;
        let (size, n) = (sizes.key, chunk.len());
        // k̂·k̂ᵀ depends on k̂ from both sides: its gradient, so far below the diagonal only, is mirrored.
        for i in 0..n {
            for j in 0..i {
                doverlaps[j * n + i] = doverlaps[i * n + j];
            }
        }
        let keys = Matrix::dense(&chunk.kq[..n * size], n, size);
        let queries = Matrix::dense(&chunk.kq[n * size..], n, size);
        product(dkq, Matrix::dense(doverlaps, 2 * n, n), keys, 1.0, true, Threads::Caller);
        let dqueries = Matrix::dense(&doverlaps[n * n..], n, n);
        product(&mut dkq[..n * size], dqueries.transposed(), queries, 1.0, true, Threads::Caller);
        let rows = chunk.kq.chunks_exact(size).zip(dkq.chunks_exact(size)).zip(&chunk.lengths);
        for (row, ((unit, dunit), length)) in rows.enumerate() {
            // A query was also scaled, which its own product with its gradient holds twice.
            let (target, scale) = if row < n { (&mut out.dk, 1.0) } else { (&mut out.dq, sizes.scale()) };
            let along = vector::dot(unit, dunit) / (scale * scale);
            E::write(target.row(first + row % n), wide, |target| {
                vector::scaled(target, dunit, *length);
                vector::accumulate_scaled(target, unit, -length * along);
            });
        }
    }
}

/// Row of the gradients of M and P taken back to the overlaps; returns what it gives beta and `G` of the row.
fn overlap_row(
    chunk: &Chunk,
    dmatrices: &mut [f32],
    doverlaps: &mut [f32],
    row: usize,
    dcumulative: &mut [f32],
) -> (f32, f32) {
    let n = chunk.len();
    let range = row * n..(row + 1) * n;
    let (keys, queries) = chunk.overlaps.split_at(n * n);
    let (dmix, dweights) = dmatrices.split_at_mut(n * n);
    let (dkeys, dqueries) = doverlaps.split_at_mut(n * n);
    let (dmix, dweights) = (&mut dmix[range.clone()], &mut dweights[range.clone()]);
    // M has no diagonal.
    dmix[row] = 0.0;
    let forward = OverlapRow {
        keys: &keys[range.clone()],
        queries: &queries[range.clone()],
        decay: &chunk.decay[range.clone()],
        beta: chunk.beta[row],
    };
    overlaps_backward(dmix, dweights, &mut dkeys[range.clone()], &mut dqueries[range], forward);
    // That of P does not decay: `G` of the row would lose what it gains, and strong decays are lost in that difference.
    dweights[row] = 0.0;
    for (sum, change) in dcumulative.iter_mut().zip(&*dweights) {
        *sum -= change;
    }
    (vector::sum(dmix), vector::sum(dweights))
}
