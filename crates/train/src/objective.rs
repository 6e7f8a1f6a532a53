//! What is minimised, as a function of per-token log-probabilities and the batch, and of nothing else: the model, the
//! head and the staging know no objective.

use burn::tensor::{Tensor, TensorData};
use qwen_tune_data::Batch;

use crate::config::{ObjectiveConfig, ObjectiveKind};

/// A loss over log-probabilities `[tokens]` (zero where a token has no target).
pub trait Objective: Send + Sync {
    /// The loss summed over the batch, as one number `[1]` that autodiff can follow.
    fn loss(&self, logp: Tensor<1>, batch: &Batch) -> Tensor<1>;

    /// `w` where the loss is `-Σ w·logp` with w known before the forward, so that the head's value and gradient are one
    /// pass; `None` where w depends on the log-probabilities.
    fn fixed_weights(&self, batch: &Batch) -> Option<Vec<f32>>;
}

/// Negative log-likelihood of the trained tokens. Supervised fine-tuning and continued pre-training differ in which
/// tokens the data marks, not here.
#[derive(Debug, Clone, Copy, Default)]
pub struct Likelihood;

impl Objective for Likelihood {
    fn loss(&self, logp: Tensor<1>, batch: &Batch) -> Tensor<1> {
        let weights = trained(batch);
        let count = weights.len();
        let weights = Tensor::<1>::from_data(TensorData::new(weights, [count]), &logp.device().inner());
        (logp * weights).sum().neg()
    }

    fn fixed_weights(&self, batch: &Batch) -> Option<Vec<f32>> {
        Some(trained(batch))
    }
}

fn trained(batch: &Batch) -> Vec<f32> {
    batch.targets.iter().map(|&t| if t >= 0 { 1.0 } else { 0.0 }).collect()
}

/// The objective of a recipe; `None` where it is not there yet.
#[must_use]
pub fn objective(config: &ObjectiveConfig) -> Option<Box<dyn Objective>> {
    match config.kind {
        ObjectiveKind::Sft | ObjectiveKind::Cpt => Some(Box::new(Likelihood)),
        ObjectiveKind::Dpo
        | ObjectiveKind::Ipo
        | ObjectiveKind::Orpo
        | ObjectiveKind::Kto
        | ObjectiveKind::Simpo
        | ObjectiveKind::Distill => None,
    }
}
