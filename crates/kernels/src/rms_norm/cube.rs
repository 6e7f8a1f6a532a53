//! The norm on a GPU.

use burn::Tensor;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn_cubecl::tensor::CubeTensor;

use crate::gpu::norm::{Behind, Norm};
use crate::gpu::tensor::{column_sums, dense, float_operand};
use crate::gpu::{Cube, Operand};
use crate::tape::record;

/// `None` when an operand is not a tensor of a GPU. The weight may have another type than `x`.
pub(super) fn rms_norm<const D: usize>(
    x: &Tensor<D>,
    weight: &Tensor<1>,
    eps: f64,
    zero_centred: bool,
) -> Option<Tensor<D>> {
    Some(normed([float_operand(x)?, float_operand(weight)?], eps, zero_centred, Behind::Nothing))
}

/// A norm of `x` by a `weight`, the parents, and what comes behind it and gets no gradient.
pub(crate) fn normed<const D: usize>(parents: [Operand; 2], eps: f64, zero_centred: bool, behind: Behind) -> Tensor<D> {
    let [x, weight] = parents.each_ref().map(dense);
    let norm = Norm { x, weight, offset: if zero_centred { 1.0 } else { 0.0 }, behind };
    let (y, rstd) = norm.forward(eps);
    record(Step, parents, y, || Saved { norm, rstd })
}

#[derive(Debug)]
struct Step;

#[derive(Clone, Debug)]
struct Saved {
    norm: Norm,
    rstd: CubeTensor,
}

impl Backward<Cube, 2> for Step {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = dense(&Operand::constant(grads.consume::<Cube>(&ops.node)));
        let Saved { norm, rstd } = &ops.state;
        let [x_node, weight_node] = ops.parents;
        if let Some(node) = x_node {
            grads.register::<Cube>(node.id, norm.input_gradient(&dy, rstd).0);
        }
        if let Some(node) = weight_node {
            grads.register::<Cube>(node.id, column_sums(norm.weight_gradient(&dy, rstd), norm.weight.dtype));
        }
    }
}
