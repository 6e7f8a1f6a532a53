//! The gated norm on a GPU: one kernel in each direction.

use burn::Tensor;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn_cubecl::tensor::CubeTensor;

use crate::gpu::norm::{Behind, Norm};
use crate::gpu::tensor::{column_sums, dense, float_operand};
use crate::gpu::{Cube, Operand};
use crate::tape::record;

/// `None` when an operand is not a tensor of a GPU, or `x` and `z` differ in their type.
pub(super) fn gated_norm<const D: usize>(
    x: &Tensor<D>,
    z: &Tensor<D>,
    weight: &Tensor<1>,
    eps: f64,
) -> Option<Tensor<D>> {
    if x.dtype() != z.dtype() {
        return None;
    }
    let parents = [float_operand(x)?, float_operand(z)?, float_operand(weight)?];
    let [x, z, weight] = parents.each_ref().map(dense);
    let norm = Norm { x, weight, offset: 0.0, behind: Behind::Gate(z) };
    let (y, rstd) = norm.forward(eps);
    Some(record(Step, parents, y, || Saved { norm, rstd }))
}

#[derive(Debug)]
struct Step;

#[derive(Clone, Debug)]
struct Saved {
    norm: Norm,
    rstd: CubeTensor,
}

impl Backward<Cube, 3> for Step {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = dense(&Operand::constant(grads.consume::<Cube>(&ops.node)));
        let Saved { norm, rstd } = &ops.state;
        let [x_node, z_node, weight_node] = ops.parents;
        if x_node.is_some() || z_node.is_some() {
            let (dx, dz) = norm.input_gradient(&dy, rstd);
            for (node, gradient) in [(x_node, Some(dx)), (z_node, dz)] {
                if let (Some(node), Some(gradient)) = (node, gradient) {
                    grads.register::<Cube>(node.id, gradient);
                }
            }
        }
        if let Some(node) = weight_node {
            grads.register::<Cube>(node.id, column_sums(norm.weight_gradient(&dy, rstd), norm.weight.dtype));
        }
    }
}
