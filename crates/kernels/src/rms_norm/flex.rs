//! The norm on the CPU.

use burn::Tensor;
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::cpu::operand::{Operand, contiguous, from_vec, record, slice};
use crate::cpu::rows::{add, for_blocks, for_blocks_of_two, rows_per_task};
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
            *rstd = 1.0 / (vector::sum_of_squares(x) / size as f32 + eps as f32).sqrt();
            vector::scaled_product(y, x, *rstd, &factors);
        }
    });
    Some(record(Step, parents, from_vec(y, shape), || Saved { x, rstd, weight, zero_centred }))
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

    /// With `g = w ⊙ dy`: `dx = rstd·g - x·rstd³·mean(g ⊙ x)` and `dw = Σ_rows dy ⊙ x·rstd`.
    fn backward(self, ops: Ops<Saved, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let Saved { x, rstd, weight, zero_centred } = ops.state;
        let (factors, shape) = (factors(&weight, zero_centred), x.layout().shape().clone());
        let (size, x, dy) = (factors.len(), slice(&x), slice(&dy));
        let [x_node, weight_node] = ops.parents;
        if let Some(node) = x_node {
            let mut dx = vec![0.0; x.len()];
            for_blocks(&mut dx, size, |first, block| {
                for (dx, row) in block.chunks_exact_mut(size).zip(first..) {
                    let (x, dy, r) = (&x[row * size..][..size], &dy[row * size..][..size], rstd[row]);
                    let mean = vector::dot_of_three(x, dy, &factors) / size as f32;
                    vector::norm_backward(dx, x, &factors, dy, r, mean * r * r * r);
                }
            });
            grads.register::<Flex>(node.id, from_vec(dx, shape));
        }
        if let Some(node) = weight_node {
            grads.register::<Flex>(node.id, from_vec(weight_gradient(x, dy, &rstd, size), [size]));
        }
    }
}

/// Blocks of rows in parallel, their sums in order.
fn weight_gradient(x: &[f32], dy: &[f32], rstd: &[f32], size: usize) -> Vec<f32> {
    let rows = rows_per_task(size);
    let sums: Vec<Vec<f32>> = rstd
        .par_chunks(rows)
        .enumerate()
        .map(|(block, rstd)| {
            let mut sum = vec![0.0; size];
            for (&r, row) in rstd.iter().zip(block * rows..) {
                vector::accumulate_product(&mut sum, r, &x[row * size..][..size], &dy[row * size..][..size]);
            }
            sum
        })
        .collect();
    let mut total = vec![0.0; size];
    for sum in &sums {
        add(&mut total, sum);
    }
    total
}
