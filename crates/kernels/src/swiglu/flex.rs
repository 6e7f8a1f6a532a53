//! The gated activation on the CPU.

use std::marker::PhantomData;

use burn::Tensor;
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn_flex::FlexTensor;

use crate::Input;
use crate::cpu::element::{Element, PIECE, by_element, rows_of_piece};
use crate::cpu::operand::{Operand, contiguous, record_formed};
use crate::cpu::rows::{filled, filled_two};
use crate::cpu::vector;

/// `None` when an operand is not an f32 or bf16 tensor on burn-flex.
pub(super) fn swiglu(gate: &Tensor<2>, up: &Tensor<2>) -> Option<Input<2>> {
    let parents = [Operand::of_float(gate)?, Operand::of_float(up)?];
    Some(by_element!(gate.dtype(), E => forward::<E>(parents, gate.dims())))
}

fn forward<E: Element>(parents: [Operand; 2], shape: [usize; 2]) -> Input<2> {
    let [gate, up] = parents.each_ref().map(Operand::contiguous);
    let y = activation::<E>(&gate, &up);
    let sources = (gate.clone(), up.clone());
    let again = move || E::tensor(activation::<E>(&sources.0, &sources.1), shape);
    record_formed(Step::<E>(PhantomData), parents, E::tensor(y, shape), || Saved { gate, up }, again)
}

fn activation<E: Element>(gate: &FlexTensor, up: &FlexTensor) -> Vec<E> {
    let (gates, ups) = (E::slice(gate), E::slice(up));
    filled(gates.len(), 1, |first, block: &mut [E]| {
        let [mut wide_gate, mut wide_up, mut wide_y] = [const { Vec::new() }; 3];
        for (y, first) in block.chunks_mut(PIECE).zip((first..).step_by(PIECE)) {
            let gate = E::read(&gates[first..first + y.len()], &mut wide_gate);
            let up = E::read(&ups[first..first + y.len()], &mut wide_up);
            E::write(y, &mut wide_y, |y| vector::swiglu(y, gate, up));
        }
    })
}

#[derive(Debug)]
struct Step<E>(PhantomData<E>);

#[derive(Clone, Debug)]
struct Saved {
    gate: FlexTensor,
    up: FlexTensor,
}

impl<E: Element> Backward<Flex, 2> for Step<E> {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let Saved { gate, up } = &ops.state;
        let (dgate, dup) = gradients(E::slice(gate), E::slice(up), E::slice(&dy));
        for (node, gradient) in ops.parents.into_iter().zip([dgate, dup]) {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, E::tensor(gradient, gate.layout().shape().clone()));
            }
        }
    }
}

fn gradients<E: Element>(gates: &[E], ups: &[E], dys: &[E]) -> (Vec<E>, Vec<E>) {
    filled_two(gates.len(), [1, 1], |first, dgate: &mut [E], dup: &mut [E]| {
        let [mut wide_gate, mut wide_up, mut wide_dy, mut wide_dgate, mut wide_dup] = [const { Vec::new() }; 5];
        let pieces = dgate.chunks_mut(PIECE).zip(dup.chunks_mut(PIECE)).zip((first..).step_by(PIECE));
        for ((dgate, dup), first) in pieces {
            let range = first..first + dgate.len();
            let gate = E::read(&gates[range.clone()], &mut wide_gate);
            let up = E::read(&ups[range.clone()], &mut wide_up);
            let dy = E::read(&dys[range], &mut wide_dy);
            E::write(dgate, &mut wide_dgate, |dgate| {
                E::write(dup, &mut wide_dup, |dup| vector::swiglu_backward(dgate, dup, gate, up, dy));
            });
        }
    })
}

/// `None` when the operand is not an f32 or bf16 tensor on burn-flex.
pub(super) fn swiglu_joined(both: &Tensor<2>) -> Option<Input<2>> {
    let parent = Operand::of_float(both)?;
    Some(by_element!(both.dtype(), E => forward_joined::<E>(parent, both.dims())))
}

fn forward_joined<E: Element>(parent: Operand, [rows, both_width]: [usize; 2]) -> Input<2> {
    let both = parent.contiguous();
    let form = move |both: &FlexTensor| E::tensor(joined_activation::<E>(both, both_width), [rows, both_width / 2]);
    let (y, source) = (form(&both), both.clone());
    record_formed(StepJoined::<E>(PhantomData), [parent], y, || both, move || form(&source))
}

fn joined_activation<E: Element>(both: &FlexTensor, both_width: usize) -> Vec<E> {
    let (values, width) = (E::slice(both), both_width / 2);
    let rows = values.len().checked_div(both_width).unwrap_or(0);
    filled(rows * width, width, |first, block: &mut [E]| {
        let [mut wide_both, mut wide_y] = [const { Vec::new() }; 2];
        let step = rows_of_piece(both_width);
        for (y, row) in block.chunks_mut(step * width).zip((first..).step_by(step)) {
            let both = E::read(&values[row * both_width..][..2 * y.len()], &mut wide_both);
            E::write(y, &mut wide_y, |y| {
                for (y, both) in y.chunks_exact_mut(width).zip(both.chunks_exact(both_width)) {
                    vector::swiglu(y, &both[..width], &both[width..]);
                }
            });
        }
    })
}

#[derive(Debug)]
struct StepJoined<E>(PhantomData<E>);

impl<E: Element> Backward<Flex, 1> for StepJoined<E> {
    type State = FlexTensor;

    fn backward(self, ops: Ops<FlexTensor, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        if let [Some(node)] = ops.parents {
            let shape = ops.state.layout().shape().clone();
            let gradient = joined_gradient(E::slice(&ops.state), E::slice(&dy), shape[1]);
            grads.register::<Flex>(node.id, E::tensor(gradient, shape));
        }
    }
}

fn joined_gradient<E: Element>(both: &[E], dys: &[E], both_width: usize) -> Vec<E> {
    let width = both_width / 2;
    filled(both.len(), both_width, |first, block: &mut [E]| {
        let [mut wide_both, mut wide_dy, mut wide_dboth] = [const { Vec::new() }; 3];
        let step = rows_of_piece(both_width);
        for (dboth, row) in block.chunks_mut(step * both_width).zip((first..).step_by(step)) {
            let both = E::read(&both[row * both_width..][..dboth.len()], &mut wide_both);
            let dy = E::read(&dys[row * width..][..dboth.len() / 2], &mut wide_dy);
            E::write(dboth, &mut wide_dboth, |dboth| {
                let rows = dboth.chunks_exact_mut(both_width).zip(both.chunks_exact(both_width));
                for ((dboth, both), dy) in rows.zip(dy.chunks_exact(width)) {
                    let (dgate, dup) = dboth.split_at_mut(width);
                    vector::swiglu_backward(dgate, dup, &both[..width], &both[width..], dy);
                }
            });
        }
    })
}
