//! AdamW over all trainable tensors, and clipping by their global norm.

use burn::tensor::Tensor;
use qwen_tune_model::Parameters;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::backward::Gradients;

/// How gradients become updates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// `adamw`.
    pub kind: OptimizerKind,
    /// Highest learning rate; `[schedule]` shapes it. LoRA takes about ten times that of full fine-tuning.
    pub learning_rate: f64,
    /// Decoupled weight decay of matrices; norms and biases are left alone.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Gradients are scaled down to this global norm; 0 never clips.
    pub max_grad_norm: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            kind: OptimizerKind::AdamW,
            learning_rate: 2e-4,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            max_grad_norm: 1.0,
        }
    }
}

/// Optimizers by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101), as torch computes it.
    #[default]
    AdamW,
}

/// First and second moments of every trainable tensor, f32, in the order of [`Parameters`].
#[derive(Debug, Clone)]
pub struct AdamW {
    config: OptimizerConfig,
    /// Updates made so far.
    pub steps: u64,
    /// Exponential mean of gradients; flat.
    pub first: Vec<Tensor<1>>,
    /// Exponential mean of squared gradients; flat.
    pub second: Vec<Tensor<1>>,
}

impl AdamW {
    /// Moments at zero.
    #[must_use]
    pub fn new(config: OptimizerConfig, parameters: &Parameters) -> Self {
        let zeros = || parameters.iter().map(|p| p.value.zeros_like()).collect::<Vec<_>>();
        Self { config, steps: 0, first: zeros(), second: zeros() }
    }

    /// One update of `parameters` with `gradients` already clipped:
    /// `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g²`, `p = p (1 - lr wd) - lr / (1 - b1^t) m / (√v / √(1 - b2^t) + eps)`.
    /// A parameter without gradient is left alone.
    pub fn step(&mut self, parameters: &mut Parameters, gradients: &Gradients, learning_rate: f64) {
        self.steps += 1;
        let c = &self.config;
        let correction1 = 1.0 - c.beta1.powi(self.steps as i32);
        let correction2 = (1.0 - c.beta2.powi(self.steps as i32)).sqrt();
        for (index, parameter) in parameters.iter_mut().enumerate() {
            let Some(g) = gradients.get(index) else { continue };
            let take = |slot: &mut Tensor<1>| std::mem::replace(slot, Tensor::empty([0], &g.device()));
            let m = take(&mut self.first[index]).mul_scalar(c.beta1) + g.clone().mul_scalar(1.0 - c.beta1);
            let v =
                take(&mut self.second[index]).mul_scalar(c.beta2) + (g.clone() * g.clone()).mul_scalar(1.0 - c.beta2);
            let denominator = v.clone().sqrt().div_scalar(correction2).add_scalar(c.eps);
            let decay = if parameter.decays { 1.0 - learning_rate * c.weight_decay } else { 1.0 };
            let value = take(&mut parameter.value).mul_scalar(decay);
            parameter.value = value - (m.clone() / denominator).mul_scalar(learning_rate / correction1);
            self.first[index] = m;
            self.second[index] = v;
        }
    }
}
