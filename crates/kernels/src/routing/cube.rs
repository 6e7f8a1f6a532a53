//! The way to the experts and back on a GPU: rows are read where they lie, forwards and backwards. Every result is one
//! unit's sum in the order of a token's choices, so it is the same each time.

use std::sync::Arc;

use burn::Tensor;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::Routes;
use crate::gpu::float::sum;
use crate::gpu::group::{Group, row, row_sum};
use crate::gpu::places::words;
use crate::gpu::tensor::{dense, elem, elementwise, empty, float_operand, vector_size};
use crate::gpu::{Cube, Operand};
use crate::tape::record;

/// `None` when `x` is not a tensor of a GPU.
pub(super) fn spread(x: &Tensor<2>, routes: &Arc<Routes>) -> Option<Tensor<2>> {
    let parent = float_operand(x)?;
    let x = dense(&parent);
    let places = Places::new(routes, &x);
    let rows = places.spread(&x, None);
    Some(record(Spread, [parent], rows, || places))
}

/// `None` when an operand is not a tensor of a GPU.
pub(super) fn combine(rows: &Tensor<2>, weights: &Tensor<2>, routes: &Arc<Routes>) -> Option<Tensor<2>> {
    let parents = [float_operand(rows)?, float_operand(weights)?];
    let [rows, weights] = parents.each_ref().map(dense);
    let places = Places::new(routes, &rows);
    let y = places.sums(&rows, Some(&weights));
    Some(record(Combine, parents, y, || Combined { rows, weights, places }))
}

/// Routes on a device.
#[derive(Clone, Debug)]
struct Places {
    /// Of each choice its row, then of each row its choice; `[2·R]` in u32.
    words: CubeTensor,
    rows: usize,
    active: usize,
}

impl Places {
    fn new(routes: &Routes, like: &CubeTensor) -> Self {
        let all: Vec<u32> = routes.row_of_choice.iter().chain(&routes.choice_of_row).map(|&at| at as u32).collect();
        // A buffer of nothing has no name on some devices.
        let words = words(if all.is_empty() { &[0] } else { &all }, like);
        Self { words, rows: routes.rows(), active: routes.active }
    }

    fn tokens(&self) -> usize {
        self.rows / self.active
    }

    /// Row `r` of the result is `x` of the row's token, times the weight of its choice where there are any.
    ///
    /// Bytes: the result out, `x` in; a token's choices find it in a cache.
    fn spread(&self, x: &CubeTensor, weights: Option<&CubeTensor>) -> CubeTensor {
        let width = x.meta.shape()[1];
        let y = empty(x, [self.rows, width], x.dtype);
        let vector = vector_size(x, &[x.dtype], &[width]);
        let units = self.rows * width / vector;
        if units == 0 {
            return y;
        }
        let (count, dim) = elementwise(x, units);
        // SAFETY: the kernel ends beyond the last vector of the result; routes are a permutation of its rows.
        #[expect(unsafe_code, reason = "a launch without checks of every index")]
        unsafe {
            spread_rows::launch_unchecked(
                &x.client,
                count,
                dim,
                vector,
                x.clone().into_buffer_arg(),
                weights.unwrap_or(x).clone().into_buffer_arg(),
                self.words.clone().into_buffer_arg(),
                y.clone().into_buffer_arg(),
                units,
                width / vector,
                self.rows,
                self.active,
                weights.is_some(),
                elem(x.dtype),
                elem(weights.unwrap_or(x).dtype),
            );
        }
        y
    }

    /// Sum of each token's rows, times `weights` where there are any.
    ///
    /// Bytes: the rows in, the result out.
    fn sums(&self, rows: &CubeTensor, weights: Option<&CubeTensor>) -> CubeTensor {
        let width = rows.meta.shape()[1];
        let y = empty(rows, [self.tokens(), width], rows.dtype);
        let vector = vector_size(rows, &[rows.dtype], &[width]);
        let units = self.tokens() * width / vector;
        if units == 0 {
            return y;
        }
        let (count, dim) = elementwise(rows, units);
        // SAFETY: as in `spread`.
        #[expect(unsafe_code, reason = "a launch without checks of every index")]
        unsafe {
            sum_rows::launch_unchecked(
                &rows.client,
                count,
                dim,
                vector,
                rows.clone().into_buffer_arg(),
                weights.unwrap_or(rows).clone().into_buffer_arg(),
                self.words.clone().into_buffer_arg(),
                y.clone().into_buffer_arg(),
                units,
                width / vector,
                self.active,
                weights.is_some(),
                elem(rows.dtype),
                elem(weights.unwrap_or(rows).dtype),
            );
        }
        y
    }

    /// `rows[row of choice j]·dy[t]`, `[T, k]` in the type of `weights`.
    ///
    /// Bytes: the rows in, `dy` in.
    fn products(&self, rows: &CubeTensor, dy: &CubeTensor, dtype: DType) -> CubeTensor {
        let width = rows.meta.shape()[1];
        let products = empty(rows, [self.tokens(), self.active], dtype);
        if self.rows == 0 {
            return products;
        }
        let vector = vector_size(rows, &[rows.dtype], &[width]);
        let group = Group::of(rows, width / vector);
        let (count, dim) = group.launch(rows, self.rows);
        // SAFETY: units beyond the last choice only take part in sums.
        #[expect(unsafe_code, reason = "a launch without checks of every index")]
        unsafe {
            products_of_choices::launch_unchecked(
                &rows.client,
                count,
                dim,
                vector,
                rows.clone().into_buffer_arg(),
                dy.clone().into_buffer_arg(),
                self.words.clone().into_buffer_arg(),
                products.clone().into_buffer_arg(),
                self.rows,
                width / vector,
                self.active,
                group,
                elem(rows.dtype),
                elem(dtype),
            );
        }
        products
    }
}

#[derive(Debug)]
struct Spread;

impl Backward<Cube, 1> for Spread {
    type State = Places;

    /// `dx[t]` is the sum over the rows of the token.
    fn backward(self, ops: Ops<Places, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let drows = dense(&Operand::constant(grads.consume::<Cube>(&ops.node)));
        if let [Some(node)] = ops.parents {
            grads.register::<Cube>(node.id, ops.state.sums(&drows, None));
        }
    }
}

#[derive(Debug)]
struct Combine;

#[derive(Clone, Debug)]
struct Combined {
    rows: CubeTensor,
    weights: CubeTensor,
    places: Places,
}

impl Backward<Cube, 2> for Combine {
    type State = Combined;

    /// `drows[r] = weights[choice of r]·dy[token of r]`, `dweights[t, j] = rows[row of choice j]·dy[t]`.
    fn backward(self, ops: Ops<Combined, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = dense(&Operand::constant(grads.consume::<Cube>(&ops.node)));
        let Combined { rows, weights, places } = ops.state;
        let [rows_node, weights_node] = ops.parents;
        if let Some(node) = rows_node {
            grads.register::<Cube>(node.id, places.spread(&dy, Some(&weights)));
        }
        if let Some(node) = weights_node {
            grads.register::<Cube>(node.id, places.products(&rows, &dy, weights.dtype));
        }
    }
}

#[cube(launch_unchecked)]
fn spread_rows<E: Float, W: Float, N: Size>(
    x: &[Vector<E, N>],
    weights: &[W],
    words: &[u32],
    y: &mut [Vector<E, N>],
    units: usize,
    width: usize,
    rows: usize,
    active: usize,
    #[comptime] weighted: bool,
    #[define(E)] _dtype: ElemType,
    #[define(W)] _weight_dtype: ElemType,
) {
    if ABSOLUTE_POS >= units {
        terminate!();
    }
    let row = ABSOLUTE_POS / width;
    let choice = words[rows + row] as usize;
    let value = x[choice / active * width + (ABSOLUTE_POS - row * width)];
    if comptime!(weighted) {
        let weight = f32::cast_from(weights[choice]);
        y[ABSOLUTE_POS] = Vector::cast_from(Vector::<f32, N>::cast_from(value) * Vector::new(weight));
    } else {
        y[ABSOLUTE_POS] = value;
    }
}

#[cube(launch_unchecked)]
fn sum_rows<E: Float, W: Float, N: Size>(
    rows: &[Vector<E, N>],
    weights: &[W],
    words: &[u32],
    y: &mut [Vector<E, N>],
    units: usize,
    width: usize,
    active: usize,
    #[comptime] weighted: bool,
    #[define(E)] _dtype: ElemType,
    #[define(W)] _weight_dtype: ElemType,
) {
    if ABSOLUTE_POS >= units {
        terminate!();
    }
    let token = ABSOLUTE_POS / width;
    let at = ABSOLUTE_POS - token * width;
    let mut total = Vector::<f32, N>::new(0.0f32);
    for place in 0..active {
        let choice = token * active + place;
        let value = Vector::<f32, N>::cast_from(rows[words[choice] as usize * width + at]);
        if comptime!(weighted) {
            total += value * Vector::new(f32::cast_from(weights[choice]));
        } else {
            total += value;
        }
    }
    y[ABSOLUTE_POS] = Vector::cast_from(total);
}

#[cube(launch_unchecked)]
fn products_of_choices<E: Float, W: Float, N: Size>(
    rows: &[Vector<E, N>],
    dy: &[Vector<E, N>],
    words: &[u32],
    products: &mut [W],
    choices: usize,
    width: usize,
    active: usize,
    #[comptime] group: Group,
    #[define(E)] _dtype: ElemType,
    #[define(W)] _weight_dtype: ElemType,
) {
    let choice = row(group);
    let here = select(choice < choices, choice, 0usize);
    let first = words[here] as usize * width;
    let above = here / active * width;
    let end = select(choice < choices, width, 0usize);
    let mut total = Vector::<f32, N>::new(0.0f32);
    let mut at = UNIT_POS_X as usize;
    while at < end {
        total += Vector::<f32, N>::cast_from(rows[first + at]) * Vector::cast_from(dy[above + at]);
        at += comptime!(group.units as usize);
    }
    let total = row_sum(sum::<N>(total), group);
    if choice < choices && UNIT_POS_X == 0u32 {
        products[choice] = W::cast_from(total);
    }
}
