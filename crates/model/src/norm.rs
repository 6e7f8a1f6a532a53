//! Root-mean-square norm.

use burn::tensor::Tensor;
use qwen_tune_kernels::Input;
use qwen_tune_qwen::spec::NormSpec;

use crate::parameters::{Pass, Weight};

/// `w ⊙ x / √(mean(x²) + eps)`, or with `1 + w` where the family stores offsets.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    /// `[width]`.
    pub weight: Weight<1>,
    /// Epsilon and form.
    pub spec: NormSpec,
}

impl RmsNorm {
    /// Whether its weight is trained.
    #[must_use]
    pub fn is_trained(&self) -> bool {
        self.weight.is_trained()
    }

    /// Over the last axis; shape unchanged.
    #[must_use]
    pub fn forward<const D: usize>(&self, x: Tensor<D>, pass: &Pass<'_>) -> Input<D> {
        Input::rms_norm(x, pass.get(&self.weight), self.spec.eps, self.spec.zero_centred)
    }
}
