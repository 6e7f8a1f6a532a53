//! The convolution in plain tensor operations: one shifted copy of the inputs a column of the weight.

use burn::Tensor;
use burn::tensor::DType;
use burn::tensor::activation::silu;

use crate::Segments;

/// [`crate::causal_conv`] in plain tensor operations.
pub fn causal_conv(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>, segments: &Segments) -> Tensor<2> {
    let [channels, kernel] = weight.dims();
    let device = x.device().without_autodiff();
    let dtype = x.dtype();
    let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let (x, weight) = (x.cast(wide), weight.cast(wide));
    let sequences: Vec<Tensor<2>> = segments
        .iter()
        .map(|(start, len)| {
            let terms = (0..kernel.min(len)).map(|lag| {
                let column = weight.clone().narrow(1, kernel - 1 - lag, 1).swap_dims(0, 1);
                let term = x.clone().narrow(0, start, len - lag) * column;
                Tensor::cat(vec![Tensor::zeros([lag, channels], (&device, wide)), term], 0)
            });
            terms.reduce(|sum, term| sum + term).expect("invariant: a segment with tokens, a kernel with columns")
        })
        .collect();
    if sequences.is_empty() {
        return x.cast(dtype);
    }
    let sum = Tensor::cat(sequences, 0);
    let sum = match bias {
        Some(bias) => sum + bias.cast(wide).unsqueeze(),
        None => sum,
    };
    silu(sum).cast(dtype)
}
