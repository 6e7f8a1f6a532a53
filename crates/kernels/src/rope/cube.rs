//! The rotation on a GPU.

use burn::Tensor;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use crate::gpu::norm::rotated;
use crate::gpu::tensor::{dense, float_operand};
use crate::gpu::{Cube, Operand};
use crate::tape::record;

/// `None` when an operand is not a tensor of a GPU, or the angles are not f32.
pub(super) fn rope(x: &Tensor<3>, cos: &Tensor<2>, sin: &Tensor<2>) -> Option<Tensor<3>> {
    let parent = float_operand(x)?;
    let [cos, sin] = f32_angles([cos, sin])?.map(|angle| dense(&angle));
    let y = rotated(&dense(&parent), &cos, &sin, 1.0);
    Some(record(Step, [parent], y, || Saved { cos, sin }))
}

/// Cosines and sines where a kernel can read them.
pub(crate) fn f32_angles(angles: [&Tensor<2>; 2]) -> Option<[Operand; 2]> {
    let [cos, sin] = angles.map(|angle| (angle.dtype() == DType::F32).then(|| float_operand(angle)).flatten());
    Some([cos?, sin?])
}

#[derive(Debug)]
struct Step;

#[derive(Clone, Debug)]
struct Saved {
    cos: CubeTensor,
    sin: CubeTensor,
}

impl Backward<Cube, 1> for Step {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = dense(&Operand::constant(grads.consume::<Cube>(&ops.node)));
        if let [Some(node)] = ops.parents {
            grads.register::<Cube>(node.id, rotated(&dy, &ops.state.cos, &ops.state.sin, -1.0));
        }
    }
}
