//! Attention as batched products over blocks of queries: for GPUs that have no room for the tiles of a kernel without scores.
//!
//! A block is some tokens of the flat axis, whatever sequences they are of, and the keys from the first that any of them
//! sees to its own last token; what lies in between and is not seen gets weight 0. So the number of products depends on the
//! number of tokens alone, and packed short sequences cost little more than their own scores. The query heads of a key head
//! are rows of one matrix, so that keys and values are neither repeated nor copied per block.
//!
//! With `P` tokens a block, `L` keys and `N·d` the width of the queries, a block multiplies `2·P·L·N·d` times forwards and
//! `5·P·L·N·d` times backwards, and moves its `N·P·L` scores: in bf16 12 bytes each forwards (f32 out of the product, in and
//! bf16 out of the softmax, in to the product) and 26 backwards. That, not the products, bounds it: a block is sized so that
//! its scores stay in the last-level cache of a large GPU.

use std::ops::Range;
use std::sync::Arc;

use burn::Tensor;
use burn::tensor::DType;
#[cfg(test)]
use burn::tensor::{Bool, Int, TensorData};

use crate::Segments;

/// Scores of a block, at most, unless that is too few tokens: 64 MiB in f32.
const BLOCK_SCORES: usize = 1 << 24;
/// Tokens of a block: below, its products are too flat; above, too much of the diagonal is computed in vain.
const BLOCK_TOKENS: std::ops::RangeInclusive<usize> = 64..=512;
/// Blocks and the keys they see begin at multiples of this, where products read whole lines of memory.
const STEP: usize = 64;

/// Score of a masked pair. Finite, so that a row never holds infinities only; no real score comes near it.
#[cfg(test)]
const MASKED: f32 = -1e30;

/// Sizes and the rule of visibility.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) kv_heads: usize,
    /// Query heads of a key head.
    pub(super) group: usize,
    pub(super) size: usize,
    pub(super) scale: f32,
    pub(super) window: Option<usize>,
    pub(super) segments: Arc<Segments>,
}

/// Queries `tokens`, and the keys `from..tokens.end`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) tokens: Range<usize>,
    pub(super) from: usize,
}

impl Block {
    pub(super) fn keys(&self) -> usize {
        self.tokens.end - self.from
    }
}

/// What lies between the products of a block; rows of scores are key heads, tokens, query heads of the key head.
pub(super) trait Steps {
    /// `a·b` in their type.
    fn product(a: Tensor<3>, b: Tensor<3>) -> Tensor<3>;

    /// `a·b` in f32.
    fn wide_product(a: Tensor<3>, b: Tensor<3>) -> Tensor<3>;

    /// Weights in `dtype`, and the log-sum-exp of each row, `[K, P·G]`.
    fn softmax(layout: &Layout, block: &Block, scores: Tensor<3>, dtype: DType) -> (Tensor<3>, Tensor<2>);

    /// Weights and gradients of the products `q·k`, in `dtype`, from scores, the weights' gradients, the kept log-sum-exp
    /// and `delta`, `[P, N]`.
    fn softmax_backward(
        layout: &Layout,
        block: &Block,
        scores: [Tensor<3>; 2],
        lse: Tensor<2>,
        delta: Tensor<2>,
        dtype: DType,
    ) -> [Tensor<3>; 2];

    /// `Σ a·b` over the last axis, `[T, N]` in f32.
    fn row_products(a: &Tensor<3>, b: &Tensor<3>) -> Tensor<2>;

    /// `sum[:, from.., :] += part`.
    fn add_rows(sum: Tensor<3>, part: Tensor<3>, from: usize) -> Tensor<3>;
}

impl Layout {
    /// First key that each token sees.
    pub(super) fn first_keys(&self) -> Vec<usize> {
        let of_segment = |(start, len): (usize, usize)| {
            let oldest = move |token: usize| self.window.map_or(0, |window| (token + 1).saturating_sub(window));
            (start..start + len).map(move |token| oldest(token).max(start))
        };
        self.segments.iter().flat_map(of_segment).collect()
    }

    pub(super) fn blocks(&self) -> Vec<Block> {
        let (first_keys, mut blocks, mut first) = (self.first_keys(), Vec::new(), 0);
        while first < first_keys.len() {
            let from = first_keys[first] / STEP * STEP;
            let fits = |tokens: &usize| self.kv_heads * self.group * tokens * (first + tokens - from) <= BLOCK_SCORES;
            let sizes = BLOCK_TOKENS.step_by(STEP).filter(fits);
            let tokens = sizes.last().unwrap_or(*BLOCK_TOKENS.start());
            let end = first_keys.len().min(first + tokens);
            blocks.push(Block { tokens: first..end, from });
            first = end;
        }
        blocks
    }

    /// `[T, K·G, d]` as `[K, T·G, d]`: all rows of a key head together, those of a token side by side.
    fn packed(&self, x: Tensor<3>, group: usize) -> Tensor<3> {
        let [tokens, _, size] = x.dims();
        let x = x.reshape([tokens, self.kv_heads, group, size]).swap_dims(0, 1);
        x.reshape([self.kv_heads, tokens * group, size])
    }

    /// Blocks of `[K, P·G, d]`, in order, as `[T, K·G, d]`.
    fn unpacked(&self, blocks: Vec<Tensor<3>>) -> Tensor<3> {
        let split = |block: Tensor<3>| {
            let rows = block.dims()[1] / self.group;
            block.reshape([self.kv_heads, rows, self.group, self.size]).swap_dims(0, 1)
        };
        let all = Tensor::cat(blocks.into_iter().map(split).collect(), 0);
        let tokens = all.dims()[0];
        all.reshape([tokens, self.kv_heads * self.group, self.size])
    }

    fn queries(&self, packed: &Tensor<3>, block: &Block) -> Tensor<3> {
        packed.clone().narrow(1, block.tokens.start * self.group, block.tokens.len() * self.group)
    }

    /// The output, and the log-sum-exp of each block.
    pub(super) fn forward<S: Steps>(&self, [q, k, v]: [Tensor<3>; 3]) -> (Tensor<3>, Vec<Tensor<2>>) {
        let (dtype, blocks) = (q.dtype(), self.blocks());
        let q_KRd = self.packed(q, self.group);
        let [k_KTd, v_KTd] = [k, v].map(|x| self.packed(x, 1));
        let of_block = |block: &Block| {
            let [k_KLd, v_KLd] = [&k_KTd, &v_KTd].map(|x| x.clone().narrow(1, block.from, block.keys()));
            let scores_KRL = S::wide_product(self.queries(&q_KRd, block), k_KLd.swap_dims(1, 2));
            let (weights_KRL, lse_KR) = S::softmax(self, block, scores_KRL, dtype);
            (S::product(weights_KRL, v_KLd), lse_KR)
        };
        let (outputs, sums) = blocks.iter().map(of_block).unzip();
        (self.unpacked(outputs), sums)
    }

    /// Gradients of q, k and v. With `p = exp(s - lse)` and `delta = Σ dout·out`: `dv += pᵀ·dout`,
    /// `ds = scale·p ⊙ (dout·vᵀ - delta)`, `dq = ds·k`, `dk += dsᵀ·q`.
    pub(super) fn backward<S: Steps>(
        &self,
        [q, k, v]: [Tensor<3>; 3],
        out: &Tensor<3>,
        sums: Vec<Tensor<2>>,
        dout: Tensor<3>,
    ) -> [Tensor<3>; 3] {
        let (dtype, device, tokens) = (q.dtype(), q.device(), q.dims()[0]);
        let delta_TN = S::row_products(&dout, out);
        let [q_KRd, dout_KRd] = [q, dout].map(|x| self.packed(x, self.group));
        let [k_KTd, v_KTd] = [k, v].map(|x| self.packed(x, 1));
        let zeros = || Tensor::<3>::zeros([self.kv_heads, tokens, self.size], (&device, DType::F32));
        let (mut dk_KTd, mut dv_KTd, mut dqs) = (zeros(), zeros(), Vec::new());
        for (block, lse_KR) in self.blocks().iter().zip(sums) {
            let [k_KLd, v_KLd] = [&k_KTd, &v_KTd].map(|x| x.clone().narrow(1, block.from, block.keys()));
            let [q_KRd, dout_KRd] = [&q_KRd, &dout_KRd].map(|x| self.queries(x, block));
            let scores_KRL = S::wide_product(q_KRd.clone(), k_KLd.clone().swap_dims(1, 2));
            let dweights_KRL = S::wide_product(dout_KRd.clone(), v_KLd.swap_dims(1, 2));
            let delta = delta_TN.clone().narrow(0, block.tokens.start, block.tokens.len());
            let [weights_KRL, dscores_KRL] =
                S::softmax_backward(self, block, [scores_KRL, dweights_KRL], lse_KR, delta, dtype);
            dv_KTd = S::add_rows(dv_KTd, S::wide_product(weights_KRL.swap_dims(1, 2), dout_KRd), block.from);
            dk_KTd = S::add_rows(dk_KTd, S::wide_product(dscores_KRL.clone().swap_dims(1, 2), q_KRd), block.from);
            dqs.push(S::product(dscores_KRL, k_KLd));
        }
        let of_keys = |sum: Tensor<3>| sum.swap_dims(0, 1).cast(dtype);
        [self.unpacked(dqs), of_keys(dk_KTd), of_keys(dv_KTd)]
    }

    /// True where a row of the block's scores may not see a key: `[1, P·G, L]`.
    #[cfg(test)]
    fn hidden(&self, block: &Block, device: &burn::tensor::Device) -> Tensor<3, Bool> {
        let first_keys = self.first_keys();
        let row = |token: usize| (block.from..block.tokens.end).map(move |key| (token, key));
        let hidden = |(token, key): (usize, usize)| key > token || key < first_keys[token];
        let rows = block.tokens.clone().flat_map(|token| std::iter::repeat_n(token, self.group));
        let values: Vec<i32> = rows.flat_map(row).map(|pair| i32::from(hidden(pair))).collect();
        let shape = [1, block.tokens.len() * self.group, block.keys()];
        Tensor::<3, Int>::from_data(TensorData::new(values, shape), device).equal_scalar(1)
    }
}

/// The steps in plain tensor operations, on any device: what a kernel of a step is compared with.
#[cfg(test)]
#[derive(Debug)]
pub(super) struct Plain;

#[cfg(test)]
impl Steps for Plain {
    fn product(a: Tensor<3>, b: Tensor<3>) -> Tensor<3> {
        a.matmul(b)
    }

    fn wide_product(a: Tensor<3>, b: Tensor<3>) -> Tensor<3> {
        a.cast(DType::F32).matmul(b.cast(DType::F32))
    }

    fn softmax(layout: &Layout, block: &Block, scores: Tensor<3>, dtype: DType) -> (Tensor<3>, Tensor<2>) {
        let hidden = layout.hidden(block, &scores.device()).expand(scores.dims());
        let scores = (scores * layout.scale).mask_fill(hidden, MASKED);
        let max = scores.clone().max_dim(2);
        let lse = (scores.clone() - max.clone()).exp().sum_dim(2).log() + max;
        ((scores - lse.clone()).exp().cast(dtype), lse.squeeze_dim(2))
    }

    fn softmax_backward(
        layout: &Layout,
        block: &Block,
        [scores, dweights]: [Tensor<3>; 2],
        lse: Tensor<2>,
        delta: Tensor<2>,
        dtype: DType,
    ) -> [Tensor<3>; 2] {
        let Layout { kv_heads, group, scale, .. } = *layout;
        let (rows, tokens) = (scores.dims()[1], block.tokens.len());
        let hidden = layout.hidden(block, &scores.device()).expand(scores.dims());
        let alone = hidden.clone().bool_not().float().sum_dim(2).equal_scalar(1.0);
        let scores = (scores * scale).mask_fill(hidden, MASKED);
        let weights = (scores - lse.unsqueeze_dim(2)).exp();
        let delta: Tensor<3> = delta.reshape([tokens, kv_heads, group]).swap_dims(0, 1).reshape([kv_heads, rows, 1]);
        // The weight of a single key is 1 whatever its score: the difference would leave its rounding.
        let shape = weights.dims();
        let dscores = (weights.clone() * (dweights - delta) * scale).mask_fill(alone.expand(shape), 0.0);
        [weights.cast(dtype), dscores.cast(dtype)]
    }

    fn row_products(a: &Tensor<3>, b: &Tensor<3>) -> Tensor<2> {
        (a.clone().cast(DType::F32) * b.clone().cast(DType::F32)).sum_dim(2).squeeze_dim(2)
    }

    fn add_rows(sum: Tensor<3>, part: Tensor<3>, from: usize) -> Tensor<3> {
        let [heads, rows, size] = part.dims();
        let there = sum.clone().narrow(1, from, rows);
        sum.slice_assign([0..heads, from..from + rows, 0..size], there + part)
    }
}
