//! Depthwise causal convolution in front of linear attention (Yang, Kautz and Hatamizadeh, 2024), with its activation.

#[cfg(feature = "gpu")]
mod cube;
#[cfg(feature = "cpu")]
mod flex;
pub(crate) mod reference;

use std::sync::Arc;

use burn::Tensor;

use crate::Segments;

/// `y[t] = silu(bias + Σ_j weight[:, j] ⊙ x[t - (K-1) + j])` along each segment, with zeros before its first token: the last
/// column of the weight meets the token itself.
///
/// `x` is `[T, C]`, `weight` `[C, K]` (checkpoints hold `[C, 1, K]`), `bias` `[C]`. Computed in f32, whatever `x` is; weight and
/// bias may be f32 beside a narrower `x`.
///
/// Kept for backward: `x`, and handles of `weight` and `bias`; the sum before the activation is formed again.
pub fn causal_conv(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>, segments: &Arc<Segments>) -> Tensor<2> {
    let ([tokens, channels], [filters, kernel]) = (x.dims(), weight.dims());
    assert!(
        filters == channels && kernel > 0 && bias.as_ref().is_none_or(|bias| bias.dims() == [channels]),
        "causal_conv: x is [{tokens}, {channels}], weight [{filters}, {kernel}], bias {:?}",
        bias.map(|bias| bias.dims())
    );
    segments.assert_covers(tokens);
    #[cfg(feature = "cpu")]
    if let Some(y) = flex::causal_conv(&x, &weight, bias.as_ref(), segments) {
        return y;
    }
    #[cfg(feature = "gpu")]
    if let Some(y) = cube::causal_conv(&x, &weight, bias.as_ref(), segments) {
        return y;
    }
    reference::causal_conv(x, weight, bias, segments)
}

/// [`causal_conv`] of the next tokens of one sequence, for generation: the output of `x`, and the history after it.
///
/// `x` is `[n, C]`, `history` `[K-1, C]` the inputs before it, zeros at the start of a sequence. A whole prompt may come at
/// once.
pub fn causal_conv_step(
    history: Tensor<2>,
    x: Tensor<2>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> (Tensor<2>, Tensor<2>) {
    let ([past, _], [tokens, _], [_, kernel]) = (history.dims(), x.dims(), weight.dims());
    assert!(past > 0 && past + 1 == kernel, "causal_conv_step: a history of {past} inputs for a kernel of {kernel}");
    let inputs = Tensor::cat(vec![history, x], 0);
    let history = inputs.clone().narrow(0, tokens, past);
    let y = causal_conv(inputs, weight, bias, &Segments::packed(&[past + tokens]));
    (y.narrow(0, past, tokens), history)
}

#[cfg(all(test, feature = "cpu"))]
mod tests;
