//! The gated activation on a GPU: one kernel in each direction, for a gate and an up projection in two tensors or side by
//! side in one.

use burn::Tensor;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use crate::gpu::float::{silu, silu_slope};
use crate::gpu::tensor::{dense, elem, elementwise, empty, float_operand, vector_size};
use crate::gpu::{Cube, Operand};
use crate::tape::record;

/// `None` when an operand is not a tensor of a GPU.
pub(super) fn swiglu(gate: &Tensor<2>, up: &Tensor<2>) -> Option<Tensor<2>> {
    let parents = [float_operand(gate)?, float_operand(up)?];
    let [gate, up] = parents.each_ref().map(dense);
    let halves = Halves { width: gate.meta.shape()[1], gate, up, joined: false };
    Some(record(Step, parents, halves.forward(), || halves))
}

/// `None` when the operand is not a tensor of a GPU.
pub(super) fn swiglu_joined(both: &Tensor<2>) -> Option<Tensor<2>> {
    let parent = float_operand(both)?;
    let both = dense(&parent);
    let halves = Halves { width: both.meta.shape()[1] / 2, gate: both.clone(), up: both, joined: true };
    Some(record(StepJoined, [parent], halves.forward(), || halves))
}

/// Gate and up projection, each `[rows, width]` or, `joined`, both the same `[rows, 2·width]`; in C order.
#[derive(Clone, Debug)]
struct Halves {
    gate: CubeTensor,
    up: CubeTensor,
    width: usize,
    joined: bool,
}

/// Where the halves of a row lie, counted in vectors.
#[derive(Clone, Copy, Debug)]
struct Place {
    vector: usize,
    units: usize,
    width: usize,
    stride: usize,
    offset: usize,
}

impl Halves {
    fn rows(&self) -> usize {
        self.gate.meta.shape()[0]
    }

    fn place(&self) -> Place {
        let vector = vector_size(&self.gate, &[self.gate.dtype], &[self.width]);
        let width = self.width / vector;
        let (stride, offset) = if self.joined { (2 * width, width) } else { (width, 0) };
        Place { vector, units: self.rows() * width, width, stride, offset }
    }

    /// `silu(gate) ⊙ up`.
    ///
    /// Bytes: both halves in, the result out: 6 an element in bf16, 12 operations and an exponential: bound by memory (8B:
    /// 2048 tokens of 12288 are 151 MB, 35 µs at 4.3 TB/s).
    fn forward(&self) -> CubeTensor {
        let (y, place) = (empty(&self.gate, [self.rows(), self.width], self.gate.dtype), self.place());
        if place.units == 0 {
            return y;
        }
        let (count, dim) = elementwise(&self.gate, place.units);
        // SAFETY: the kernel ends beyond `units` vectors of the result, which both halves have too.
        #[expect(unsafe_code, reason = "a launch without checks of every index")]
        unsafe {
            swiglu_forward::launch_unchecked(
                &self.gate.client,
                count,
                dim,
                place.vector,
                self.gate.clone().into_buffer_arg(),
                self.up.clone().into_buffer_arg(),
                y.clone().into_buffer_arg(),
                place.units,
                place.width,
                place.stride,
                place.offset,
                elem(self.gate.dtype),
            );
        }
        y
    }

    /// Gradients of gate and up projection; of joined ones twice the same tensor.
    ///
    /// Bytes: both halves and `dy` in, both gradients out: 10 an element in bf16.
    fn gradients(&self, dy: &CubeTensor) -> [CubeTensor; 2] {
        let new = || empty(&self.gate, self.gate.meta.shape().clone(), self.gate.dtype);
        let dgate = new();
        let dup = if self.joined { dgate.clone() } else { new() };
        let place = self.place();
        if place.units == 0 {
            return [dgate, dup];
        }
        let (count, dim) = elementwise(&self.gate, place.units);
        // SAFETY: as in `forward`; of joined halves both outputs are one tensor, of which each writes its own half.
        #[expect(unsafe_code, reason = "a launch without checks of every index")]
        unsafe {
            swiglu_backward::launch_unchecked(
                &self.gate.client,
                count,
                dim,
                place.vector,
                self.gate.clone().into_buffer_arg(),
                self.up.clone().into_buffer_arg(),
                dy.clone().into_buffer_arg(),
                dgate.clone().into_buffer_arg(),
                dup.clone().into_buffer_arg(),
                place.units,
                place.width,
                place.stride,
                place.offset,
                elem(self.gate.dtype),
            );
        }
        [dgate, dup]
    }
}

#[derive(Debug)]
struct Step;

impl Backward<Cube, 2> for Step {
    type State = Halves;

    fn backward(self, ops: Ops<Halves, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = dense(&Operand::constant(grads.consume::<Cube>(&ops.node)));
        for (node, gradient) in ops.parents.into_iter().zip(ops.state.gradients(&dy)) {
            if let Some(node) = node {
                grads.register::<Cube>(node.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct StepJoined;

impl Backward<Cube, 1> for StepJoined {
    type State = Halves;

    fn backward(self, ops: Ops<Halves, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = dense(&Operand::constant(grads.consume::<Cube>(&ops.node)));
        if let [Some(node)] = ops.parents {
            let [dboth, _] = ops.state.gradients(&dy);
            grads.register::<Cube>(node.id, dboth);
        }
    }
}

#[cube(launch_unchecked)]
fn swiglu_forward<E: Float, N: Size>(
    gate: &[Vector<E, N>],
    up: &[Vector<E, N>],
    y: &mut [Vector<E, N>],
    units: usize,
    width: usize,
    stride: usize,
    offset: usize,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= units {
        terminate!();
    }
    let row = ABSOLUTE_POS / width;
    let at = row * stride + (ABSOLUTE_POS - row * width);
    let activated = silu::<N>(Vector::cast_from(gate[at]));
    y[ABSOLUTE_POS] = Vector::cast_from(activated * Vector::cast_from(up[at + offset]));
}

/// `dgate = dy ⊙ up ⊙ silu'(gate)`, `dup = dy ⊙ silu(gate)`.
#[cube(launch_unchecked)]
fn swiglu_backward<E: Float, N: Size>(
    gate: &[Vector<E, N>],
    up: &[Vector<E, N>],
    dy: &[Vector<E, N>],
    dgate: &mut [Vector<E, N>],
    dup: &mut [Vector<E, N>],
    units: usize,
    width: usize,
    stride: usize,
    offset: usize,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= units {
        terminate!();
    }
    let row = ABSOLUTE_POS / width;
    let at = row * stride + (ABSOLUTE_POS - row * width);
    let gate = Vector::<f32, N>::cast_from(gate[at]);
    let up = Vector::<f32, N>::cast_from(up[at + offset]);
    let dy = Vector::<f32, N>::cast_from(dy[ABSOLUTE_POS]);
    dgate[at] = Vector::cast_from(dy * up * silu_slope::<N>(gate));
    dup[at + offset] = Vector::cast_from(dy * silu::<N>(gate));
}
