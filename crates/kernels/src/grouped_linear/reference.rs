//! The grouped linear map in plain tensor operations.

use burn::Tensor;

use super::Groups;
use crate::blocks::times_transposed;
use crate::{Adapter, Weight};

/// [`crate::grouped_linear`] in plain tensor operations: a product a group.
pub fn grouped_linear(
    x: &Tensor<2>,
    weight: impl Into<Weight<3>>,
    groups: &Groups,
    adapter: Option<&Adapter<3>>,
) -> Tensor<2> {
    let y = products(x, &weight.into(), groups);
    let Some(Adapter { a, b, scale, dropout }) = adapter else { return y };
    let dtype = x.dtype();
    let dropped = match dropout {
        Some(dropout) => x.clone() * dropout.mask(x.dims(), &x.device().without_autodiff()).cast(dtype),
        None => x.clone(),
    };
    let low = products(&dropped, &a.clone().cast(dtype).into(), groups);
    y + products(&low, &b.clone().cast(dtype).into(), groups) * *scale
}

fn products(x: &Tensor<2>, weight: &Weight<3>, groups: &Groups) -> Tensor<2> {
    let [_, outputs, inputs] = weight.dims();
    let parts: Vec<Tensor<2>> = groups
        .iter()
        .map(|(group, rows)| {
            let rows = x.clone().narrow(0, rows.start, rows.len());
            match weight {
                Weight::Dense(weight) => {
                    let weight: Tensor<2> = weight.clone().narrow(0, group, 1).reshape([outputs, inputs]);
                    rows.matmul(weight.transpose())
                }
                Weight::Blocks(blocks) => times_transposed(&rows, &blocks.matrix(group)),
            }
        })
        .collect();
    if parts.is_empty() { Tensor::zeros([0, outputs], &x.device()) } else { Tensor::cat(parts, 0) }
}
