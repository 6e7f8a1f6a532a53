//! The update in plain tensor operations.

use burn::Tensor;

use super::{AdamW, Trained};

/// [`crate::adamw`] in plain tensor operations.
pub fn adamw(trained: &mut [Trained<'_>], rule: &AdamW) {
    for Trained { value, gradient, first, second, weight_decay } in trained {
        let g = gradient.clone().mul_scalar(rule.clip);
        let m = taken(first).mul_scalar(rule.beta1) + g.clone().mul_scalar(1.0 - rule.beta1);
        let v = taken(second).mul_scalar(rule.beta2) + (g.clone() * g).mul_scalar(1.0 - rule.beta2);
        let denominator = v.clone().sqrt().div_scalar(rule.root_correction()).add_scalar(rule.eps);
        let step = (m.clone() / denominator).mul_scalar(rule.step_size());
        **value = taken(value).mul_scalar(rule.kept(*weight_decay)) - step;
        (**first, **second) = (m, v);
    }
}

/// The tensor itself, so that an operation may reuse its memory.
pub(crate) fn taken(slot: &mut Tensor<1>) -> Tensor<1> {
    let empty = Tensor::empty([0], &slot.device());
    std::mem::replace(slot, empty)
}

/// [`crate::global_norm`] in plain tensor operations.
#[must_use]
pub fn global_norm(gradients: &[&Tensor<1>]) -> f64 {
    // What Burn makes of the sum of nothing on a GPU is not 0.
    let full = gradients.iter().filter(|g| g.dims()[0] > 0);
    let sums: Vec<Tensor<1>> = full.map(|&g| (g.clone() * g.clone()).sum()).collect();
    if sums.is_empty() {
        return 0.0;
    }
    let sums = Tensor::cat(sums, 0).into_data().convert::<f32>().try_to_vec::<f32>();
    let sums = sums.expect("invariant: converted to f32");
    sums.into_iter().map(f64::from).sum::<f64>().sqrt()
}
