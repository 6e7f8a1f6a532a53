//! The probabilities on the CPU.

use burn::Tensor;
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn_flex::FlexTensor;

use crate::cpu::operand::{Operand, contiguous, from_vec, record, slice};
use crate::cpu::rows::filled;
use crate::cpu::vector;

/// `None` when `x` is not an f32 tensor on burn-flex.
pub(super) fn softmax(x: &Tensor<2>) -> Option<Tensor<2>> {
    let (shape, parent) = (x.dims(), Operand::of(x)?);
    let (x, size) = (parent.contiguous(), shape[1]);
    let values = slice(&x);
    let p = filled(values.len(), size, |first, block: &mut [f32]| {
        block.copy_from_slice(&values[first * size..][..block.len()]);
        for row in block.chunks_exact_mut(size) {
            let max = vector::max(row);
            let sum = vector::exp_and_sum(row, max);
            vector::scale(row, 1.0 / sum);
        }
    });
    let p = from_vec(p, shape);
    Some(record(Step, [parent], p.clone(), || p))
}

#[derive(Debug)]
struct Step;

impl Backward<Flex, 1> for Step {
    type State = FlexTensor;

    /// `dx = p ⊙ (dp - Σ p·dp)`.
    fn backward(self, ops: Ops<FlexTensor, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dp = contiguous(grads.consume::<Flex>(&ops.node));
        let (shape, p, dp) = (ops.state.layout().shape().clone(), slice(&ops.state), slice(&dp));
        let size = shape[1];
        let [Some(node)] = ops.parents else { return };
        let dx = filled(p.len(), size, |first, block: &mut [f32]| {
            for (dx, row) in block.chunks_exact_mut(size).zip(first..) {
                let (p, dp) = (&p[row * size..][..size], &dp[row * size..][..size]);
                vector::softmax_gradient(dx, p, dp, vector::dot(p, dp));
            }
        });
        grads.register::<Flex>(node.id, from_vec(dx, shape));
    }
}
