//! AdamW over all trainable tensors, and clipping by their global norm.

use burn::tensor::Tensor;
use qwen_tune_kernels as kernels;
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

impl OptimizerConfig {
    /// What gradients of this norm are multiplied by, as torch's `clip_grad_norm_` does.
    #[must_use]
    pub fn clip(&self, norm: f64) -> f64 {
        if self.max_grad_norm > 0.0 && norm > self.max_grad_norm { self.max_grad_norm / (norm + 1e-6) } else { 1.0 }
    }
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

    /// One update of `parameters` with `gradients` times `clip`, all of them at once: [`kernels::adamw`]. A parameter
    /// without gradient is left alone.
    pub fn step(&mut self, parameters: &mut Parameters, gradients: &Gradients, clip: f64, learning_rate: f64) {
        self.steps += 1;
        let c = &self.config;
        let moments = self.first.iter_mut().zip(&mut self.second);
        let mut trained: Vec<kernels::Trained<'_>> = parameters
            .iter_mut()
            .zip(moments)
            .enumerate()
            .filter_map(|(slot, (parameter, (first, second)))| {
                let weight_decay = if parameter.decays { c.weight_decay } else { 0.0 };
                let (value, gradient) = (&mut parameter.value, gradients.get(slot)?);
                Some(kernels::Trained { value, gradient, first, second, weight_decay })
            })
            .collect();
        let OptimizerConfig { beta1, beta2, eps, .. } = *c;
        kernels::adamw(&mut trained, &kernels::AdamW { step: self.steps, learning_rate, beta1, beta2, eps, clip });
    }
}
