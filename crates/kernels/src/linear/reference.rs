//! The linear map in plain tensor operations.

use burn::Tensor;

use super::Adapter;
use crate::Weight;
use crate::blocks::times_transposed;

/// [`crate::linear`] in plain tensor operations.
pub fn linear(
    x: Tensor<2>,
    weight: impl Into<Weight<2>>,
    bias: Option<Tensor<1>>,
    adapter: Option<Adapter>,
) -> Tensor<2> {
    let dtype = x.dtype();
    let mut y = match weight.into() {
        Weight::Dense(weight) => x.clone().matmul(weight.cast(dtype).transpose()),
        Weight::Blocks(blocks) => times_transposed(&x, &blocks),
    };
    if let Some(bias) = bias {
        y = y + bias.cast(dtype).unsqueeze();
    }
    let Some(Adapter { a, b, scale, dropout }) = adapter else { return y };
    let dropped = match dropout {
        Some(dropout) => {
            let mask = dropout.mask(x.dims(), &x.device().without_autodiff()).cast(dtype);
            x * mask
        }
        None => x,
    };
    let low = dropped.matmul(a.cast(dtype).transpose());
    y + low.matmul(b.cast(dtype).transpose()) * scale
}
