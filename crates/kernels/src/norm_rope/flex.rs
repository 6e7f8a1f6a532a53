//! Norm and rotation on the CPU: one pass over the heads in each direction.

use std::marker::PhantomData;

use burn::Tensor;
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn_flex::FlexTensor;

use crate::Input;
use crate::cpu::element::{Element, by_element, narrowed};
use crate::cpu::operand::{Operand, contiguous, record_formed, slice};
use crate::cpu::rows::{filled, filled_two, sum_blocks};
use crate::cpu::vector::{self, Angles};
use crate::rms_norm::flex::factors;

/// `None` when `x` or the weight is not an f32 or bf16 tensor on burn-flex, or the angles are not f32.
pub(super) fn norm_rope(
    x: &Tensor<3>,
    weight: &Tensor<1>,
    angles: [&Tensor<2>; 2],
    eps: f64,
    zero_centred: bool,
) -> Option<Input<3>> {
    let parents = [Operand::of_float(x)?, Operand::of_float(weight)?];
    let [cos, sin] = angles.map(|angle| Some(Operand::of(angle)?.contiguous()));
    let [x_data, weight] = parents.each_ref().map(Operand::contiguous);
    let norm = NormRope { x: x_data, rstd: Vec::new(), weight, zero_centred, cos: cos?, sin: sin? };
    Some(by_element!(x.dtype(), E => {
        let (y, rstd) = norm.forward::<E>(eps);
        let (source, shape) = (norm.clone(), x.dims());
        let again = move || E::tensor(source.forward::<E>(eps).0, shape);
        record_formed(Step::<E>(PhantomData), parents, E::tensor(y, shape), || NormRope { rstd, ..norm }, again)
    }))
}

#[derive(Clone, Debug)]
struct NormRope {
    x: FlexTensor,
    /// `1/sqrt(mean(x²) + eps)` of each head vector; empty until they are computed.
    rstd: Vec<f32>,
    weight: FlexTensor,
    zero_centred: bool,
    cos: FlexTensor,
    sin: FlexTensor,
}

/// Slices of what is read for every token.
#[derive(Clone, Copy)]
struct Rows<'a, E> {
    x: &'a [E],
    cos: &'a [f32],
    sin: &'a [f32],
    /// Elements of a token's heads, and of its angles.
    width: usize,
    half: usize,
}

impl<'a, E: Element> Rows<'a, E> {
    fn x(self, token: usize) -> &'a [E] {
        &self.x[token * self.width..][..self.width]
    }

    fn angles(self, token: usize) -> Angles<'a> {
        let range = token * self.half..(token + 1) * self.half;
        Angles { cos: &self.cos[range.clone()], sin: &self.sin[range] }
    }
}

impl NormRope {
    /// Tokens, heads of a token, their size.
    fn sizes(&self) -> [usize; 3] {
        let shape = self.x.layout().shape();
        [shape[0], shape[1], shape[2]]
    }

    fn rows<E: Element>(&self) -> Rows<'_, E> {
        let [_, heads, size] = self.sizes();
        let (cos, sin, half) = (slice(&self.cos), slice(&self.sin), self.cos.layout().shape()[1]);
        Rows { x: E::slice(&self.x), cos, sin, width: heads * size, half }
    }

    /// The result, and what every head vector was multiplied by.
    fn forward<E: Element>(&self, eps: f64) -> (Vec<E>, Vec<f32>) {
        let ([tokens, heads, size], rows) = (self.sizes(), self.rows::<E>());
        let factors = factors(&self.weight, self.zero_centred);
        filled_two(tokens, [rows.width, heads], |first, block: &mut [E], rstd: &mut [f32]| {
            let [mut wide_x, mut wide_y] = [const { Vec::new() }; 2];
            let mut normed = vec![0.0; size];
            let of_tokens = block.chunks_exact_mut(rows.width).zip(rstd.chunks_exact_mut(heads));
            for ((y, rstd), token) in of_tokens.zip(first..) {
                let (x, angles) = (E::read(rows.x(token), &mut wide_x), rows.angles(token));
                E::write(y, &mut wide_y, |y| {
                    vector::norm_rotate(y, rstd, x, &factors, &mut normed, angles, eps as f32);
                });
            }
        })
    }

    fn input_gradient<E: Element>(&self, dy: &[E]) -> Vec<E> {
        let ([tokens, heads, _], rows) = (self.sizes(), self.rows::<E>());
        let factors = factors(&self.weight, self.zero_centred);
        filled(tokens * rows.width, rows.width, |first, block: &mut [E]| {
            let [mut wide_x, mut wide_dy, mut wide_dx] = [const { Vec::new() }; 3];
            for (dx, token) in block.chunks_exact_mut(rows.width).zip(first..) {
                let (x, angles) = (E::read(rows.x(token), &mut wide_x), rows.angles(token));
                let dy = E::read(&dy[token * rows.width..][..rows.width], &mut wide_dy);
                let rstd = &self.rstd[token * heads..][..heads];
                E::write(dx, &mut wide_dx, |dx| vector::norm_rotate_backward(dx, x, dy, rstd, &factors, angles));
            }
        })
    }

    /// `dw = Σ g ⊙ x·rstd` over all heads, with `g` the upstream gradient turned back.
    fn weight_gradient<E: Element>(&self, dy: &[E]) -> Vec<f32> {
        let ([tokens, heads, size], rows) = (self.sizes(), self.rows::<E>());
        sum_blocks(tokens, rows.width, size, |tokens, sum| {
            let [mut wide_x, mut wide_dy] = [const { Vec::new() }; 2];
            let mut dnormed = vec![0.0; rows.width];
            for token in tokens {
                let (x, angles) = (E::read(rows.x(token), &mut wide_x), rows.angles(token));
                let dy = E::read(&dy[token * rows.width..][..rows.width], &mut wide_dy);
                vector::rotate_heads(&mut dnormed, dy, size, angles, -1.0);
                let heads =
                    x.chunks_exact(size).zip(dnormed.chunks_exact(size)).zip(&self.rstd[token * heads..][..heads]);
                for ((x, dnormed), rstd) in heads {
                    vector::accumulate_product(sum, *rstd, x, dnormed);
                }
            }
        })
    }
}

#[derive(Debug)]
struct Step<E>(PhantomData<E>);

impl<E: Element> Backward<Flex, 2> for Step<E> {
    type State = NormRope;

    fn backward(self, ops: Ops<NormRope, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let (norm, dy) = (&ops.state, E::slice(&dy));
        let [x_node, weight_node] = ops.parents;
        if let Some(node) = x_node {
            grads.register::<Flex>(node.id, E::tensor(norm.input_gradient(dy), norm.x.layout().shape().clone()));
        }
        if let Some(node) = weight_node {
            let [_, _, size] = norm.sizes();
            grads.register::<Flex>(node.id, narrowed(norm.weight_gradient(dy), [size], norm.weight.dtype()));
        }
    }
}
