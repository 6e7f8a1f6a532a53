//! The start of a sweep on a GPU.

use burn::Tensor;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use crate::gpu::Cube;
use crate::gpu::tensor::{float_operand, primitive};
use crate::tape::record;

/// `None` when a tensor is not one of a GPU.
pub(super) fn seed<const D: usize>(y: &Tensor<D>, gradient: &Tensor<D>) -> Option<Tensor<1>> {
    let parents = [float_operand(y)?];
    let gradient = float_operand(gradient)?.data();
    assert_eq!(y.dtype(), gradient.dtype, "seed: a gradient has the dtype of its tensor");
    let number = Tensor::<1>::zeros([1], (&y.device().without_autodiff(), DType::F32));
    Some(record(Step, parents, primitive(number), || gradient))
}

#[derive(Debug)]
struct Step;

impl Backward<Cube, 1> for Step {
    type State = CubeTensor;

    /// What comes from above is 1 (a sweep starts here, or passes a sum on its way); reading it would wait for the device.
    fn backward(self, ops: Ops<CubeTensor, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        grads.consume::<Cube>(&ops.node);
        if let [Some(node)] = ops.parents {
            grads.register::<Cube>(node.id, ops.state);
        }
    }
}
