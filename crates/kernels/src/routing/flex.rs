//! The way to the experts and back on the CPU: rows are read where they lie, forwards and backwards.

use std::marker::PhantomData;
use std::sync::Arc;

use burn::Tensor;
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn_flex::FlexTensor;

use super::Routes;
use crate::cpu::element::{Element, by_element, narrowed, wide};
use crate::cpu::operand::{Operand, contiguous, record};
use crate::cpu::rows::{filled, filled_by_work};
use crate::cpu::vector;

/// `None` when `x` is not an f32 or bf16 tensor on burn-flex.
pub(super) fn spread(x: &Tensor<2>, routes: &Arc<Routes>) -> Option<Tensor<2>> {
    let (width, parent) = (x.dims()[1], Operand::of_float(x)?);
    Some(by_element!(x.dtype(), E => {
        let x = parent.contiguous();
        let rows = spread_rows(E::slice(&x), routes, width);
        let step = Spread::<E>(PhantomData);
        record(step, [parent], E::tensor(rows, [routes.rows(), width]), || (routes.clone(), width))
    }))
}

fn spread_rows<E: Element>(x: &[E], routes: &Routes, width: usize) -> Vec<E> {
    filled(routes.rows() * width, width, |first, block: &mut [E]| {
        for (row, choice) in block.chunks_exact_mut(width).zip(&routes.choice_of_row[first..]) {
            row.copy_from_slice(&x[choice / routes.active * width..][..width]);
        }
    })
}

#[derive(Debug)]
struct Spread<E>(PhantomData<E>);

impl<E: Element> Backward<Flex, 1> for Spread<E> {
    type State = (Arc<Routes>, usize);

    /// `dx[t]` is the sum over the rows of the token.
    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let drows = contiguous(grads.consume::<Flex>(&ops.node));
        let (routes, width) = ops.state;
        if let [Some(node)] = ops.parents {
            let dx = sums(E::slice(&drows), &routes, width, None);
            grads.register::<Flex>(node.id, E::tensor(dx, [routes.tokens(), width]));
        }
    }
}

/// Sum of each token's rows, times `weights` where there are any.
fn sums<E: Element>(rows: &[E], routes: &Routes, width: usize, weights: Option<&[f32]>) -> Vec<E> {
    filled(routes.tokens() * width, width, |first, block: &mut [E]| {
        let [mut wide_row, mut wide_sum] = [const { Vec::new() }; 2];
        for (sum, token) in block.chunks_exact_mut(width).zip(first..) {
            E::write(sum, &mut wide_sum, |sum| {
                sum.fill(0.0);
                for (choice, row) in routes.rows_of(token).iter().enumerate() {
                    let row = E::read(&rows[row * width..][..width], &mut wide_row);
                    match weights {
                        Some(weights) => vector::accumulate_scaled(sum, row, weights[token * routes.active + choice]),
                        None => vector::accumulate(sum, row),
                    }
                }
            });
        }
    })
}

/// `None` when an operand is not an f32 or bf16 tensor on burn-flex.
pub(super) fn combine(rows: &Tensor<2>, weights: &Tensor<2>, routes: &Arc<Routes>) -> Option<Tensor<2>> {
    let (dtype, width) = (rows.dtype(), rows.dims()[1]);
    let parents = [Operand::of_float(rows)?, Operand::of_float(weights)?];
    let [rows, weights] = parents.each_ref().map(Operand::contiguous);
    Some(by_element!(dtype, E => {
        let y = sums(E::slice(&rows), routes, width, Some(&wide(&weights)));
        let state = || Combined { rows, weights, routes: routes.clone(), width };
        record(Combine::<E>(PhantomData), parents, E::tensor(y, [routes.tokens(), width]), state)
    }))
}

#[derive(Debug)]
struct Combine<E>(PhantomData<E>);

#[derive(Clone, Debug)]
struct Combined {
    rows: FlexTensor,
    weights: FlexTensor,
    routes: Arc<Routes>,
    width: usize,
}

impl<E: Element> Backward<Flex, 2> for Combine<E> {
    type State = Combined;

    fn backward(self, ops: Ops<Combined, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let (combined, dy) = (&ops.state, E::slice(&dy));
        let [rows_node, weights_node] = ops.parents;
        if let Some(node) = rows_node {
            let shape = combined.rows.layout().shape().clone();
            grads.register::<Flex>(node.id, E::tensor(combined.row_gradient(dy), shape));
        }
        if let Some(node) = weights_node {
            let (shape, dtype) = (combined.weights.layout().shape().clone(), combined.weights.dtype());
            grads.register::<Flex>(node.id, narrowed(combined.weight_gradient(dy), shape, dtype));
        }
    }
}

impl Combined {
    /// `drows[r] = weights[choice of r]·dy[token of r]`.
    fn row_gradient<E: Element>(&self, dy: &[E]) -> Vec<E> {
        let (routes, width, weights) = (&self.routes, self.width, wide(&self.weights));
        filled(routes.rows() * width, width, |first, block: &mut [E]| {
            let [mut wide_dy, mut wide_row] = [const { Vec::new() }; 2];
            for (row, choice) in block.chunks_exact_mut(width).zip(&routes.choice_of_row[first..]) {
                let dy = E::read(&dy[choice / routes.active * width..][..width], &mut wide_dy);
                E::write(row, &mut wide_row, |row| vector::scaled(row, dy, weights[*choice]));
            }
        })
    }

    /// `dweights[t, j] = rows[row of choice j]·dy[t]`.
    fn weight_gradient<E: Element>(&self, dy: &[E]) -> Vec<f32> {
        let (routes, width, rows) = (&self.routes, self.width, E::slice(&self.rows));
        filled_by_work(routes.tokens(), routes.active, routes.active * width, |first, block: &mut [f32]| {
            let [mut wide_dy, mut wide_row] = [const { Vec::new() }; 2];
            for (dweights, token) in block.chunks_exact_mut(routes.active).zip(first..) {
                let dy = E::read(&dy[token * width..][..width], &mut wide_dy);
                for (dweight, row) in dweights.iter_mut().zip(routes.rows_of(token)) {
                    *dweight = vector::dot(E::read(&rows[row * width..][..width], &mut wide_row), dy);
                }
            }
        })
    }
}
