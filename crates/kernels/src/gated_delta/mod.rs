//! The gated delta rule (Yang, Kautz and Hatamizadeh, 2024): linear attention whose memory forgets and corrects itself.

#[cfg(feature = "cpu")]
mod backward;
#[cfg(feature = "cpu")]
mod chunk;
#[cfg(feature = "gpu")]
mod cube;
#[cfg(feature = "cpu")]
mod flex;
pub(crate) mod reference;

use std::sync::Arc;

use burn::Tensor;

use crate::Segments;

/// Added to the squared length of a query or key before it is normalised, as in transformers.
const EPS: f64 = 1e-6;

/// The gated delta rule along each segment. Per value head, from a state `S = 0` of `[dk, dv]` at the segment's start:
///
/// `S ← e^g·S`; `S ← S + k̂·(beta·(v - Sᵀ·k̂))ᵀ`; `out = Sᵀ·q̂`, with `k̂ = k/√(Σk² + 1e-6)` and
/// `q̂ = dk^-½·q/√(Σq² + 1e-6)`.
///
/// `q` and `k` are `[T, K, dk]`, `v` `[T, H, dv]`, `g` (the logarithm of the decay, at most 0) and `beta` `[T, H]`, with `H` a
/// multiple of `K`; value head `h` uses key head `h/(H/K)`. The result is `[T, H, dv]` in `v`'s dtype; everything is computed in f32.
///
/// Kept for backward: handles of the operands, and the states between chunks of 64 tokens, `dk·dv/64` numbers a token
/// and value head (none for a segment of one chunk). At 16 key heads, 32 value heads and sizes of 128 that is 32 KiB a
/// token beside the 32.25 KiB of the operands.
pub fn gated_delta(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    g: Tensor<2>,
    beta: Tensor<2>,
    segments: &Arc<Segments>,
) -> Tensor<3> {
    check(&q, &k, &v, &g, &beta);
    segments.assert_covers(q.dims()[0]);
    #[cfg(feature = "cpu")]
    if let Some(out) = flex::gated_delta(&q, &k, &v, &g, &beta, segments) {
        return out;
    }
    #[cfg(feature = "gpu")]
    if let Some(out) = cube::gated_delta(&q, &k, &v, &g, &beta, segments) {
        return out;
    }
    reference::gated_delta(q, k, v, g, beta, segments)
}

/// [`gated_delta`] of the next tokens of one sequence, for generation: the output `[n, H, dv]`, and the state after them.
///
/// `state` is `[H, dk, dv]`, zeros at the start of a sequence; a whole prompt may come at once. Meant for plain tensors: with
/// autodiff it is right, but goes token by token.
pub fn gated_delta_step(
    state: Tensor<3>,
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    g: Tensor<2>,
    beta: Tensor<2>,
) -> (Tensor<3>, Tensor<3>) {
    check(&q, &k, &v, &g, &beta);
    let ([tokens, _, key_size], [_, value_heads, value_size]) = (k.dims(), v.dims());
    assert!(tokens > 0, "gated_delta_step: at least one token");
    assert_eq!(state.dims(), [value_heads, key_size, value_size], "gated_delta_step: the state is [H, dk, dv]");
    #[cfg(feature = "cpu")]
    if let Some(result) = flex::gated_delta_step(&state, &q, &k, &v, &g, &beta) {
        return result;
    }
    reference::gated_delta_step(state, q, k, v, g, beta)
}

fn check(q: &Tensor<3>, k: &Tensor<3>, v: &Tensor<3>, g: &Tensor<2>, beta: &Tensor<2>) {
    let ([tokens, key_heads, _], [value_tokens, value_heads, _]) = (k.dims(), v.dims());
    assert!(
        q.dims() == k.dims()
            && value_tokens == tokens
            && key_heads > 0
            && value_heads % key_heads == 0
            && g.dims() == [tokens, value_heads]
            && beta.dims() == g.dims(),
        "gated_delta: q is {:?}, k {:?}, v {:?}, g {:?}, beta {:?}",
        q.dims(),
        k.dims(),
        v.dims(),
        g.dims(),
        beta.dims()
    );
}

#[cfg(all(test, feature = "cpu"))]
mod tests;
