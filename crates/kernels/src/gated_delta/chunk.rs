//! A chunk of the gated delta rule on the CPU: up to 64 tokens of a sequence at once, as products of small matrices.
//!
//! With `G` the sums of `g` from the chunk's first token on, `S` the state before it, rows `i` and `j` of the chunk:
//!
//! | what | formula |
//! |---|---|
//! | decay | `D[i, j] = exp(G[i] - G[j])` for `j ≤ i`, else 0 |
//! | mix | `M[i, j] = beta[i]·(k̂[i]·k̂[j])·D[i, j]` for `j < i`, else 0 |
//! | weights | `P[i, j] = (q̂[i]·k̂[j])·D[i, j]` |
//! | errors | `R = v - e^G ⊙ (k̂·S)` |
//! | writes | `N = (I + M)⁻¹·(beta ⊙ R)` |
//! | output | `e^G ⊙ (q̂·S) + P·N` |
//! | state after it | `e^G[last]·S + (e^(G[last]-G) ⊙ k̂)ᵀ·N` |
//!
//! No exponent is positive, so nothing overflows however strong the decay. A sequence starts its own chunks: packing it
//! behind another one changes no bit.

use std::ops::Range;

use burn_flex::FlexTensor;

use super::EPS;
use crate::cpu::columns::Columns;
use crate::cpu::element::{Element, by_element};
use crate::cpu::product::{Matrix, Threads, product};
pub(super) use crate::cpu::vector::delta::CHUNK;
use crate::cpu::vector::{self, delta};

#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) key_heads: usize,
    pub(super) value_heads: usize,
    pub(super) key: usize,
    pub(super) value: usize,
}

impl Sizes {
    /// Value heads of a key head.
    pub(super) fn group(&self) -> usize {
        self.value_heads / self.key_heads
    }

    /// Numbers of a value head's state.
    pub(super) fn state(&self) -> usize {
        self.key * self.value
    }

    /// What a query is multiplied by once its length is 1.
    pub(super) fn scale(&self) -> f32 {
        (self.key as f32).powf(-0.5)
    }
}

/// The operands, entries of the token axis dense; q, k and v of one type, g and beta each of its own.
#[derive(Clone, Debug)]
pub(super) struct Operands {
    pub(super) q: FlexTensor,
    pub(super) k: FlexTensor,
    pub(super) v: FlexTensor,
    pub(super) g: FlexTensor,
    pub(super) beta: FlexTensor,
    pub(super) sizes: Sizes,
}

/// A sequence and a key head with its value heads: what a task computes, chunk after chunk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Strip {
    pub(super) start: usize,
    pub(super) len: usize,
    pub(super) key_head: usize,
}

impl Strip {
    /// First tokens of its chunks, counted from its start.
    pub(super) fn chunks(&self) -> impl DoubleEndedIterator<Item = usize> + use<> {
        (0..self.len).step_by(CHUNK)
    }

    /// Tokens of a chunk on the token axis.
    pub(super) fn tokens(&self, first: usize) -> Range<usize> {
        self.start + first..self.start + self.len.min(first + CHUNK)
    }

    /// Numbers of the states between its chunks.
    pub(super) fn border_numbers(&self, sizes: Sizes) -> usize {
        self.len.saturating_sub(1) / CHUNK * sizes.group() * sizes.state()
    }

    /// Whether the chunk is its last one.
    pub(super) fn ends(&self, first: usize) -> bool {
        first + CHUNK >= self.len
    }
}

/// What is computed of a chunk of `n` tokens before its output; buffers are used again for every chunk.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    pub(super) tokens: Range<usize>,
    /// `k̂`, then `q̂`: `[2n, dk]`.
    pub(super) kq: Vec<f32>,
    /// What k, then q, were multiplied by: `[2n]`.
    pub(super) lengths: Vec<f32>,
    /// `k̂·k̂ᵀ`, then `q̂·k̂ᵀ`: `[2n, n]`.
    pub(super) overlaps: Vec<f32>,
    /// Of the value head at hand, as all below: g, `G`, `e^G`, beta, D.
    g: Vec<f32>,
    cumulative: Vec<f64>,
    pub(super) reach: Vec<f32>,
    pub(super) beta: Vec<f32>,
    pub(super) decay: Vec<f32>,
    /// `(I + M)⁻¹`.
    pub(super) inverse: Vec<f32>,
    pub(super) weights: Vec<f32>,
    /// `e^G ⊙ (k̂·S)`, then `e^G ⊙ (q̂·S)`: `[2n, dv]`.
    pub(super) reads: Vec<f32>,
    pub(super) errors: Vec<f32>,
    /// `beta ⊙ R`.
    scaled_errors: Vec<f32>,
    pub(super) writes: Vec<f32>,
    /// A row of an operand in f32.
    wide: Vec<f32>,
}

impl Chunk {
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// `e^(G[last] - G)`.
    pub(super) fn remains(&self) -> &[f32] {
        &self.decay[self.decay.len() - self.len()..]
    }

    /// `e^G[last]`.
    pub(super) fn whole_reach(&self) -> f32 {
        self.reach[self.len() - 1]
    }

    /// What all value heads of a key head share.
    pub(super) fn load<E: Element>(&mut self, operands: &Operands, tokens: Range<usize>, key_head: usize) {
        let Sizes { key_heads, key: size, .. } = operands.sizes;
        let n = tokens.len();
        self.kq.resize(2 * n * size, 0.0);
        self.lengths.resize(2 * n, 0.0);
        let (keys, queries) = self.kq.split_at_mut(n * size);
        let (key_lengths, query_lengths) = self.lengths.split_at_mut(n);
        for (out, lengths, source, scale) in
            [(keys, key_lengths, &operands.k, 1.0), (queries, query_lengths, &operands.q, operands.sizes.scale())]
        {
            let source = Columns::<E>::of(source).part(key_head, key_heads);
            for ((out, length), token) in out.chunks_exact_mut(size).zip(lengths).zip(tokens.clone()) {
                let row = E::read(source.row(token), &mut self.wide);
                *length = scale / (vector::sum_of_squares(row) + EPS as f32).sqrt();
                vector::scaled(out, row, *length);
            }
        }
        self.overlaps.resize(2 * n * n, 0.0);
        let kq = Matrix::dense(&self.kq, 2 * n, size);
        let keys = Matrix::dense(&self.kq[..n * size], n, size);
        product(&mut self.overlaps, kq, keys.transposed(), 1.0, false, Threads::Caller);
        self.tokens = tokens;
    }

    /// What is computed for a value head; without a `state` it is 0.
    pub(super) fn read<E: Element>(&mut self, operands: &Operands, head: usize, state: Option<&[f32]>) {
        let Sizes { value_heads, key, value: size, .. } = operands.sizes;
        let n = self.len();
        for (out, gate) in [(&mut self.g, &operands.g), (&mut self.beta, &operands.beta)] {
            out.clear();
            by_element!(gate.dtype(), G => {
                let gate = Columns::<G>::of(gate);
                out.extend(self.tokens.clone().map(|token| gate.row(token)[head].wide()));
            });
        }
        self.cumulative.clear();
        self.cumulative.extend(self.g.iter().scan(0.0, |sum, &g| {
            *sum += f64::from(g);
            Some(*sum)
        }));
        self.reach.clear();
        self.reach.extend(self.cumulative.iter().map(|&sum| (sum as f32).exp()));
        for matrix in [&mut self.decay, &mut self.inverse, &mut self.weights] {
            matrix.resize(n * n, 0.0);
        }
        delta::decays(&mut self.decay, &self.cumulative);
        let (keys, queries) = self.overlaps.split_at(n * n);
        delta::overlaps(&mut self.inverse, &mut self.weights, keys, queries, &self.decay, &self.beta);
        delta::invert_unit_lower(&mut self.inverse, n);

        self.reads.resize(2 * n * size, 0.0);
        match state {
            None => self.reads.fill(0.0),
            Some(state) => {
                let (kq, state) = (Matrix::dense(&self.kq, 2 * n, key), Matrix::dense(state, key, size));
                product(&mut self.reads, kq, state, 1.0, false, Threads::Caller);
                for (row, reach) in self.reads.chunks_exact_mut(size).zip(self.reach.iter().cycle()) {
                    vector::scale(row, *reach);
                }
            }
        }
        for rows in [&mut self.errors, &mut self.scaled_errors, &mut self.writes] {
            rows.resize(n * size, 0.0);
        }
        let values = Columns::<E>::of(&operands.v).part(head, value_heads);
        for (row, (token, &beta)) in self.tokens.clone().zip(&self.beta).enumerate() {
            let range = row * size..(row + 1) * size;
            let (errors, scaled) = (&mut self.errors[range.clone()], &mut self.scaled_errors[range.clone()]);
            let values = E::read(values.row(token), &mut self.wide);
            vector::difference(errors, values, &self.reads[range]);
            vector::scaled(scaled, errors, beta);
        }
        let (inverse, errors) = (Matrix::dense(&self.inverse, n, n), Matrix::dense(&self.scaled_errors, n, size));
        product(&mut self.writes, inverse, errors, 1.0, false, Threads::Caller);
    }

    /// Turns the reads of the queries into the output, and returns it: `[n, dv]`.
    pub(super) fn output(&mut self, size: usize) -> &[f32] {
        let n = self.len();
        let out = &mut self.reads[n * size..];
        let (weights, writes) = (Matrix::dense(&self.weights, n, n), Matrix::dense(&self.writes, n, size));
        product(out, weights, writes, 1.0, true, Threads::Caller);
        out
    }

    /// `N` becomes `e^(G[last] - G) ⊙ N`, what of it remains at the chunk's end.
    pub(super) fn fade_writes(&mut self, size: usize) {
        let remains = &self.decay[self.decay.len() - self.tokens.len()..];
        for (row, remains) in self.writes.chunks_exact_mut(size).zip(remains) {
            vector::scale(row, *remains);
        }
    }

    /// Moves a value head's state to the end of the chunk; what it was does not count when it was `empty`.
    pub(super) fn advance(&mut self, sizes: Sizes, state: &mut [f32], empty: bool) {
        let n = self.len();
        self.fade_writes(sizes.value);
        if !empty {
            vector::scale(state, self.whole_reach());
        }
        let keys = Matrix::dense(&self.kq[..n * sizes.key], n, sizes.key);
        let writes = Matrix::dense(&self.writes, n, sizes.value);
        product(state, keys.transposed(), writes, 1.0, !empty, Threads::Caller);
    }
}
