//! Attention in plain tensor operations: one block of scores per segment.

use burn::Tensor;
use burn::tensor::activation::softmax;
use burn::tensor::{Bool, DType, Device, Int};

use crate::Segments;

/// Score of a masked pair. Finite, so that a row never holds infinities only; no real score comes near it.
const MASKED: f32 = -1e30;

/// [`crate::attention`] in plain tensor operations.
#[expect(clippy::needless_pass_by_value, reason = "the signature of the public function")]
pub fn attention(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    segments: &Segments,
    scale: f32,
    window: Option<usize>,
) -> Tensor<3> {
    let (dtype, group) = (q.dtype(), q.dims()[1] / k.dims()[1]);
    let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let device = q.device().without_autodiff();
    let blocks: Vec<Tensor<3>> = segments
        .iter()
        .map(|(start, len)| {
            let q_NLd = q.clone().narrow(0, start, len).swap_dims(0, 1);
            let k_NLd = repeat_heads(k.clone().narrow(0, start, len).swap_dims(0, 1), group);
            let v_NLd = repeat_heads(v.clone().narrow(0, start, len).swap_dims(0, 1), group);
            let scores_NLL = q_NLd.matmul(k_NLd.swap_dims(1, 2)).cast(wide) * scale;
            let mask = hidden(len, window, &device).unsqueeze::<3>().expand(scores_NLL.dims());
            let weights_NLL = softmax(scores_NLL.mask_fill(mask, MASKED), 2).cast(dtype);
            weights_NLL.matmul(v_NLd).swap_dims(0, 1)
        })
        .collect();
    if blocks.is_empty() { q } else { Tensor::cat(blocks, 0) }
}

/// `[K, L, d]` to `[K·group, L, d]`, each head `group` times in a row.
pub(crate) fn repeat_heads(heads: Tensor<3>, group: usize) -> Tensor<3> {
    if group == 1 {
        return heads;
    }
    let [kv_heads, len, size] = heads.dims();
    heads.unsqueeze_dim::<4>(1).expand([kv_heads, group, len, size]).reshape([kv_heads * group, len, size])
}

/// True where row `i` may not see column `j`.
fn hidden(len: usize, window: Option<usize>, device: &Device) -> Tensor<2, Bool> {
    let positions = Tensor::<1, Int>::arange(0..len as i64, device);
    let distance = positions.clone().unsqueeze_dim::<2>(1) - positions.unsqueeze_dim::<2>(0);
    let future = distance.clone().lower_scalar(0);
    match window {
        Some(window) if window < len => future.bool_or(distance.greater_equal_scalar(window as i64)),
        _ => future,
    }
}
