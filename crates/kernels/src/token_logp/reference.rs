//! The chunked head in plain tensor operations.

use burn::Tensor;
use burn::tensor::{Bool, DType, Device, IndexingUpdateOp, Int, TensorData};

use super::{HeadLoss, chunk_tokens, trained_rows};

/// [`crate::token_logp`] in plain tensor operations; a tape keeps the logits of every chunk.
#[expect(clippy::needless_pass_by_value, reason = "the signature of the public function")]
pub fn token_logp(h: Tensor<2>, head: Tensor<2>, targets: &[i32]) -> Tensor<1> {
    let (tokens, device, wide) = (h.dims()[0], h.device(), wide(h.dtype()));
    let (rows, targets) = trained_rows(targets);
    if rows.is_empty() {
        // Zeros that still hang on the tape of `h`: a caller may run its backward pass without looking.
        let everywhere = Tensor::<2, Bool>::full([tokens, 1], true, &device);
        return h.narrow(1, 0, 1).mask_fill(everywhere, 0.0).squeeze_dim(1).cast(wide);
    }
    let chunk = chunk_tokens(rows.len(), head.dims()[0], &device);
    let mut logp = Tensor::<1>::zeros([tokens], (&device, wide));
    for (rows, targets) in rows.chunks(chunk).zip(targets.chunks(chunk)) {
        let rows = indices(rows, &device);
        let logits_CV = h.clone().select(0, rows.clone()).matmul(head.clone().transpose()).cast(wide);
        let (picked, lse) = picked_and_lse(logits_CV, indices(targets, &device));
        logp = logp.select_assign(0, rows, (picked - lse).squeeze_dim(1), IndexingUpdateOp::Add);
    }
    logp
}

/// [`crate::head_loss`] in plain tensor operations; `wants_head` asks for the gradient of the head.
pub fn head_loss(h: Tensor<2>, head: Tensor<2>, targets: &[i32], weights: &[f32], wants_head: bool) -> HeadLoss {
    let weights = TensorData::new(weights.to_vec(), [weights.len()]);
    let weights = Tensor::from_data(weights, (&h.device(), wide(h.dtype())));
    weighted(h, head, targets, weights, wants_head)
}

/// [`head_loss`] with the weights on the device.
#[expect(clippy::needless_pass_by_value, reason = "the signature of its public relatives")]
pub(super) fn weighted(
    h: Tensor<2>,
    head: Tensor<2>,
    targets: &[i32],
    weights: Tensor<1>,
    wants_head: bool,
) -> HeadLoss {
    let (dtype, device, wide) = (h.dtype(), h.device(), wide(h.dtype()));
    let [tokens, _] = h.dims();
    let (rows, targets) = trained_rows(targets);
    let chunk = chunk_tokens(rows.len(), head.dims()[0], &device);
    let mut logp = Tensor::<1>::zeros([tokens], (&device, wide));
    let mut dh = h.zeros_like();
    let mut dhead = wants_head.then(|| head.zeros_like());
    for (rows, targets) in rows.chunks(chunk).zip(targets.chunks(chunk)) {
        let (rows, targets) = (indices(rows, &device), indices(targets, &device));
        let weights = weights.clone().select(0, rows.clone()).unsqueeze_dim::<2>(1);
        let h_CD = h.clone().select(0, rows.clone());
        let logits_CV = h_CD.clone().matmul(head.clone().transpose()).cast(wide);
        let (picked, lse) = picked_and_lse(logits_CV.clone(), targets.clone());
        logp = logp.select_assign(0, rows.clone(), (picked - lse.clone()).squeeze_dim(1), IndexingUpdateOp::Add);
        let dlogits_CV = ((logits_CV - lse).exp() * weights.clone())
            .scatter(1, targets.unsqueeze_dim(1), weights.neg(), IndexingUpdateOp::Add)
            .cast(dtype);
        dh = dh.select_assign(0, rows, dlogits_CV.clone().matmul(head.clone()), IndexingUpdateOp::Add);
        dhead = dhead.map(|dhead| dhead + dlogits_CV.transpose().matmul(h_CD));
    }
    HeadLoss { logp, dh, dhead }
}

/// The target's logit and the log-sum-exp of each row, both `[C, 1]`.
fn picked_and_lse(logits_CV: Tensor<2>, targets: Tensor<1, Int>) -> (Tensor<2>, Tensor<2>) {
    let picked = logits_CV.clone().gather(1, targets.unsqueeze_dim(1));
    let max = logits_CV.clone().max_dim(1).detach();
    let lse = (logits_CV - max.clone()).exp().sum_dim(1).log() + max;
    (picked, lse)
}

fn indices(values: &[usize], device: &Device) -> Tensor<1, Int> {
    let values: Vec<i32> = values.iter().map(|&value| value as i32).collect();
    let len = values.len();
    Tensor::from_data(TensorData::new(values, [len]), device)
}

/// The dtype of logits and sums.
fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}
