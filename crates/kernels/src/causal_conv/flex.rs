//! The convolution on the CPU: a token's row is a sum of products of whole rows.

use std::sync::Arc;

use burn::Tensor;
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn_flex::FlexTensor;

use crate::Segments;
use crate::cpu::columns::{Columns, rowwise};
use crate::cpu::operand::{Operand, contiguous, from_vec, record, slice};
use crate::cpu::rows::{for_blocks, sum_blocks, sum_rows};
use crate::cpu::vector;

/// `None` when an operand is not an f32 tensor on burn-flex.
pub(super) fn causal_conv(
    x: &Tensor<2>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    segments: &Arc<Segments>,
) -> Option<Tensor<2>> {
    let ([tokens, channels], [_, kernel]) = (x.dims(), weight.dims());
    let absent = || Some(Operand::absent());
    let parents = [Operand::of(x)?, Operand::of(weight)?, bias.map_or_else(absent, Operand::of)?];
    let conv = Convolution {
        x: rowwise(parents[0].data().clone()),
        weight_KC: transposed(slice(&parents[1].contiguous()), kernel),
        bias: slice(&parents[2].contiguous()).to_vec(),
        segments: segments.clone(),
        channels,
        kernel,
    };
    let mut y = conv.sums(tokens);
    for_blocks(&mut y, channels, |_, block| vector::silu(block));
    Some(record(Step, parents, from_vec(y, [tokens, channels]), || conv))
}

/// `[rows, columns]` to `[columns, rows]`.
fn transposed(matrix: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| matrix.iter().skip(column).step_by(columns).copied()).collect()
}

#[derive(Debug)]
struct Step;

#[derive(Clone, Debug)]
struct Convolution {
    x: FlexTensor,
    /// One row a column of the weight.
    weight_KC: Vec<f32>,
    /// Empty when there is none.
    bias: Vec<f32>,
    segments: Arc<Segments>,
    channels: usize,
    kernel: usize,
}

impl Convolution {
    /// The sums before the activation, `[T, C]`.
    fn sums(&self, tokens: usize) -> Vec<f32> {
        let past: Vec<usize> = self.segments.iter().flat_map(|(_, len)| 0..len).collect();
        let x = Columns::of(&self.x);
        let mut sums = vec![0.0; tokens * self.channels];
        for_blocks(&mut sums, self.channels, |first, block| {
            for (sum, token) in block.chunks_exact_mut(self.channels).zip(first..) {
                if !self.bias.is_empty() {
                    sum.copy_from_slice(&self.bias);
                }
                let lags = 0..self.kernel.min(past[token] + 1);
                let terms: Vec<_> = lags.map(|lag| (x.row(token - lag), self.column(lag))).collect();
                vector::accumulate_products(sum, &terms);
            }
        });
        sums
    }

    /// The weights of the inputs `lag` tokens back.
    fn column(&self, lag: usize) -> &[f32] {
        &self.weight_KC[(self.kernel - 1 - lag) * self.channels..][..self.channels]
    }

    /// `dx[t] = Σ_lag weight(lag) ⊙ dsum[t + lag]` inside each segment.
    fn input_gradient(&self, dsums: &[f32]) -> Vec<f32> {
        let future: Vec<usize> = self.segments.iter().flat_map(|(_, len)| (0..len).rev()).collect();
        let mut dx = vec![0.0; dsums.len()];
        for_blocks(&mut dx, self.channels, |first, block| {
            for (dx, token) in block.chunks_exact_mut(self.channels).zip(first..) {
                let dsum = |token: usize| &dsums[token * self.channels..][..self.channels];
                let lags = 0..self.kernel.min(future[token] + 1);
                let terms: Vec<_> = lags.map(|lag| (dsum(token + lag), self.column(lag))).collect();
                vector::accumulate_products(dx, &terms);
            }
        });
        dx
    }

    /// `dweight(lag) = Σ_t dsum[t] ⊙ x[t - lag]` inside each segment, as `[C, K]`.
    fn weight_gradient(&self, dsums: &[f32], tokens: usize) -> Vec<f32> {
        let past: Vec<usize> = self.segments.iter().flat_map(|(_, len)| 0..len).collect();
        let (channels, kernel) = (self.channels, self.kernel);
        let x = Columns::of(&self.x);
        let sums = sum_blocks(tokens, channels, kernel * channels, |rows, sum| {
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

impl Backward<Flex, 3> for Step {
    type State = Convolution;

    fn backward(self, ops: Ops<Convolution, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let (conv, dy) = (&ops.state, slice(&dy));
        let (channels, tokens) = (conv.channels, conv.segments.tokens());
        let mut dsums = conv.sums(tokens);
        for_blocks(&mut dsums, channels, |first, block| {
            vector::silu_backward(block, &dy[first * channels..][..block.len()]);
        });
        let [x_node, weight_node, bias_node] = ops.parents;
        if let Some(node) = x_node {
            grads.register::<Flex>(node.id, from_vec(conv.input_gradient(&dsums), [tokens, channels]));
        }
        if let Some(node) = weight_node {
            grads.register::<Flex>(node.id, from_vec(conv.weight_gradient(&dsums, tokens), [channels, conv.kernel]));
        }
        if let Some(node) = bias_node {
            grads.register::<Flex>(node.id, from_vec(sum_rows(&dsums, channels), [channels]));
        }
    }
}
