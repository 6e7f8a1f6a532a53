//! The gated norm on the CPU. With `n` the normed row, `y = silu(z)·n` is the gated activation, row by row.

use burn::Tensor;
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn_flex::FlexTensor;

use crate::cpu::operand::{Operand, contiguous, from_vec, record, slice};
use crate::cpu::rows::for_blocks_of_two;
use crate::cpu::vector;
use crate::rms_norm::flex::{input_gradient, inverse_rms, weight_gradient};

/// `None` when an operand is not an f32 tensor on burn-flex.
pub(super) fn gated_norm<const D: usize>(
    x: &Tensor<D>,
    z: &Tensor<D>,
    weight: &Tensor<1>,
    eps: f64,
) -> Option<Tensor<D>> {
    let (shape, size) = (x.dims(), weight.dims()[0]);
    let parents = [Operand::of(x)?, Operand::of(z)?, Operand::of(weight)?];
    let [x, z, weight] = parents.each_ref().map(Operand::contiguous);
    let (x_values, z_values, factors) = (slice(&x), slice(&z), slice(&weight));
    let rows = x_values.len().checked_div(size).unwrap_or(0);
    let (mut y, mut rstd) = (vec![0.0; x_values.len()], vec![0.0; rows]);
    for_blocks_of_two((&mut y, size), (&mut rstd, 1), |first, block, rstd| {
        let mut normed = vec![0.0; size];
        for ((y, rstd), row) in block.chunks_exact_mut(size).zip(rstd).zip(first..) {
            let (x, z) = (&x_values[row * size..][..size], &z_values[row * size..][..size]);
            *rstd = inverse_rms(x, eps);
            vector::scaled_product(&mut normed, x, *rstd, factors);
            vector::swiglu(y, z, &normed);
        }
    });
    Some(record(Step, parents, from_vec(y, shape), || Saved { x, z, rstd, weight }))
}

#[derive(Debug)]
struct Step;

#[derive(Clone, Debug)]
struct Saved {
    x: FlexTensor,
    z: FlexTensor,
    rstd: Vec<f32>,
    weight: FlexTensor,
}

impl Backward<Flex, 3> for Step {
    type State = Saved;

    /// The backward of the activation gives `dz` and the gradient of the normed rows, that of the norm the rest.
    fn backward(self, ops: Ops<Saved, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let Saved { x, z, rstd, weight } = &ops.state;
        let (shape, factors) = (x.layout().shape().clone(), slice(weight));
        let (size, x, z, dy) = (factors.len(), slice(x), slice(z), slice(&dy));
        let (mut dz, mut dnormed) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        for_blocks_of_two((&mut dz, size), (&mut dnormed, size), |first, dz, dnormed| {
            let mut normed = vec![0.0; size];
            for ((dz, dnormed), row) in dz.chunks_exact_mut(size).zip(dnormed.chunks_exact_mut(size)).zip(first..) {
                let range = row * size..(row + 1) * size;
                vector::scaled_product(&mut normed, &x[range.clone()], rstd[row], factors);
                vector::swiglu_backward(dz, dnormed, &z[range.clone()], &normed, &dy[range]);
            }
        });
        let [x_node, z_node, weight_node] = ops.parents;
        if let Some(node) = x_node {
            grads.register::<Flex>(node.id, from_vec(input_gradient(x, &dnormed, rstd, factors), shape.clone()));
        }
        if let Some(node) = z_node {
            grads.register::<Flex>(node.id, from_vec(dz, shape));
        }
        if let Some(node) = weight_node {
            grads.register::<Flex>(node.id, from_vec(weight_gradient(x, &dnormed, rstd, size), [size]));
        }
    }
}
