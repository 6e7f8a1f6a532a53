//! The convolution on a GPU: one kernel in each direction, the sum before the activation formed again in the second.

use std::sync::Arc;

use burn::Tensor;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use crate::Segments;
use crate::gpu::float::{silu, silu_slope};
use crate::gpu::places::starts;
use crate::gpu::tensor::{dense, elem, elementwise, empty, float_operand, primitive, vector_size};
use crate::gpu::{Cube, Operand};
use crate::tape::record;

/// `None` when an operand is not a tensor of a GPU, or weight or bias is tracked: its gradient is left to the reference.
pub(super) fn causal_conv(
    x: &Tensor<2>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    segments: &Arc<Segments>,
) -> Option<Tensor<2>> {
    if weight.is_tracked() || bias.is_some_and(|bias| bias.is_tracked()) {
        return None;
    }
    let parent = float_operand(x)?;
    // `[K, C]`: a unit then reads the columns of its channels side by side.
    let weight = float_operand(&weight.clone().cast(DType::F32).transpose())?;
    let weight = dense(&weight);
    let bias = match bias {
        Some(bias) => dense(&float_operand(&bias.clone().cast(DType::F32))?),
        None => {
            let zeros = Tensor::<1>::zeros([x.dims()[1]], (&x.device().without_autodiff(), DType::F32));
            primitive(zeros)
        }
    };
    let x = dense(&parent);
    let conv = Convolution { starts: starts(segments, &x), x, weight, bias };
    Some(record(Step, [parent], conv.forward(), || conv))
}

#[derive(Clone, Debug)]
struct Convolution {
    /// `[T, C]`.
    x: CubeTensor,
    /// `[K, C]`, f32.
    weight: CubeTensor,
    /// `[C]`, f32.
    bias: CubeTensor,
    /// First token of each token's sequence.
    starts: CubeTensor,
}

impl Convolution {
    /// Tokens, channels, elements of a vector, columns of the weight.
    fn sizes(&self) -> (usize, usize, usize, usize) {
        let [tokens, channels] = [self.x.meta.shape()[0], self.x.meta.shape()[1]];
        (tokens, channels, vector_size(&self.x, &[self.x.dtype], &[channels]), self.weight.meta.shape()[0])
    }

    /// Bytes: `x` in (K - 1 times more from the cache), the result out; 2K + 6 operations an element: bound by memory.
    fn forward(&self) -> CubeTensor {
        let (y, (tokens, channels, vector, kernel)) =
            (empty(&self.x, self.x.meta.shape().clone(), self.x.dtype), self.sizes());
        let units = tokens * channels / vector;
        if units == 0 {
            return y;
        }
        let (count, dim) = elementwise(&self.x, units);
        // SAFETY: the kernel ends beyond `units` vectors and looks back no further than the sequence's start.
        #[expect(unsafe_code, reason = "a launch without checks of every index")]
        unsafe {
            conv_forward::launch_unchecked(
                &self.x.client,
                count,
                dim,
                vector,
                self.x.clone().into_buffer_arg(),
                self.weight.clone().into_buffer_arg(),
                self.bias.clone().into_buffer_arg(),
                self.starts.clone().into_buffer_arg(),
                y.clone().into_buffer_arg(),
                units,
                channels / vector,
                kernel,
                elem(self.x.dtype),
            );
        }
        y
    }

    /// Bytes: `x` and `dy` in, `dx` out; each unit forms the K sums that its input is part of, K² products and K
    /// exponentials an element: at K = 4 about as much as the memory lets pass in bf16.
    fn input_gradient(&self, dy: &CubeTensor) -> CubeTensor {
        let (dx, (tokens, channels, vector, kernel)) =
            (empty(&self.x, self.x.meta.shape().clone(), self.x.dtype), self.sizes());
        let units = tokens * channels / vector;
        if units == 0 {
            return dx;
        }
        let (count, dim) = elementwise(&self.x, units);
        // SAFETY: as in `forward`; it looks ahead no further than the last token.
        #[expect(unsafe_code, reason = "a launch without checks of every index")]
        unsafe {
            conv_backward::launch_unchecked(
                &self.x.client,
                count,
                dim,
                vector,
                self.x.clone().into_buffer_arg(),
                self.weight.clone().into_buffer_arg(),
                self.bias.clone().into_buffer_arg(),
                self.starts.clone().into_buffer_arg(),
                dy.clone().into_buffer_arg(),
                dx.clone().into_buffer_arg(),
                units,
                tokens,
                channels / vector,
                kernel,
                elem(self.x.dtype),
            );
        }
        dx
    }
}

#[derive(Debug)]
struct Step;

impl Backward<Cube, 1> for Step {
    type State = Convolution;

    fn backward(self, ops: Ops<Convolution, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = dense(&Operand::constant(grads.consume::<Cube>(&ops.node)));
        if let [Some(node)] = ops.parents {
            grads.register::<Cube>(node.id, ops.state.input_gradient(&dy));
        }
    }
}

/// The sum before the activation, of `token` and the channels of `column`.
#[cube]
fn before<E: Float, N: Size>(
    x: &[Vector<E, N>],
    weight: &[Vector<f32, N>],
    bias: &[Vector<f32, N>],
    start: usize,
    token: usize,
    column: usize,
    width: usize,
    kernel: usize,
) -> Vector<f32, N> {
    let mut total = bias[column];
    let terms = min(kernel, token - start + 1);
    for lag in 0..terms {
        let value = Vector::<f32, N>::cast_from(x[(token - lag) * width + column]);
        total += weight[(kernel - 1 - lag) * width + column] * value;
    }
    total
}

#[cube(launch_unchecked)]
fn conv_forward<E: Float, N: Size>(
    x: &[Vector<E, N>],
    weight: &[Vector<f32, N>],
    bias: &[Vector<f32, N>],
    starts: &[u32],
    y: &mut [Vector<E, N>],
    units: usize,
    width: usize,
    kernel: usize,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= units {
        terminate!();
    }
    let token = ABSOLUTE_POS / width;
    let column = ABSOLUTE_POS - token * width;
    let start = starts[token] as usize;
    let total = before::<E, N>(x, weight, bias, start, token, column, width, kernel);
    y[ABSOLUTE_POS] = Vector::cast_from(silu::<N>(total));
}

/// `dx[t] = Σ_lag weight[K-1-lag] ⊙ dsum[t + lag]` over the tokens of the sequence, with `dsum = dy ⊙ silu'(sum)`.
#[cube(launch_unchecked)]
fn conv_backward<E: Float, N: Size>(
    x: &[Vector<E, N>],
    weight: &[Vector<f32, N>],
    bias: &[Vector<f32, N>],
    starts: &[u32],
    dy: &[Vector<E, N>],
    dx: &mut [Vector<E, N>],
    units: usize,
    tokens: usize,
    width: usize,
    kernel: usize,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= units {
        terminate!();
    }
    let token = ABSOLUTE_POS / width;
    let column = ABSOLUTE_POS - token * width;
    let mut total = Vector::<f32, N>::new(0.0f32);
    let reach = min(kernel, tokens - token);
    for lag in 0..reach {
        let later = token + lag;
        let start = starts[later] as usize;
        if start <= token {
            let sum = before::<E, N>(x, weight, bias, start, later, column, width, kernel);
            let above = Vector::<f32, N>::cast_from(dy[later * width + column]);
            total += weight[(kernel - 1 - lag) * width + column] * above * silu_slope::<N>(sum);
        }
    }
    dx[ABSOLUTE_POS] = Vector::cast_from(total);
}
