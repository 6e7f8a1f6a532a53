//! The probabilities on a GPU.

use burn::Tensor;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use crate::gpu::float::{largest, sum};
use crate::gpu::group::{Group, row, row_max, row_sum};
use crate::gpu::tensor::{dense, elem, empty, float_operand, vector_size};
use crate::gpu::{Cube, Operand};
use crate::tape::record;

/// `None` when `x` is not a tensor of a GPU.
pub(super) fn softmax(x: &Tensor<2>) -> Option<Tensor<2>> {
    let parent = float_operand(x)?;
    let p = probabilities(&dense(&parent));
    Some(record(Step, [parent], p.clone(), || p))
}

/// Bytes: `x` in (twice more from the cache), `p` out: bound by memory.
fn probabilities(x: &CubeTensor) -> CubeTensor {
    let p = empty(x, x.meta.shape().clone(), x.dtype);
    let [rows, size] = [x.meta.shape()[0], x.meta.shape()[1]];
    if rows * size == 0 {
        return p;
    }
    let vector = vector_size(x, &[x.dtype], &[size]);
    let group = Group::of(x, size / vector);
    let (count, dim) = group.launch(x, rows);
    // SAFETY: the kernel reads and writes rows below `rows`.
    #[expect(unsafe_code, reason = "a launch without checks of every index")]
    unsafe {
        softmax_forward::launch_unchecked(
            &x.client,
            count,
            dim,
            vector,
            x.clone().into_buffer_arg(),
            p.clone().into_buffer_arg(),
            rows,
            size / vector,
            group,
            elem(x.dtype),
        );
    }
    p
}

#[derive(Debug)]
struct Step;

impl Backward<Cube, 1> for Step {
    type State = CubeTensor;

    /// Bytes: `p` and `dp` in, `dx` out.
    fn backward(self, ops: Ops<CubeTensor, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dp = dense(&Operand::constant(grads.consume::<Cube>(&ops.node)));
        let (p, [Some(node)]) = (ops.state, ops.parents) else { return };
        let dx = empty(&p, p.meta.shape().clone(), p.dtype);
        let [rows, size] = [p.meta.shape()[0], p.meta.shape()[1]];
        if rows * size > 0 {
            let vector = vector_size(&p, &[p.dtype], &[size]);
            let group = Group::of(&p, size / vector);
            let (count, dim) = group.launch(&p, rows);
            // SAFETY: the kernel reads and writes rows below `rows`.
            #[expect(unsafe_code, reason = "a launch without checks of every index")]
            unsafe {
                softmax_backward::launch_unchecked(
                    &p.client,
                    count,
                    dim,
                    vector,
                    p.clone().into_buffer_arg(),
                    dp.into_buffer_arg(),
                    dx.clone().into_buffer_arg(),
                    rows,
                    size / vector,
                    group,
                    elem(p.dtype),
                );
            }
        }
        grads.register::<Cube>(node.id, dx);
    }
}

#[cube(launch_unchecked)]
fn softmax_forward<E: Float, N: Size>(
    x: &[Vector<E, N>],
    p: &mut [Vector<E, N>],
    rows: usize,
    width: usize,
    #[comptime] group: Group,
    #[define(E)] _dtype: ElemType,
) {
    let row = row(group);
    let first = row * width;
    let end = select(row < rows, width, 0usize);
    let step = comptime!(group.units as usize);
    let mut highest = f32::new(-1e30);
    let mut at = UNIT_POS_X as usize;
    while at < end {
        highest = max(highest, largest::<N>(Vector::cast_from(x[first + at])));
        at += step;
    }
    let highest = Vector::<f32, N>::new(row_max(highest, group));
    let mut total = Vector::<f32, N>::new(0.0f32);
    let mut at = UNIT_POS_X as usize;
    while at < end {
        total += (Vector::<f32, N>::cast_from(x[first + at]) - highest).exp();
        at += step;
    }
    let share = Vector::<f32, N>::new(1.0f32 / row_sum(sum::<N>(total), group));
    let mut at = UNIT_POS_X as usize;
    while at < end {
        let power = (Vector::<f32, N>::cast_from(x[first + at]) - highest).exp();
        p[first + at] = Vector::cast_from(power * share);
        at += step;
    }
}

/// `dx = p ⊙ (dp - Σ p·dp)`.
#[cube(launch_unchecked)]
fn softmax_backward<E: Float, N: Size>(
    p: &[Vector<E, N>],
    dp: &[Vector<E, N>],
    dx: &mut [Vector<E, N>],
    rows: usize,
    width: usize,
    #[comptime] group: Group,
    #[define(E)] _dtype: ElemType,
) {
    let row = row(group);
    let first = row * width;
    let end = select(row < rows, width, 0usize);
    let step = comptime!(group.units as usize);
    let mut products = Vector::<f32, N>::new(0.0f32);
    let mut at = UNIT_POS_X as usize;
    while at < end {
        products += Vector::<f32, N>::cast_from(p[first + at]) * Vector::cast_from(dp[first + at]);
        at += step;
    }
    let mean = Vector::<f32, N>::new(row_sum(sum::<N>(products), group));
    let mut at = UNIT_POS_X as usize;
    while at < end {
        let here = Vector::<f32, N>::cast_from(p[first + at]);
        dx[first + at] = Vector::cast_from(here * (Vector::cast_from(dp[first + at]) - mean));
        at += step;
    }
}
