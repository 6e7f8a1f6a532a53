//! The sum on the CPU.

use burn::Tensor;
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn_flex::FlexTensor;

use crate::cpu::element::{Element, PIECE, by_element};
use crate::cpu::operand::{Operand, contiguous, record};
use crate::cpu::rows::{filled, for_blocks};
use crate::cpu::vector;

/// Gives the operands back when they are not f32 or bf16 tensors on burn-flex.
#[expect(clippy::result_large_err, reason = "no error: the operands, for the reference form")]
pub(super) fn add<const D: usize>(x: Tensor<D>, y: Tensor<D>) -> Result<Tensor<D>, [Tensor<D>; 2]> {
    let (Some(x_operand), Some(y_operand)) = (Operand::of_float(&x), Operand::of_float(&y)) else {
        return Err([x, y]);
    };
    let dtype = x.dtype();
    // From here on the operands are the only handles of this function: what nobody else holds may be overwritten.
    drop([x, y]);
    let mut parents = [x_operand, y_operand];
    let [x, y] = parents.each_mut().map(|operand| contiguous(operand.take()));
    let sum = by_element!(dtype, E => sum::<E>(x, y));
    Ok(record(Step, parents, sum, || ()))
}

fn sum<E: Element>(mut x: FlexTensor, mut y: FlexTensor) -> FlexTensor {
    if let Some(values) = E::unshared(&mut y) {
        accumulate(values, E::slice(&x));
        return y;
    }
    if let Some(values) = E::unshared(&mut x) {
        accumulate(values, E::slice(&y));
        return x;
    }
    let shape = x.layout().shape().clone();
    let (x, y) = (E::slice(&x), E::slice(&y));
    let sums = filled(x.len(), 1, |first, block: &mut [E]| {
        let [mut wide_x, mut wide_y, mut wide_sum] = [const { Vec::new() }; 3];
        for (sum, first) in block.chunks_mut(PIECE).zip((first..).step_by(PIECE)) {
            let x = E::read(&x[first..first + sum.len()], &mut wide_x);
            let y = E::read(&y[first..first + sum.len()], &mut wide_y);
            E::write(sum, &mut wide_sum, |sum| vector::sums(sum, x, y));
        }
    });
    E::tensor(sums, shape)
}

/// `sum += x`.
fn accumulate<E: Element>(sum: &mut [E], x: &[E]) {
    for_blocks(sum, 1, |first, block| {
        let [mut wide_x, mut wide_sum] = [const { Vec::new() }; 2];
        for (sum, first) in block.chunks_mut(PIECE).zip((first..).step_by(PIECE)) {
            let x = E::read(&x[first..first + sum.len()], &mut wide_x);
            E::update(sum, &mut wide_sum, |sum| vector::accumulate(sum, x));
        }
    });
}

#[derive(Debug)]
struct Step;

impl Backward<Flex, 2> for Step {
    type State = ();

    fn backward(self, ops: Ops<(), 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<Flex>(&ops.node);
        for node in ops.parents.into_iter().flatten() {
            grads.register::<Flex>(node.id, dy.clone());
        }
    }
}
