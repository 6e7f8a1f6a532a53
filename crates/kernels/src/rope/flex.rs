//! The rotation on the CPU.

use std::marker::PhantomData;

use burn::Tensor;
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn_flex::FlexTensor;

use crate::cpu::element::{Element, by_element};
use crate::cpu::operand::{Operand, contiguous, record, slice};
use crate::cpu::rows::filled;
use crate::cpu::vector;

/// `None` when `x` is not an f32 or bf16 tensor on burn-flex, or the angles are not f32.
pub(super) fn rope(x: &Tensor<3>, cos: &Tensor<2>, sin: &Tensor<2>) -> Option<Tensor<3>> {
    let x = Operand::of_float(x)?;
    let (cos, sin) = (Operand::of(cos)?.contiguous(), Operand::of(sin)?.contiguous());
    Some(by_element!(x.dtype(), E => forward::<E>(x, cos, sin)))
}

fn forward<E: Element>(x: Operand, cos: FlexTensor, sin: FlexTensor) -> Tensor<3> {
    let y = rotated::<E>(&x.contiguous(), &cos, &sin, 1.0);
    record(Step::<E>(PhantomData), [x], y, || Saved { cos, sin })
}

/// Every head vector turned by its token's angles, forwards or (`sign = -1`) backwards.
fn rotated<E: Element>(x: &FlexTensor, cos: &FlexTensor, sin: &FlexTensor, sign: f32) -> FlexTensor {
    let [heads, size] = [x.layout().shape()[1], x.layout().shape()[2]];
    let half = cos.layout().shape()[1];
    let (values, cos, sin) = (E::slice(x), slice(cos), slice(sin));
    let y = filled(values.len(), heads * size, |first, block: &mut [E]| {
        let [mut wide_x, mut wide_y] = [const { Vec::new() }; 2];
        for (row, token) in block.chunks_exact_mut(heads * size).zip(first..) {
            let [cos, sin] = [cos, sin].map(|angles| &angles[token * half..][..half]);
            let angles = vector::Angles { cos, sin };
            let source = E::read(&values[token * heads * size..][..heads * size], &mut wide_x);
            E::write(row, &mut wide_y, |row| vector::rotate_heads(row, source, size, angles, sign));
        }
    });
    E::tensor(y, x.layout().shape().clone())
}

#[derive(Debug)]
struct Step<E>(PhantomData<E>);

#[derive(Clone, Debug)]
struct Saved {
    cos: FlexTensor,
    sin: FlexTensor,
}

impl<E: Element> Backward<Flex, 1> for Step<E> {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        if let [Some(node)] = ops.parents {
            grads.register::<Flex>(node.id, rotated::<E>(&dy, &ops.state.cos, &ops.state.sin, -1.0));
        }
    }
}
