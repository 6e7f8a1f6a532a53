//! The gate on the CPU.

use std::marker::PhantomData;

use burn::Tensor;
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn_flex::FlexTensor;

use crate::Input;
use crate::cpu::element::{Element, by_element, rows_of_piece};
use crate::cpu::operand::{Operand, contiguous, record_formed};
use crate::cpu::rows::{filled, filled_two};
use crate::cpu::vector;

/// `None` when an operand is not an f32 or bf16 tensor on burn-flex.
pub(super) fn sigmoid_gate<const D: usize>(x: &Tensor<D>, gate: &Tensor<D>) -> Option<Input<D>> {
    let parents = [Operand::of_float(x)?, Operand::of_float(gate)?];
    Some(by_element!(x.dtype(), E => {
        let [x_data, gate] = parents.each_ref().map(Operand::contiguous);
        let gated = Gated { x: x_data, gate };
        let (source, shape) = (gated.clone(), x.dims());
        let again = move || E::tensor(source.forward::<E>(), shape);
        record_formed(Step::<E>(PhantomData), parents, E::tensor(gated.forward::<E>(), shape), || gated, again)
    }))
}

#[derive(Clone, Debug)]
struct Gated {
    x: FlexTensor,
    gate: FlexTensor,
}

/// Size of the last axis.
fn width(tensor: &FlexTensor) -> usize {
    tensor.layout().shape().last().copied().unwrap_or(1)
}

impl Gated {
    /// Rows, elements of a row, gates of a row.
    fn sizes(&self) -> [usize; 3] {
        let (size, gates) = (width(&self.x), width(&self.gate));
        [self.x.layout().num_elements().checked_div(size).unwrap_or(0), size, gates]
    }

    fn forward<E: Element>(&self) -> Vec<E> {
        let ([rows, size, gates], x, gate) = (self.sizes(), E::slice(&self.x), E::slice(&self.gate));
        filled(rows * size, size, |first, block: &mut [E]| {
            let [mut wide_x, mut wide_gate, mut wide_y] = [const { Vec::new() }; 3];
            let step = rows_of_piece(size);
            for (y, row) in block.chunks_mut(step * size).zip((first..).step_by(step)) {
                let rows = y.len() / size;
                let x = E::read(&x[row * size..][..y.len()], &mut wide_x);
                let gate = E::read(&gate[row * gates..][..rows * gates], &mut wide_gate);
                E::write(y, &mut wide_y, |y| {
                    if gates == size {
                        return vector::sigmoid_gate(y, x, gate);
                    }
                    for ((y, x), gate) in y.chunks_exact_mut(size).zip(x.chunks_exact(size)).zip(gate) {
                        vector::scaled(y, x, vector::sigmoid(*gate));
                    }
                });
            }
        })
    }

    /// With `s = σ(gate)`: `dx = dy ⊙ s`, `dgate = dx ⊙ x ⊙ (1 - s)`, added up over a row that has one gate.
    fn gradients<E: Element>(&self, dy: &[E]) -> (Vec<E>, Vec<E>) {
        let ([rows, size, gates], x, gate) = (self.sizes(), E::slice(&self.x), E::slice(&self.gate));
        filled_two(rows, [size, gates], |first, dx: &mut [E], dgate: &mut [E]| {
            let [mut wide_x, mut wide_gate, mut wide_dy, mut wide_dx, mut wide_dgate] = [const { Vec::new() }; 5];
            let step = rows_of_piece(size);
            let pieces = dx.chunks_mut(step * size).zip(dgate.chunks_mut(step * gates)).zip((first..).step_by(step));
            for ((dx, dgate), row) in pieces {
                let range = row * size..row * size + dx.len();
                let x = E::read(&x[range.clone()], &mut wide_x);
                let dy = E::read(&dy[range], &mut wide_dy);
                let gate = E::read(&gate[row * gates..][..dgate.len()], &mut wide_gate);
                let both = |dx: &mut [f32], dgate: &mut [f32]| {
                    if gates == size {
                        return vector::sigmoid_gate_backward(dx, dgate, x, gate, dy);
                    }
                    let operands = x.chunks_exact(size).zip(dy.chunks_exact(size)).zip(gate);
                    for ((dx, dgate), ((x, dy), gate)) in dx.chunks_exact_mut(size).zip(dgate).zip(operands) {
                        let s = vector::sigmoid(*gate);
                        vector::scaled(dx, dy, s);
                        *dgate = vector::dot(dx, x) * (1.0 - s);
                    }
                };
                E::write(dgate, &mut wide_dgate, |dgate| E::write(dx, &mut wide_dx, |dx| both(dx, dgate)));
            }
        })
    }
}

#[derive(Debug)]
struct Step<E>(PhantomData<E>);

impl<E: Element> Backward<Flex, 2> for Step<E> {
    type State = Gated;

    fn backward(self, ops: Ops<Gated, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let Gated { x, gate } = &ops.state;
        let (dx, dgate) = ops.state.gradients(E::slice(&dy));
        for ((node, gradient), operand) in ops.parents.into_iter().zip([dx, dgate]).zip([x, gate]) {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, E::tensor(gradient, operand.layout().shape().clone()));
            }
        }
    }
}
