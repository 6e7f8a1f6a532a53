//! The gated activation on the CPU.

use burn::Tensor;
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::Shape;
use burn_flex::FlexTensor;

use crate::cpu::operand::{Operand, contiguous, from_vec, record, slice};
use crate::cpu::rows::{for_blocks, for_blocks_of_two};
use crate::cpu::vector;

/// `None` when an operand is not an f32 tensor on burn-flex.
pub(super) fn swiglu(gate: &Tensor<2>, up: &Tensor<2>) -> Option<Tensor<2>> {
    let shape = gate.dims();
    let parents = [Operand::of(gate)?, Operand::of(up)?];
    let [gate, up] = parents.each_ref().map(Operand::contiguous);
    let (gate_values, up_values) = (slice(&gate), slice(&up));
    let mut y = vec![0.0; gate_values.len()];
    for_blocks(&mut y, 1, |first, y| {
        let range = first..first + y.len();
        vector::swiglu(y, &gate_values[range.clone()], &up_values[range]);
    });
    Some(record(Step, parents, from_vec(y, shape), || Saved { gate, up }))
}

#[derive(Debug)]
struct Step;

#[derive(Clone, Debug)]
struct Saved {
    gate: FlexTensor,
    up: FlexTensor,
}

impl Backward<Flex, 2> for Step {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let (gate, up, dy) = (slice(&ops.state.gate), slice(&ops.state.up), slice(&dy));
        let (mut dgate, mut dup) = (vec![0.0; gate.len()], vec![0.0; gate.len()]);
        for_blocks_of_two((&mut dgate, 1), (&mut dup, 1), |first, dgate, dup| {
            let range = first..first + dgate.len();
            vector::swiglu_backward(dgate, dup, &gate[range.clone()], &up[range.clone()], &dy[range]);
        });
        let shape: Shape = ops.state.gate.layout().shape().clone();
        let [gate_node, up_node] = ops.parents;
        if let Some(node) = gate_node {
            grads.register::<Flex>(node.id, from_vec(dgate, shape.clone()));
        }
        if let Some(node) = up_node {
            grads.register::<Flex>(node.id, from_vec(dup, shape));
        }
    }
}
