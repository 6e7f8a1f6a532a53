//! The start of a sweep on the CPU.

use burn::Tensor;
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn_flex::FlexTensor;

use crate::cpu::operand::{Operand, from_vec, record};

/// `None` when a tensor is not an f32 or bf16 one on burn-flex.
pub(super) fn seed<const D: usize>(y: &Tensor<D>, gradient: &Tensor<D>) -> Option<Tensor<1>> {
    let parents = [Operand::of_float(y)?];
    let gradient = Operand::of_float(gradient)?;
    assert_eq!(parents[0].dtype(), gradient.dtype(), "seed: a gradient has the dtype of its tensor");
    Some(record(Step, parents, from_vec(vec![0.0], [1]), || gradient.data().clone()))
}

#[derive(Debug)]
struct Step;

impl Backward<Flex, 1> for Step {
    type State = FlexTensor;

    fn backward(self, ops: Ops<FlexTensor, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let upstream = grads.consume::<Flex>(&ops.node);
        let factor = upstream.storage::<f32>()[upstream.layout().start_offset()];
        assert!(factor == 1.0, "invariant: the sweep starts here, or passes a sum on its way");
        if let [Some(node)] = ops.parents {
            grads.register::<Flex>(node.id, ops.state);
        }
    }
}
