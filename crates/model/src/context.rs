//! What a forward needs to know about its tokens beside their values: where sequences begin, rotary angles, and in
//! generation the keys and values of the past. Computed once per batch, shared by all layers.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::{Bool, DType, Device, Tensor, TensorData, activation};
use qwen_tune_kernels::{self as kernels, Input, Segments};
use qwen_tune_qwen::spec::{GatedDeltaSpec, NormSpec, RopeSpec};

use crate::norm::RmsNorm;
use crate::parameters::Pass;

/// The layout of one batch of tokens.
pub struct Context {
    /// Sequences on the flat token axis.
    pub segments: Arc<Segments>,
    cos: Tensor<2>,
    sin: Tensor<2>,
    /// Keys and values of the past; only in generation.
    pub cache: Option<Cache>,
}

impl Context {
    /// `sequences` are (start, length) pairs that cover the tokens; `positions` one per token.
    #[must_use]
    pub fn new(rope: &RopeSpec, sequences: &[(usize, usize)], positions: &[u32], device: &Device) -> Self {
        let (cos, sin) = angles(rope, positions, device);
        let segments =
            Segments { starts: sequences.iter().map(|s| s.0).collect(), lens: sequences.iter().map(|s| s.1).collect() };
        Self { segments: Arc::new(segments), cos, sin, cache: None }
    }

    /// For generation of one sequence: `tokens` new ones after those the cache holds.
    #[must_use]
    pub fn continuing(rope: &RopeSpec, cache: Cache, tokens: usize, device: &Device) -> Self {
        let past = cache.len as u32;
        let positions: Vec<u32> = (past..past + tokens as u32).collect();
        Self { cache: Some(cache), ..Self::new(rope, &[(0, tokens)], &positions, device) }
    }

    /// Rotary embedding of heads `[T, heads, d]`.
    #[must_use]
    pub fn rotate(&self, heads: Tensor<3>) -> Tensor<3> {
        kernels::rope(heads, self.cos.clone(), self.sin.clone())
    }

    /// The norm of each of these heads, then their rotary embedding.
    pub(crate) fn norm_rotate(&self, norm: &RmsNorm, heads: Tensor<3>, pass: &Pass<'_>) -> Input<3> {
        let (weight, NormSpec { eps, zero_centred }) = (pass.get(&norm.weight), norm.spec);
        Input::norm_rope(heads, weight, self.cos.clone(), self.sin.clone(), eps, zero_centred)
    }
}

/// cos and sin, `[tokens, rotary_dim / 2]`, in f32 as transformers computes them.
fn angles(rope: &RopeSpec, positions: &[u32], device: &Device) -> (Tensor<2>, Tensor<2>) {
    let shape = [positions.len(), rope.inv_freq.len()];
    let table = |f: fn(f32) -> f32| {
        let values: Vec<f32> = positions
            .iter()
            .flat_map(|&p| rope.inv_freq.iter().map(move |w| f(p as f32 * w) * rope.attention_factor))
            .collect();
        Tensor::from_data(TensorData::new(values, shape), device)
    };
    (table(f32::cos), table(f32::sin))
}

/// The past of one sequence, layer by layer.
#[derive(Default)]
pub struct Cache {
    layers: RefCell<BTreeMap<usize, Past>>,
    len: usize,
}

/// What a layer remembers.
enum Past {
    /// Keys and values of all tokens, `[S, K, d]`.
    Attention(Tensor<3>, Tensor<3>),
    /// Of a recurrence: the last inputs of the convolution `[kernel - 1, C]`, and the state `[H, dk, dv]`.
    Recurrence(Tensor<2>, Tensor<3>),
}

impl Cache {
    /// Tokens held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Counts the tokens of a finished forward.
    pub fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }

    /// Appends this layer's keys and values and attends to all of them: `q` `[n, N, d]`, `k`, `v` `[n, K, d]`.
    pub(crate) fn attend(
        &self,
        layer: usize,
        q: Tensor<3>,
        k: Tensor<3>,
        v: Tensor<3>,
        scale: f32,
        window: Option<usize>,
    ) -> Tensor<3> {
        let (k, v) = match self.layers.borrow_mut().remove(&layer) {
            Some(Past::Attention(keys, values)) => (Tensor::cat(vec![keys, k], 0), Tensor::cat(vec![values, v], 0)),
            _ => (k, v),
        };
        self.layers.borrow_mut().insert(layer, Past::Attention(k.clone(), v.clone()));
        attend_past(q, k, v, scale, window)
    }

    /// Takes a recurrent layer on: `step` gets the convolution's history, of the inputs' `dtype`, and the state, always f32,
    /// zeros at first, and returns the output with both as they are afterwards.
    pub(crate) fn recur(
        &self,
        layer: usize,
        spec: &GatedDeltaSpec,
        (device, dtype): (&Device, DType),
        step: impl FnOnce(Tensor<2>, Tensor<3>) -> (Tensor<3>, Tensor<2>, Tensor<3>),
    ) -> Tensor<3> {
        let (history, state) = match self.layers.borrow_mut().remove(&layer) {
            Some(Past::Recurrence(history, state)) => (history, state),
            _ => (
                Tensor::zeros([spec.kernel - 1, spec.convolved()], (device, dtype)),
                Tensor::zeros([spec.value_heads, spec.key_dim, spec.value_dim], (device, DType::F32)),
            ),
        };
        let (y, history, state) = step(history, state);
        self.layers.borrow_mut().insert(layer, Past::Recurrence(history, state));
        y
    }
}

/// Attention of the last n positions of one sequence of S to all before them, in plain tensor operations: the products
/// are matrix-vector ones, bound by reading the cache.
fn attend_past(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, scale: f32, window: Option<usize>) -> Tensor<3> {
    let ([n, heads, d], [s, kv_heads, _], dtype) = (q.dims(), k.dims(), q.dtype());
    let group = heads / kv_heads;
    let [q, k, v] = [q, k, v].map(|heads| heads.cast(DType::F32));
    let q = q.reshape([n, kv_heads, group, d]).permute([1, 2, 0, 3]).reshape([kv_heads, group * n, d]);
    let scores = q.matmul(k.permute([1, 2, 0])).mul_scalar(scale);
    let scores = if n == 1 && window.is_none_or(|w| s <= w) {
        scores
    } else {
        let hidden: Vec<bool> = (0..group * n)
            .flat_map(|row| {
                let p = s - n + row % n;
                (0..s).map(move |j| j > p || window.is_some_and(|w| j + w <= p))
            })
            .collect();
        let mask = Tensor::<2, Bool>::from_data(TensorData::new(hidden, [group * n, s]), &scores.device());
        scores.mask_fill(mask.unsqueeze::<3>().expand([kv_heads, group * n, s]), f32::NEG_INFINITY)
    };
    let y = activation::softmax(scores, 2).matmul(v.permute([1, 0, 2]));
    y.reshape([kv_heads, group, n, d]).permute([2, 0, 1, 3]).reshape([n, heads, d]).cast(dtype)
}
