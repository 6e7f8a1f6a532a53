//! The gate on a GPU: one kernel in each direction.

use burn::Tensor;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use crate::gpu::float::{sigmoid, sum};
use crate::gpu::group::{Group, row, row_sum};
use crate::gpu::tensor::{dense, elem, empty, float_operand, vector_size};
use crate::gpu::{Cube, Operand};
use crate::tape::record;

/// `None` when an operand is not a tensor of a GPU.
pub(super) fn sigmoid_gate<const D: usize>(x: &Tensor<D>, gate: &Tensor<D>) -> Option<Tensor<D>> {
    let parents = [float_operand(x)?, float_operand(gate)?];
    let of_rows = gate.dims()[D - 1] != x.dims()[D - 1];
    let [x, gate] = parents.each_ref().map(dense);
    let gated = Gated { x, gate, of_rows };
    Some(record(Step, parents, gated.forward(), || gated))
}

#[derive(Clone, Debug)]
struct Gated {
    x: CubeTensor,
    gate: CubeTensor,
    /// One gate a row of `x`.
    of_rows: bool,
}

impl Gated {
    /// Rows, their size, elements of a vector.
    fn sizes(&self) -> (usize, usize, usize) {
        let size = self.x.meta.shape().last().copied().unwrap_or(0);
        let rows = self.x.meta.num_elements().checked_div(size).unwrap_or(0);
        (rows, size, vector_size(&self.x, &[self.x.dtype], &[size]))
    }

    /// Bytes: `x` and the gates in, the result out; 6 an element in bf16 (4 with one gate a row): bound by memory.
    fn forward(&self) -> CubeTensor {
        let (y, (rows, size, vector)) = (empty(&self.x, self.x.meta.shape().clone(), self.x.dtype), self.sizes());
        if rows == 0 {
            return y;
        }
        let group = Group::of(&self.x, size / vector);
        let (count, dim) = group.launch(&self.x, rows);
        // SAFETY: the kernel reads and writes rows below `rows`.
        #[expect(unsafe_code, reason = "a launch without checks of every index")]
        unsafe {
            gate_forward::launch_unchecked(
                &self.x.client,
                count,
                dim,
                vector,
                if self.of_rows { 1 } else { vector },
                self.x.clone().into_buffer_arg(),
                self.gate.clone().into_buffer_arg(),
                y.clone().into_buffer_arg(),
                rows,
                size / vector,
                self.of_rows,
                group,
                elem(self.x.dtype),
            );
        }
        y
    }

    /// Gradients of `x` and of the gates. Bytes: `x`, the gates and `dy` in, both gradients out.
    fn gradients(&self, dy: &CubeTensor) -> [CubeTensor; 2] {
        let new = |like: &CubeTensor| empty(like, like.meta.shape().clone(), like.dtype);
        let ([dx, dgate], (rows, size, vector)) = ([new(&self.x), new(&self.gate)], self.sizes());
        if rows == 0 {
            return [dx, dgate];
        }
        let group = Group::of(&self.x, size / vector);
        let (count, dim) = group.launch(&self.x, rows);
        // SAFETY: as in `forward`.
        #[expect(unsafe_code, reason = "a launch without checks of every index")]
        unsafe {
            gate_backward::launch_unchecked(
                &self.x.client,
                count,
                dim,
                vector,
                if self.of_rows { 1 } else { vector },
                self.x.clone().into_buffer_arg(),
                self.gate.clone().into_buffer_arg(),
                dy.clone().into_buffer_arg(),
                dx.clone().into_buffer_arg(),
                dgate.clone().into_buffer_arg(),
                rows,
                size / vector,
                self.of_rows,
                group,
                elem(self.x.dtype),
            );
        }
        [dx, dgate]
    }
}

#[derive(Debug)]
struct Step;

impl Backward<Cube, 2> for Step {
    type State = Gated;

    fn backward(self, ops: Ops<Gated, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = dense(&Operand::constant(grads.consume::<Cube>(&ops.node)));
        for (node, gradient) in ops.parents.into_iter().zip(ops.state.gradients(&dy)) {
            if let Some(node) = node {
                grads.register::<Cube>(node.id, gradient);
            }
        }
    }
}

/// `σ` of the gate of an element, or of its row.
#[cube]
fn opening<E: Float, N: Size, M: Size>(
    gate: &[Vector<E, M>],
    row: usize,
    at: usize,
    #[comptime] of_rows: bool,
) -> Vector<f32, N> {
    if comptime!(of_rows) {
        let gate = Vector::<f32, M>::cast_from(gate[row]);
        Vector::new(sigmoid::<M>(gate).extract(0usize))
    } else {
        sigmoid::<N>(Vector::cast_from(gate[at]))
    }
}

#[cube(launch_unchecked)]
fn gate_forward<E: Float, N: Size, M: Size>(
    x: &[Vector<E, N>],
    gate: &[Vector<E, M>],
    y: &mut [Vector<E, N>],
    rows: usize,
    width: usize,
    #[comptime] of_rows: bool,
    #[comptime] group: Group,
    #[define(E)] _dtype: ElemType,
) {
    let row = row(group);
    let end = select(row < rows, width, 0usize);
    let mut at = UNIT_POS_X as usize;
    while at < end {
        let place = row * width + at;
        let opening = opening::<E, N, M>(gate, row, place, of_rows);
        y[place] = Vector::cast_from(Vector::<f32, N>::cast_from(x[place]) * opening);
        at += comptime!(group.units as usize);
    }
}

/// With `s = σ(gate)`: `dx = dy·s`, `dgate = dy·x·s·(1 - s)`, summed over the row where it has one gate.
#[cube(launch_unchecked)]
fn gate_backward<E: Float, N: Size, M: Size>(
    x: &[Vector<E, N>],
    gate: &[Vector<E, M>],
    dy: &[Vector<E, N>],
    dx: &mut [Vector<E, N>],
    dgate: &mut [Vector<E, M>],
    rows: usize,
    width: usize,
    #[comptime] of_rows: bool,
    #[comptime] group: Group,
    #[define(E)] _dtype: ElemType,
) {
    let row = row(group);
    let end = select(row < rows, width, 0usize);
    let one = Vector::<f32, N>::new(1.0f32);
    let mut total = Vector::<f32, N>::new(0.0f32);
    let mut at = UNIT_POS_X as usize;
    while at < end {
        let place = row * width + at;
        let opening = opening::<E, N, M>(gate, row, place, of_rows);
        let above = Vector::<f32, N>::cast_from(dy[place]);
        let slope = above * Vector::cast_from(x[place]) * opening * (one - opening);
        if comptime!(of_rows) {
            total += slope;
        } else {
            dgate[place] = Vector::cast_from(slope);
        }
        dx[place] = Vector::cast_from(above * opening);
        at += comptime!(group.units as usize);
    }
    if comptime!(of_rows) {
        let total = row_sum(sum::<N>(total), group);
        if row < rows && UNIT_POS_X == 0u32 {
            dgate[row] = Vector::cast_from(Vector::<f32, M>::new(total));
        }
    }
}
