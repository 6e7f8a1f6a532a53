//! The norm on the CPU.

use std::marker::PhantomData;

use burn::Tensor;
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn_flex::FlexTensor;

use crate::Input;
use crate::cpu::element::{Element, by_element, narrowed, rows_of_piece, wide};
use crate::cpu::operand::{Operand, contiguous, record_formed};
use crate::cpu::rows::{filled, filled_two, sum_blocks};
use crate::cpu::vector;

/// `None` when an operand is not an f32 or bf16 tensor on burn-flex. The weight may have another of the two types than `x`.
pub(super) fn rms_norm<const D: usize>(
    x: &Tensor<D>,
    weight: &Tensor<1>,
    eps: f64,
    zero_centred: bool,
) -> Option<Input<D>> {
    let parents = [Operand::of_float(x)?, Operand::of_float(weight)?];
    Some(by_element!(x.dtype(), E => forward::<E, D>(parents, x.dims(), eps, zero_centred)))
}

fn forward<E: Element, const D: usize>(
    parents: [Operand; 2],
    shape: [usize; D],
    eps: f64,
    zero_centred: bool,
) -> Input<D> {
    let [x, weight] = parents.each_ref().map(Operand::contiguous);
    let (y, rstd) = normed::<E>(&x, &factors(&weight, zero_centred), eps);
    let sources = (x.clone(), weight.clone());
    let again = move || {
        let (x, weight) = &sources;
        E::tensor(normed::<E>(x, &factors(weight, zero_centred), eps).0, shape)
    };
    let saved = || Saved { x, rstd, weight, zero_centred };
    record_formed(Step::<E>(PhantomData), parents, E::tensor(y, shape), saved, again)
}

/// The result, and what each row was multiplied by.
fn normed<E: Element>(x: &FlexTensor, factors: &[f32], eps: f64) -> (Vec<E>, Vec<f32>) {
    let (values, size) = (E::slice(x), factors.len());
    let rows = values.len().checked_div(size).unwrap_or(0);
    filled_two(rows, [size, 1], |first, block: &mut [E], rstd: &mut [f32]| {
        let [mut wide_x, mut wide_y] = [const { Vec::new() }; 2];
        let step = rows_of_piece(size);
        let pieces = block.chunks_mut(step * size).zip(rstd.chunks_mut(step)).zip((first..).step_by(step));
        for ((y, rstd), row) in pieces {
            let x = E::read(&values[row * size..][..y.len()], &mut wide_x);
            E::write(y, &mut wide_y, |y| {
                for ((y, x), rstd) in y.chunks_exact_mut(size).zip(x.chunks_exact(size)).zip(rstd) {
                    *rstd = inverse_rms(x, eps);
                    vector::scaled_product(y, x, *rstd, factors);
                }
            });
        }
    })
}

/// `1/sqrt(mean(x²) + eps)`.
pub(crate) fn inverse_rms(x: &[f32], eps: f64) -> f32 {
    1.0 / (vector::sum_of_squares(x) / x.len() as f32 + eps as f32).sqrt()
}

/// What a normed value is multiplied by.
pub(crate) fn factors(weight: &FlexTensor, zero_centred: bool) -> Vec<f32> {
    let offset = if zero_centred { 1.0 } else { 0.0 };
    wide(weight).into_iter().map(|weight| weight + offset).collect()
}

#[derive(Debug)]
struct Step<E>(PhantomData<E>);

#[derive(Clone, Debug)]
struct Saved {
    x: FlexTensor,
    rstd: Vec<f32>,
    weight: FlexTensor,
    zero_centred: bool,
}

impl<E: Element> Backward<Flex, 2> for Step<E> {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let Saved { x, rstd, weight, zero_centred } = ops.state;
        let (factors, shape) = (factors(&weight, zero_centred), x.layout().shape().clone());
        let (size, x, dy) = (factors.len(), E::slice(&x), E::slice(&dy));
        let [x_node, weight_node] = ops.parents;
        if let Some(node) = x_node {
            grads.register::<Flex>(node.id, E::tensor(input_gradient(x, dy, &rstd, &factors), shape));
        }
        if let Some(node) = weight_node {
            let dweight = weight_gradient(x, dy, &rstd, size);
            grads.register::<Flex>(node.id, narrowed(dweight, [size], weight.dtype()));
        }
    }
}

/// Gradient of each row of `x`.
fn input_gradient<E: Element>(x: &[E], dy: &[E], rstd: &[f32], factors: &[f32]) -> Vec<E> {
    let size = factors.len();
    filled(x.len(), size, |first, block: &mut [E]| {
        let [mut wide_x, mut wide_dy, mut wide_dx] = [const { Vec::new() }; 3];
        let step = rows_of_piece(size);
        for (dx, row) in block.chunks_mut(step * size).zip((first..).step_by(step)) {
            let range = row * size..row * size + dx.len();
            let (x, dy) = (E::read(&x[range.clone()], &mut wide_x), E::read(&dy[range], &mut wide_dy));
            E::write(dx, &mut wide_dx, |dx| {
                let rows = dx.chunks_exact_mut(size).zip(x.chunks_exact(size)).zip(dy.chunks_exact(size));
                for (((dx, x), dy), rstd) in rows.zip(&rstd[row..]) {
                    row_gradient(dx, x, dy, *rstd, factors);
                }
            });
        }
    })
}

/// With `g = w ⊙ dy`: `dx = rstd·g - x·rstd³·mean(g ⊙ x)`.
pub(crate) fn row_gradient(dx: &mut [f32], x: &[f32], dy: &[f32], rstd: f32, factors: &[f32]) {
    let mean = vector::dot_of_three(x, dy, factors) / factors.len() as f32;
    vector::norm_backward(dx, x, factors, dy, rstd, mean * rstd * rstd * rstd);
}

/// `dw = Σ_rows dy ⊙ x·rstd`.
fn weight_gradient<E: Element>(x: &[E], dy: &[E], rstd: &[f32], size: usize) -> Vec<f32> {
    sum_blocks(rstd.len(), size, size, |rows, sum| {
        let [mut wide_x, mut wide_dy] = [const { Vec::new() }; 2];
        for row in rows {
            let x = E::read(&x[row * size..][..size], &mut wide_x);
            let dy = E::read(&dy[row * size..][..size], &mut wide_dy);
            vector::accumulate_product(sum, rstd[row], x, dy);
        }
    })
}
