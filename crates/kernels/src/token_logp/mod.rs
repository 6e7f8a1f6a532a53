//! Log-probabilities of the target tokens under the output head, without ever holding logits for all tokens.
//!
//! Tokens without a target are skipped; the others go through the head in chunks bounded by a byte budget.

#[cfg(feature = "gpu")]
mod cube;
#[cfg(feature = "cpu")]
mod flex;
#[cfg(any(feature = "cpu", feature = "ndarray"))]
mod lean;
#[cfg(feature = "cpu")]
mod online;
pub(crate) mod reference;

use std::ops::RangeInclusive;

use burn::Tensor;
use burn::tensor::Device;

use crate::Weight;

/// Loss, log-probabilities and gradients of one pass over the head; see [`head_loss`].
#[derive(Clone, Debug)]
pub struct HeadLoss {
    /// `log p(target)` of each token, 0 where there is no target; `[T]`.
    pub logp: Tensor<1>,
    /// Gradient of the loss with respect to `h`; `[T, D]`.
    pub dh: Tensor<2>,
    /// Gradient with respect to the head `[V, D]`, when the head is tracked by autodiff.
    pub dhead: Option<Tensor<2>>,
}

/// `log softmax(h·headᵀ)[target]` of each token; 0 where the target is negative.
///
/// `h` is `[T, D]`, `head` `[V, D]`; the result is `[T]` in f32. Differentiable in `h`, and in `head` when it is tracked.
///
/// Kept for backward: `h`, handles of `head`, and one number a token; the logits are formed again.
pub fn token_logp(h: Tensor<2>, head: impl Into<Weight<2>>, targets: &[i32]) -> Tensor<1> {
    let head = head.into();
    check(&h, &head, targets);
    #[cfg(feature = "cpu")]
    if let Some(logp) = flex::token_logp(&h, &head, targets) {
        return logp;
    }
    #[cfg(feature = "cpu")]
    if let Some(logp) = lean::token_logp::<burn::backend::Flex>(&h, &head, targets) {
        return logp;
    }
    #[cfg(feature = "gpu")]
    if let Some(logp) = cube::token_logp(&h, &head, targets) {
        return logp;
    }
    #[cfg(feature = "ndarray")]
    #[expect(deprecated, reason = "kept as a second, independent implementation")]
    if let Some(logp) = lean::token_logp::<burn::backend::NdArray>(&h, &head, targets) {
        return logp;
    }
    let (device, dtype) = (h.device(), h.dtype());
    reference::token_logp(h, head.beside(&device, dtype), targets)
}

/// The loss `-Σ weights[t]·logp[t]` of tokens with a target: log-probabilities and gradients in one pass, no tape.
///
/// Shapes as in [`token_logp`], `weights` one a token. The gradient of the head is formed when `head` is tracked by
/// autodiff; the results themselves are plain tensors. For any other scalar of the log-probabilities, pass
/// `weights[t] = -∂/∂logp[t]`.
pub fn head_loss(h: Tensor<2>, head: impl Into<Weight<2>>, targets: &[i32], weights: &[f32]) -> HeadLoss {
    let head = head.into();
    check(&h, &head, targets);
    assert_eq!(targets.len(), weights.len(), "head_loss: one weight a target");
    let wants_head = head.is_tracked();
    let (h, head) = (h.inner(), head.inner());
    #[cfg(feature = "cpu")]
    if let Some(loss) = flex::head_loss(&h, &head, targets, weights, wants_head) {
        return loss;
    }
    #[cfg(feature = "gpu")]
    if let Some(loss) = cube::head_loss(&h, &head, targets, weights, wants_head) {
        return loss;
    }
    let head = head.beside(&h.device(), h.dtype());
    reference::head_loss(h, head, targets, weights, wants_head)
}

fn check(h: &Tensor<2>, head: &Weight<2>, targets: &[i32]) {
    let ([tokens, size], [vocabulary, head_size]) = (h.dims(), head.dims());
    assert_eq!(size, head_size, "token_logp: h is [{tokens}, {size}], head [{vocabulary}, {head_size}]");
    assert_eq!(tokens, targets.len(), "token_logp: one target a token");
    let largest = targets.iter().copied().max().unwrap_or(-1);
    assert!(largest < 0 || (largest as usize) < vocabulary, "token_logp: target {largest} of {vocabulary} tokens");
}

/// Bytes of f32 logits that a CPU holds at a time, unless that is too few tokens.
const CHUNK_BYTES: u64 = 64 << 20;
/// Tokens of a chunk: each chunk reads the whole head, which for fewer tokens costs more than the products.
const CHUNK_TOKENS: RangeInclusive<u64> = 128..=512;

/// Part of a device's own memory that a chunk may take, with f32 logits and their gradients in 16 bits.
const DEVICE_SHARE: u64 = 64;
const DEVICE_BYTES: u64 = 6;
/// Tokens of a chunk there. The head is read twice a chunk: below 512 tokens that takes an H200 longer than a quarter of
/// the products, of 4·D operations a token and number of the vocabulary against 4 bytes of D numbers a chunk.
const DEVICE_TOKENS: RangeInclusive<u64> = 128..=1024;

/// Tokens whose logits are held at a time, at most; on a device with so many bytes of its own, or `None` on a CPU.
#[must_use]
pub fn most_chunk_tokens(vocabulary: usize, memory: Option<u64>) -> usize {
    let (bytes, of_logit, tokens) = match memory {
        None => (CHUNK_BYTES, 4, CHUNK_TOKENS),
        Some(memory) => (memory / DEVICE_SHARE, DEVICE_BYTES, DEVICE_TOKENS),
    };
    (bytes / (of_logit * vocabulary.max(1) as u64)).clamp(*tokens.start(), *tokens.end()) as usize
}

/// Of so many tokens with a target, those whose logits are held at a time on a device: equal shares, in as few chunks as
/// there may be.
#[must_use]
pub fn chunk_tokens(tokens: usize, vocabulary: usize, device: &Device) -> usize {
    even_chunk(tokens, most_chunk_tokens(vocabulary, own_memory(device)))
}

fn even_chunk(tokens: usize, most: usize) -> usize {
    tokens.div_ceil(tokens.div_ceil(most).max(1)).max(1)
}

/// Bytes of a GPU's own memory, as far as it says: of some, what it gives at once. `None` for a CPU.
#[must_use]
pub fn own_memory(device: &Device) -> Option<u64> {
    #[cfg(feature = "gpu")]
    return cube::own_memory(device);
    #[cfg(not(feature = "gpu"))]
    {
        let _ = device;
        None
    }
}

/// Rows that have a target, and their targets.
fn trained_rows(targets: &[i32]) -> (Vec<usize>, Vec<usize>) {
    targets.iter().enumerate().filter(|&(_, &target)| target >= 0).map(|(row, &target)| (row, target as usize)).unzip()
}

#[cfg(all(test, feature = "cpu"))]
mod tests;
