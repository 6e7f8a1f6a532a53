//! The rotation on the CPU.

use burn::Tensor;
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn_flex::FlexTensor;

use crate::cpu::operand::{Operand, contiguous, from_vec, record, slice};
use crate::cpu::rows::for_blocks;
use crate::cpu::vector;

/// `None` when an operand is not an f32 tensor on burn-flex.
pub(super) fn rope(x: &Tensor<3>, cos: &Tensor<2>, sin: &Tensor<2>) -> Option<Tensor<3>> {
    let x = Operand::of(x)?;
    let (cos, sin) = (Operand::of(cos)?.contiguous(), Operand::of(sin)?.contiguous());
    let y = rotated(&x.contiguous(), &cos, &sin, 1.0);
    Some(record(Step, [x], y, || Saved { cos, sin }))
}

/// Every head vector turned by its token's angles, forwards or (`sign = -1`) backwards.
fn rotated(x: &FlexTensor, cos: &FlexTensor, sin: &FlexTensor, sign: f32) -> FlexTensor {
    let [heads, size] = [x.layout().shape()[1], x.layout().shape()[2]];
    let half = cos.layout().shape()[1];
    let (values, cos, sin) = (slice(x), slice(cos), slice(sin));
    let mut y = vec![0.0; values.len()];
    for_blocks(&mut y, heads * size, |first, block| {
        for (row, token) in block.chunks_exact_mut(heads * size).zip(first..) {
            let (cos, sin) = (&cos[token * half..][..half], &sin[token * half..][..half]);
            let source = &values[token * heads * size..][..heads * size];
            for (y, x) in row.chunks_exact_mut(size).zip(source.chunks_exact(size)) {
                vector::rotate(y, x, cos, sin, sign);
                y[2 * half..].copy_from_slice(&x[2 * half..]);
            }
        }
    });
    from_vec(y, x.layout().shape().clone())
}

#[derive(Debug)]
struct Step;

#[derive(Clone, Debug)]
struct Saved {
    cos: FlexTensor,
    sin: FlexTensor,
}

impl Backward<Flex, 1> for Step {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        if let [Some(node)] = ops.parents {
            grads.register::<Flex>(node.id, rotated(&dy, &ops.state.cos, &ops.state.sin, -1.0));
        }
    }
}
