//! Causal grouped-query attention inside each sequence of a flat token axis.

#[cfg(feature = "cpu")]
mod backward;
#[cfg(any(feature = "gpu", test))]
mod blockwise;
#[cfg(feature = "gpu")]
mod cube;
#[cfg(feature = "cpu")]
mod flex;
pub(crate) mod reference;

use std::sync::Arc;

use burn::Tensor;

use crate::{Input, Segments};

/// `softmax(scale·q·kᵀ + mask)·v`, causal inside each segment and blind across segments.
///
/// `q` is `[T, N, d]`, `k` and `v` `[T, K, d]` with `N` a multiple of `K`; query head `h` reads key head `h/(N/K)`. The
/// softmax is f32. With a `window` a token sees itself and the `window - 1` tokens before it.
///
/// Kept for backward: `q` and `k` unless they are formed again, `v`, the output and one number a token and query head.
pub fn attention(
    q: impl Into<Input<3>>,
    k: impl Into<Input<3>>,
    v: Tensor<3>,
    segments: &Arc<Segments>,
    scale: f32,
    window: Option<usize>,
) -> Tensor<3> {
    let (q, k) = (q.into(), k.into());
    let ([tokens, heads, size], [_, kv_heads, _]) = (q.tensor().dims(), k.tensor().dims());
    assert!(
        k.tensor().dims() == [tokens, kv_heads, size]
            && v.dims() == k.tensor().dims()
            && kv_heads > 0
            && heads % kv_heads == 0,
        "attention: q is [{tokens}, {heads}, {size}], k {:?}, v {:?}",
        k.tensor().dims(),
        v.dims()
    );
    assert!(window != Some(0), "attention: a window of 0 tokens leaves nothing to attend to");
    segments.assert_covers(tokens);
    #[cfg(feature = "cpu")]
    if let Some(out) = flex::attention([&q, &k], &v, segments, scale, window) {
        return out;
    }
    #[cfg(feature = "gpu")]
    if let Some(out) = cube::attention([&q, &k], &v, segments, scale, window) {
        return out;
    }
    reference::attention(q.into_tensor(), k.into_tensor(), v, segments, scale, window)
}

#[cfg(all(test, feature = "cpu"))]
mod tests;
