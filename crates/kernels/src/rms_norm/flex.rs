//! The norm on the CPU.

use burn::Tensor;
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn_flex::FlexTensor;

use crate::cpu::operand::{Operand, contiguous, from_vec, record, slice};
use crate::cpu::rows::{for_blocks, for_blocks_of_two, sum_blocks};
use crate::cpu::vector;

/// `None` when an operand is not an f32 tensor on burn-flex.
pub(super) fn rms_norm<const D: usize>(
    x: &Tensor<D>,
    weight: &Tensor<1>,
    eps: f64,
    zero_centred: bool,
) -> Option<Tensor<D>> {
    let (shape, size) = (x.dims(), weight.dims()[0]);
    let parents = [Operand::of(x)?, Operand::of(weight)?];
    let [x, weight] = parents.each_ref().map(Operand::contiguous);
    let factors = factors(&weight, zero_centred);
    let values = slice(&x);
    let rows = values.len().checked_div(size).unwrap_or(0);
    let (mut y, mut rstd) = (vec![0.0; values.len()], vec![0.0; rows]);
    for_blocks_of_two((&mut y, size), (&mut rstd, 1), |first, block, rstd| {
        for ((y, rstd), row) in block.chunks_exact_mut(size).zip(rstd).zip(first..) {
            let x = &values[row * size..][..size];
            *rstd = inverse_rms(x, eps);
            vector::scaled_product(y, x, *rstd, &factors);
        }
    });
    Some(record(Step, parents, from_vec(y, shape), || Saved { x, rstd, weight, zero_centred }))
}

/// `1/sqrt(mean(x²) + eps)`.
pub(crate) fn inverse_rms(x: &[f32], eps: f64) -> f32 {
    1.0 / (vector::sum_of_squares(x) / x.len() as f32 + eps as f32).sqrt()
}

/// What a normed value is multiplied by.
fn factors(weight: &FlexTensor, zero_centred: bool) -> Vec<f32> {
    let offset = if zero_centred { 1.0 } else { 0.0 };
    slice(weight).iter().map(|weight| weight + offset).collect()
}

#[derive(Debug)]
struct Step;

#[derive(Clone, Debug)]
struct Saved {
    x: FlexTensor,
    rstd: Vec<f32>,
    weight: FlexTensor,
    zero_centred: bool,
}

impl Backward<Flex, 2> for Step {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let Saved { x, rstd, weight, zero_centred } = ops.state;
        let (factors, shape) = (factors(&weight, zero_centred), x.layout().shape().clone());
        let (size, x, dy) = (factors.len(), slice(&x), slice(&dy));
        let [x_node, weight_node] = ops.parents;
        if let Some(node) = x_node {
            let dx = input_gradient(x, dy, &rstd, &factors);
            grads.register::<Flex>(node.id, from_vec(dx, shape));
        }
        if let Some(node) = weight_node {
            grads.register::<Flex>(node.id, from_vec(weight_gradient(x, dy, &rstd, size), [size]));
        }
    }
}

/// With `g = w ⊙ dy`: `dx = rstd·g - x·rstd³·mean(g ⊙ x)`.
pub(crate) fn input_gradient(x: &[f32], dy: &[f32], rstd: &[f32], factors: &[f32]) -> Vec<f32> {
    let size = factors.len();
    let mut dx = vec![0.0; x.len()];
    for_blocks(&mut dx, size, |first, block| {
        for (dx, row) in block.chunks_exact_mut(size).zip(first..) {
            let (x, dy, r) = (&x[row * size..][..size], &dy[row * size..][..size], rstd[row]);
            let mean = vector::dot_of_three(x, dy, factors) / size as f32;
            vector::norm_backward(dx, x, factors, dy, r, mean * r * r * r);
        }
    });
    dx
}

/// `dw = Σ_rows dy ⊙ x·rstd`.
pub(crate) fn weight_gradient(x: &[f32], dy: &[f32], rstd: &[f32], size: usize) -> Vec<f32> {
    sum_blocks(rstd.len(), size, size, |rows, sum| {
        for row in rows {
            vector::accumulate_product(sum, rstd[row], &x[row * size..][..size], &dy[row * size..][..size]);
        }
    })
}
