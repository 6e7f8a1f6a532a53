//! The gated activation on the CPU.

use std::marker::PhantomData;

use burn::Tensor;
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn_flex::FlexTensor;

use crate::cpu::element::{Element, PIECE, by_element};
use crate::cpu::operand::{Operand, contiguous, record};
use crate::cpu::rows::{filled, filled_two};
use crate::cpu::vector;

/// `None` when an operand is not an f32 or bf16 tensor on burn-flex.
pub(super) fn swiglu(gate: &Tensor<2>, up: &Tensor<2>) -> Option<Tensor<2>> {
    let parents = [Operand::of_float(gate)?, Operand::of_float(up)?];
    Some(by_element!(gate.dtype(), E => forward::<E>(parents, gate.dims())))
}

fn forward<E: Element>(parents: [Operand; 2], shape: [usize; 2]) -> Tensor<2> {
    let [gate, up] = parents.each_ref().map(Operand::contiguous);
    let (gates, ups) = (E::slice(&gate), E::slice(&up));
    let y = filled(gates.len(), 1, |first, block: &mut [E]| {
        let [mut wide_gate, mut wide_up, mut wide_y] = [const { Vec::new() }; 3];
        for (y, first) in block.chunks_mut(PIECE).zip((first..).step_by(PIECE)) {
            let gate = E::read(&gates[first..first + y.len()], &mut wide_gate);
            let up = E::read(&ups[first..first + y.len()], &mut wide_up);
            E::write(y, &mut wide_y, |y| vector::swiglu(y, gate, up));
        }
    });
    record(Step::<E>(PhantomData), parents, E::tensor(y, shape), || Saved { gate, up })
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
