//! The convolution on the CPU: a token's row is a sum of products of whole rows.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use burn::Tensor;
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::DType;
use burn_flex::FlexTensor;

use crate::Segments;
use crate::cpu::columns::{Columns, rowwise};
use crate::cpu::element::{Element, by_element, narrowed, wide};
use crate::cpu::operand::{Operand, contiguous, record};
use crate::cpu::rows::{filled, sum_blocks, sum_rows};
use crate::cpu::vector;

/// `None` when an operand is not an f32 or bf16 tensor on burn-flex. Weight and bias may have another of the two types than
/// `x`.
pub(super) fn causal_conv(
    x: &Tensor<2>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    segments: &Arc<Segments>,
) -> Option<Tensor<2>> {
    let ([tokens, channels], [_, kernel]) = (x.dims(), weight.dims());
    let absent = || Some(Operand::absent());
    let parents = [Operand::of_float(x)?, Operand::of_float(weight)?, bias.map_or_else(absent, Operand::of_float)?];
    let conv = Convolution {
        x: rowwise(parents[0].data().clone()),
        weight_KC: transposed(&wide(&parents[1].contiguous()), kernel),
        bias: wide(&parents[2].contiguous()),
        weight_dtypes: [weight.dtype(), bias.map_or(DType::F32, Tensor::dtype)],
        segments: segments.clone(),
        channels,
        kernel,
    };
    Some(by_element!(x.dtype(), E => {
        let y = E::tensor(conv.outputs::<E>(tokens), [tokens, channels]);
        record(Step::<E>(PhantomData), parents, y, || conv)
    }))
}

/// `[rows, columns]` to `[columns, rows]`.
fn transposed(matrix: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| matrix.iter().skip(column).step_by(columns).copied()).collect()
}

#[derive(Debug)]
struct Step<E>(PhantomData<E>);

#[derive(Clone, Debug)]
struct Convolution {
    x: FlexTensor,
    /// One row a column of the weight.
    weight_KC: Vec<f32>,
    /// Empty when there is none.
    bias: Vec<f32>,
    /// Of weight and bias, whose gradients have them too.
    weight_dtypes: [DType; 2],
    segments: Arc<Segments>,
    channels: usize,
    kernel: usize,
}

/// Inputs in f32 from one token on.
#[derive(Clone, Copy, Debug)]
struct Reach<'a> {
    x: Columns<'a>,
    from: usize,
}

impl<'a> Reach<'a> {
    fn row(self, token: usize) -> &'a [f32] {
        self.x.row(token - self.from)
    }
}

impl Convolution {
    /// Tokens before each one in its segment.
    fn past(&self) -> Vec<usize> {
        self.segments.iter().flat_map(|(_, len)| 0..len).collect()
    }

    fn outputs<E: Element>(&self, tokens: usize) -> Vec<E> {
        let past = self.past();
        filled(tokens * self.channels, self.channels, |first, block: &mut [E]| {
            let [mut wide_x, mut wide_y] = [const { Vec::new() }; 2];
            let x = self.reach::<E>(first..first + block.len() / self.channels, &mut wide_x);
            for (y, token) in block.chunks_exact_mut(self.channels).zip(first..) {
                E::write(y, &mut wide_y, |y| {
                    self.sum(y, x, token, past[token]);
                    vector::silu(y);
                });
            }
        })
    }

    /// Gradients of the sums before the activation, in f32 whatever the type: those of inputs and weights are sums of them.
    fn sum_gradients<E: Element>(&self, dy: &[E], tokens: usize) -> Vec<f32> {
        let past = self.past();
        filled(tokens * self.channels, self.channels, |first, block: &mut [f32]| {
            let [mut wide_x, mut wide_dy] = [const { Vec::new() }; 2];
            let x = self.reach::<E>(first..first + block.len() / self.channels, &mut wide_x);
            for (dsum, token) in block.chunks_exact_mut(self.channels).zip(first..) {
                self.sum(dsum, x, token, past[token]);
                let dy = E::read(&dy[token * self.channels..][..self.channels], &mut wide_dy);
                vector::silu_backward(dsum, dy);
            }
        })
    }

    /// The inputs of some tokens and of those the kernel reaches back to.
    fn reach<'a, E: Element>(&'a self, tokens: Range<usize>, buffer: &'a mut Vec<f32>) -> Reach<'a> {
        let from = tokens.start.saturating_sub(self.kernel - 1);
        Reach { x: E::rows(Columns::of(&self.x), from..tokens.end, buffer), from }
    }

    /// The sum of a token before its activation, `past` tokens after the start of its segment.
    fn sum(&self, sum: &mut [f32], x: Reach, token: usize, past: usize) {
        if self.bias.is_empty() {
            sum.fill(0.0);
        } else {
            sum.copy_from_slice(&self.bias);
        }
        let lags = 0..self.kernel.min(past + 1);
        let terms: Vec<_> = lags.map(|lag| (x.row(token - lag), self.column(lag))).collect();
        vector::accumulate_products(sum, &terms);
    }

    /// The weights of the inputs `lag` tokens back.
    fn column(&self, lag: usize) -> &[f32] {
        &self.weight_KC[(self.kernel - 1 - lag) * self.channels..][..self.channels]
    }

    /// `dx[t] = Σ_lag weight(lag) ⊙ dsum[t + lag]` inside each segment.
    fn input_gradient<E: Element>(&self, dsums: &[f32]) -> Vec<E> {
        let future: Vec<usize> = self.segments.iter().flat_map(|(_, len)| (0..len).rev()).collect();
        filled(dsums.len(), self.channels, |first, block: &mut [E]| {
            let mut wide_dx = Vec::new();
            for (dx, token) in block.chunks_exact_mut(self.channels).zip(first..) {
                let dsum = |token: usize| &dsums[token * self.channels..][..self.channels];
                let lags = 0..self.kernel.min(future[token] + 1);
                let terms: Vec<_> = lags.map(|lag| (dsum(token + lag), self.column(lag))).collect();
                E::write(dx, &mut wide_dx, |dx| {
                    dx.fill(0.0);
                    vector::accumulate_products(dx, &terms);
                });
            }
        })
    }

    /// `dweight(lag) = Σ_t dsum[t] ⊙ x[t - lag]` inside each segment, as `[C, K]`.
    fn weight_gradient<E: Element>(&self, dsums: &[f32], tokens: usize) -> Vec<f32> {
        let (past, channels, kernel) = (self.past(), self.channels, self.kernel);
        let sums = sum_blocks(tokens, channels, kernel * channels, |rows, sum| {
            let mut wide_x = Vec::new();
            let x = self.reach::<E>(rows.clone(), &mut wide_x);
            for token in rows {
                let dsum = &dsums[token * channels..][..channels];
                for lag in 0..kernel.min(past[token] + 1) {
                    let column = &mut sum[(kernel - 1 - lag) * channels..][..channels];
                    vector::accumulate_product(column, 1.0, dsum, x.row(token - lag));
                }
            }
        });
        transposed(&sums, channels)
    }
}

impl<E: Element> Backward<Flex, 3> for Step<E> {
    type State = Convolution;

    fn backward(self, ops: Ops<Convolution, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let conv = &ops.state;
        let (channels, tokens) = (conv.channels, conv.segments.tokens());
        let dsums = conv.sum_gradients(E::slice(&dy), tokens);
        let [x_node, weight_node, bias_node] = ops.parents;
        let [weight_dtype, bias_dtype] = conv.weight_dtypes;
        if let Some(node) = x_node {
            grads.register::<Flex>(node.id, E::tensor(conv.input_gradient(&dsums), [tokens, channels]));
        }
        if let Some(node) = weight_node {
            let dweight = conv.weight_gradient::<E>(&dsums, tokens);
            grads.register::<Flex>(node.id, narrowed(dweight, [channels, conv.kernel], weight_dtype));
        }
        if let Some(node) = bias_node {
            grads.register::<Flex>(node.id, narrowed(sum_rows(&dsums, channels), [channels], bias_dtype));
        }
    }
}
