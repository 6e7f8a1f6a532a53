//! The gated delta rule on the CPU: sequences and key heads in parallel, the chunks of each one after another.

use std::marker::PhantomData;
use std::sync::Arc;

use burn::Tensor;
use burn::backend::Flex;
use rayon::prelude::*;

use super::backward::{Saved, Step};
use super::chunk::{Chunk, Operands, Sizes, Strip};
use crate::Segments;
use crate::cpu::columns::{ColumnsMut, rowwise};
use crate::cpu::element::{Element, by_element};
use crate::cpu::operand::{Operand, from_vec, record, slice};

/// `None` when an operand is not an f32 or bf16 tensor on burn-flex, or q, k and v differ in their type; g and beta may
/// have any of the two.
pub(super) fn gated_delta(
    q: &Tensor<3>,
    k: &Tensor<3>,
    v: &Tensor<3>,
    g: &Tensor<2>,
    beta: &Tensor<2>,
    segments: &Arc<Segments>,
) -> Option<Tensor<3>> {
    let parents = parents(q, k, v, g, beta)?;
    let operands = Operands::of(&parents, q.dims(), v.dims());
    Some(by_element!(v.dtype(), E => forward::<E>(parents, operands, v.dims(), segments)))
}

fn parents(q: &Tensor<3>, k: &Tensor<3>, v: &Tensor<3>, g: &Tensor<2>, beta: &Tensor<2>) -> Option<[Operand; 5]> {
    if q.dtype() != v.dtype() || k.dtype() != v.dtype() {
        return None;
    }
    let [q, k, v] = [q, k, v].map(Operand::of_float);
    Some([q?, k?, v?, Operand::of_float(g)?, Operand::of_float(beta)?])
}

fn forward<E: Element>(
    parents: [Operand; 5],
    operands: Operands,
    shape: [usize; 3],
    segments: &Arc<Segments>,
) -> Tensor<3> {
    let keep = parents.iter().any(Operand::tracked);
    let mut out = vec![E::default(); shape.iter().product()];
    let columns = shares(&mut out, segments, operands.sizes.key_heads);
    let strips = strips(segments, operands.sizes.key_heads);
    let border_numbers = strips.iter().map(|strip| strip.border_numbers(operands.sizes));
    let mut borders = vec![0.0; if keep { border_numbers.sum() } else { 0 }];
    let mut rest = borders.as_mut_slice();
    let tasks = strips.into_iter().zip(columns).map(|(strip, columns)| {
        let numbers = if keep { strip.border_numbers(operands.sizes) } else { 0 };
        let (here, behind) = std::mem::take(&mut rest).split_at_mut(numbers);
        rest = behind;
        (strip, columns, here)
    });
    let tasks: Vec<_> = tasks.collect();
    tasks.into_par_iter().for_each_init(Scratch::default, |scratch, (strip, out, borders)| {
        operands.scan(strip, None, out, borders, scratch);
    });
    let segments = segments.clone();
    record(Step::<E>(PhantomData), parents, E::tensor(out, shape), || Saved { operands, borders, segments })
}

/// `None` when an operand is tracked or [`gated_delta`] does not take it, or the state is not f32.
pub(super) fn gated_delta_step(
    state: &Tensor<3>,
    q: &Tensor<3>,
    k: &Tensor<3>,
    v: &Tensor<3>,
    g: &Tensor<2>,
    beta: &Tensor<2>,
) -> Option<(Tensor<3>, Tensor<3>)> {
    let (parents, initial) = (parents(q, k, v, g, beta)?, Operand::of(state)?);
    if parents.iter().chain([&initial]).any(Operand::tracked) {
        return None;
    }
    let operands = Operands::of(&parents, q.dims(), v.dims());
    let (out, last) = by_element!(v.dtype(), E => {
        let (out, last) = operands.step::<E>(slice(&initial.contiguous()), v.dims()[0]);
        (E::tensor(out, v.dims()), from_vec(last, state.dims()))
    });
    let autodiff = |plain: Tensor<3>| if v.device().is_autodiff() { plain.autodiff() } else { plain };
    Some((autodiff(Tensor::from_primitive::<Flex>(out)), autodiff(Tensor::from_primitive::<Flex>(last))))
}

/// Tasks in the order of [`shares`].
pub(super) fn strips(segments: &Segments, key_heads: usize) -> Vec<Strip> {
    let of_segment = |(start, len)| (0..key_heads).map(move |key_head| Strip { start, len, key_head });
    segments.iter().flat_map(of_segment).collect()
}

/// The rows and columns of a `[T, ..]` buffer that each strip writes.
pub(super) fn shares<'a, E>(mut buffer: &'a mut [E], segments: &Segments, key_heads: usize) -> Vec<ColumnsMut<'a, E>> {
    let width = buffer.len().checked_div(segments.tokens()).unwrap_or(0);
    let mut shares = Vec::new();
    for (_, len) in segments.iter() {
        let (rows, rest) = buffer.split_at_mut(len * width);
        shares.extend(ColumnsMut::split(rows, len, key_heads));
        buffer = rest;
    }
    shares
}

/// Buffers of a task.
#[derive(Default)]
struct Scratch {
    chunk: Chunk,
    /// States of the value heads, `[group, dk, dv]`.
    states: Vec<f32>,
    /// A row of the output in f32.
    wide: Vec<f32>,
}

impl Operands {
    fn of(operands: &[Operand; 5], [_, key_heads, key]: [usize; 3], [_, value_heads, value]: [usize; 3]) -> Self {
        let [q, k, v, g, beta] = operands.each_ref().map(|operand| rowwise(operand.data().clone()));
        Self { q, k, v, g, beta, sizes: Sizes { key_heads, value_heads, key, value } }
    }

    /// Outputs and last states of one sequence of `tokens` that goes on from the `initial` states.
    fn step<E: Element>(&self, initial: &[f32], tokens: usize) -> (Vec<E>, Vec<f32>) {
        let Sizes { key_heads, value_heads, value, .. } = self.sizes;
        let share = self.sizes.group() * self.sizes.state();
        let (mut out, mut last) = (vec![E::default(); tokens * value_heads * value], vec![0.0; key_heads * share]);
        let columns = ColumnsMut::split(&mut out, tokens, key_heads);
        let tasks: Vec<_> = columns.zip(initial.chunks_exact(share)).zip(last.chunks_exact_mut(share)).collect();
        let init = Scratch::default;
        tasks.into_par_iter().enumerate().for_each_init(init, |scratch, (key_head, ((out, initial), last))| {
            self.scan(Strip { start: 0, len: tokens, key_head }, Some(initial), out, &mut [], scratch);
            last.copy_from_slice(&scratch.states);
        });
        (out, last)
    }

    /// Writes the outputs of a strip. Returns the states between its chunks when it is to `keep` them; with `initial`
    /// states it leaves the last ones in `scratch`.
    fn scan<E: Element>(
        &self,
        strip: Strip,
        initial: Option<&[f32]>,
        mut out: ColumnsMut<E>,
        borders: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let Scratch { chunk, states, wide } = scratch;
        let Sizes { value: size, .. } = self.sizes;
        let mut borders = borders.chunks_exact_mut((self.sizes.group() * self.sizes.state()).max(1));
        states.resize(self.sizes.group() * self.sizes.state(), 0.0);
        if let Some(initial) = initial {
            states.copy_from_slice(initial);
        }
        for first in strip.chunks() {
            let empty = first == 0 && initial.is_none();
            if first > 0
                && let Some(border) = borders.next()
            {
                border.copy_from_slice(states);
            }
            chunk.load::<E>(self, strip.tokens(first), strip.key_head);
            for (member, state) in states.chunks_exact_mut(self.sizes.state()).enumerate() {
                let head = strip.key_head * self.sizes.group() + member;
                chunk.read::<E>(self, head, (!empty).then_some(state));
                for (row, values) in chunk.output(size).chunks_exact(size).enumerate() {
                    let out = &mut out.row(first + row)[member * size..][..size];
                    E::write(out, wide, |out| out.copy_from_slice(values));
                }
                if initial.is_some() || !strip.ends(first) {
                    chunk.advance(self.sizes, state, empty);
                }
            }
        }
    }
}
