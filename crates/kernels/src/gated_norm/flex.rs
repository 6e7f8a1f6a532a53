//! The gated norm on the CPU. With `n` the normed row, `y = silu(z)·n` is the gated activation, row by row.

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
use crate::cpu::rows::{filled_two, sum_blocks};
use crate::cpu::vector;
use crate::rms_norm::flex::{inverse_rms, row_gradient};

/// `None` when an operand is not an f32 or bf16 tensor on burn-flex, or `x` and `z` differ in their type.
pub(super) fn gated_norm<const D: usize>(
    x: &Tensor<D>,
    z: &Tensor<D>,
    weight: &Tensor<1>,
    eps: f64,
) -> Option<Input<D>> {
    if x.dtype() != z.dtype() {
        return None;
    }
    let parents = [Operand::of_float(x)?, Operand::of_float(z)?, Operand::of_float(weight)?];
    Some(by_element!(x.dtype(), E => forward::<E, D>(parents, x.dims(), eps)))
}

fn forward<E: Element, const D: usize>(parents: [Operand; 3], shape: [usize; D], eps: f64) -> Input<D> {
    let [x, z, weight] = parents.each_ref().map(Operand::contiguous);
    let (y, rstd) = normed::<E>([&x, &z, &weight], eps);
    let sources = [&x, &z, &weight].map(FlexTensor::clone);
    let again = move || E::tensor(normed::<E>(sources.each_ref(), eps).0, shape);
    record_formed(Step::<E>(PhantomData), parents, E::tensor(y, shape), || Saved { x, z, rstd, weight }, again)
}

/// The result, and what each row of `x` was multiplied by.
fn normed<E: Element>([x, z, weight]: [&FlexTensor; 3], eps: f64) -> (Vec<E>, Vec<f32>) {
    let (x_values, z_values, factors) = (E::slice(x), E::slice(z), wide(weight));
    let size = factors.len();
    let rows = x_values.len().checked_div(size).unwrap_or(0);
    filled_two(rows, [size, 1], |first, block: &mut [E], rstd: &mut [f32]| {
        let [mut wide_x, mut wide_z, mut wide_y] = [const { Vec::new() }; 3];
        let mut normed = vec![0.0; size];
        let step = rows_of_piece(size);
        let pieces = block.chunks_mut(step * size).zip(rstd.chunks_mut(step)).zip((first..).step_by(step));
        for ((y, rstd), row) in pieces {
            let range = row * size..row * size + y.len();
            let x = E::read(&x_values[range.clone()], &mut wide_x);
            let z = E::read(&z_values[range], &mut wide_z);
            E::write(y, &mut wide_y, |y| {
                let rows = y.chunks_exact_mut(size).zip(x.chunks_exact(size)).zip(z.chunks_exact(size)).zip(rstd);
                for (((y, x), z), rstd) in rows {
                    *rstd = inverse_rms(x, eps);
                    vector::scaled_product(&mut normed, x, *rstd, &factors);
                    vector::swiglu(y, z, &normed);
                }
            });
        }
    })
}

#[derive(Debug)]
struct Step<E>(PhantomData<E>);

#[derive(Clone, Debug)]
struct Saved {
    x: FlexTensor,
    z: FlexTensor,
    rstd: Vec<f32>,
    weight: FlexTensor,
}

impl<E: Element> Backward<Flex, 3> for Step<E> {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let Saved { x, z, rstd, weight } = &ops.state;
        let (shape, factors) = (x.layout().shape().clone(), wide(weight));
        let rows = Rows { x: E::slice(x), z: E::slice(z), dy: E::slice(&dy), rstd, factors: &factors };
        let [x_node, z_node, weight_node] = ops.parents;
        if x_node.is_some() || z_node.is_some() {
            let (dx, dz) = rows.input_gradients();
            for (node, gradient) in [(x_node, dx), (z_node, dz)] {
                if let Some(node) = node {
                    grads.register::<Flex>(node.id, E::tensor(gradient, shape.clone()));
                }
            }
        }
        if let Some(node) = weight_node {
            let size = factors.len();
            grads.register::<Flex>(node.id, narrowed(rows.weight_gradient(), [size], weight.dtype()));
        }
    }
}

/// What the gradients are computed from.
struct Rows<'a, E> {
    x: &'a [E],
    z: &'a [E],
    dy: &'a [E],
    rstd: &'a [f32],
    factors: &'a [f32],
}

impl<E: Element> Rows<'_, E> {
    /// The backward of the activation gives `dz` and the gradient of the normed rows, that of the norm `dx`.
    fn input_gradients(&self) -> (Vec<E>, Vec<E>) {
        let size = self.factors.len();
        filled_two(self.rstd.len(), [size, size], |first, dx: &mut [E], dz: &mut [E]| {
            let [mut wide_x, mut wide_z, mut wide_dy, mut wide_dx, mut wide_dz] = [const { Vec::new() }; 5];
            let (mut normed, mut dnormed) = (vec![0.0; size], vec![0.0; size]);
            let step = rows_of_piece(size);
            let pieces = dx.chunks_mut(step * size).zip(dz.chunks_mut(step * size)).zip((first..).step_by(step));
            for ((dx, dz), row) in pieces {
                let range = row * size..row * size + dx.len();
                let x = E::read(&self.x[range.clone()], &mut wide_x);
                let z = E::read(&self.z[range.clone()], &mut wide_z);
                let dy = E::read(&self.dy[range], &mut wide_dy);
                let mut both = |dx: &mut [f32], dz: &mut [f32]| {
                    let gradients = dx.chunks_exact_mut(size).zip(dz.chunks_exact_mut(size));
                    let operands = x.chunks_exact(size).zip(z.chunks_exact(size)).zip(dy.chunks_exact(size));
                    for (((dx, dz), ((x, z), dy)), rstd) in gradients.zip(operands).zip(&self.rstd[row..]) {
                        vector::scaled_product(&mut normed, x, *rstd, self.factors);
                        vector::swiglu_backward(dz, &mut dnormed, z, &normed, dy);
                        row_gradient(dx, x, &dnormed, *rstd, self.factors);
                    }
                };
                E::write(dx, &mut wide_dx, |dx| E::write(dz, &mut wide_dz, |dz| both(dx, dz)));
            }
        })
    }

    /// `dw = Σ_rows dnormed ⊙ x·rstd`, with the gradients of the normed rows formed again: a weight is seldom trained.
    fn weight_gradient(&self) -> Vec<f32> {
        let size = self.factors.len();
        sum_blocks(self.rstd.len(), size, size, |rows, sum| {
            let [mut wide_x, mut wide_z, mut wide_dy] = [const { Vec::new() }; 3];
            let [mut normed, mut dnormed, mut dz] = [(); 3].map(|()| vec![0.0; size]);
            for row in rows {
                let (range, rstd) = (row * size..(row + 1) * size, self.rstd[row]);
                let x = E::read(&self.x[range.clone()], &mut wide_x);
                let z = E::read(&self.z[range.clone()], &mut wide_z);
                let dy = E::read(&self.dy[range], &mut wide_dy);
                vector::scaled_product(&mut normed, x, rstd, self.factors);
                vector::swiglu_backward(&mut dz, &mut dnormed, z, &normed, dy);
                vector::accumulate_product(sum, rstd, x, &dnormed);
            }
        })
    }
}
