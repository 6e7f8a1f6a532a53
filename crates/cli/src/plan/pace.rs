//! How long a run will take, from a batch of its own data measured on its device.

use std::sync::Arc;

use qwen_tune_data::{Cursor, StepSize, Stream};
use qwen_tune_qwen::memory::Offload;
use qwen_tune_train::{Pace, Probe, objective};

use super::{Plan, batches, data_fault};
use crate::diagnostic::{Diagnostic, Diagnostics};

/// Operations that a measurement may take, about a second's work of a CPU.
const PROBE_FLOPS: f64 = 1e11;
/// Tokens of the measured batch, at least and at most.
const PROBE_TOKENS: (f64, f64) = (64.0, 2048.0);

/// An estimate of time.
#[derive(Debug, Clone, Copy)]
pub struct Estimate {
    /// Seconds of an average step.
    pub step: f64,
    /// Seconds of an evaluation, 0 without one.
    pub eval: f64,
    /// Seconds of all steps and evaluations.
    pub total: f64,
    /// Tokens in a second, evaluations left out.
    pub tokens_per_second: f64,
    /// Tokens of the measured batch.
    pub measured_tokens: usize,
}

impl Plan {
    /// Measures and reckons; `None` where the model does not fit into memory.
    ///
    /// # Errors
    /// If data or weights cannot be read.
    pub fn estimate(&self) -> Result<Option<Estimate>, Diagnostics> {
        if self.cost.memory.budget.is_some_and(|most| self.cost.memory.total() > most) {
            return Ok(None);
        }
        let layers = self.model.spec.layers.len().max(1) as f64;
        let of_two_blocks = self.cost.flops.total() * 2.0 / layers;
        let tokens = (PROBE_FLOPS / of_two_blocks).clamp(PROBE_TOKENS.0, PROBE_TOKENS.1);
        let size = StepSize::Tokens((tokens as usize).min(self.cost.worst_tokens));
        let batches = batches(&self.recipe, size, usize::MAX);
        let mut steps = Stream::start(Arc::new(self.data.clone()), batches, Cursor::default())
            .map_err(|e| Diagnostics::from(data_fault(&e)))?;
        let step =
            steps.next().expect("invariant: a stream has no end").map_err(|e| Diagnostics::from(data_fault(&e)))?;
        drop(steps);
        let Some(batch) = step.micro_batches.first() else { return Ok(None) };
        let objective =
            objective(&self.recipe.objective).expect("invariant: the rules refuse objectives not there yet");
        let probe = Probe {
            model: &self.model,
            training: &self.trained.training,
            device: &self.device.device,
            storage: self.storage(),
            objective: objective.as_ref(),
            batch,
            dropout: self.trained.dropout,
            ffn_chunk: self.ffn_chunk,
            inputs_on_host: self.device.moved(self.offload) >= Offload::Inputs,
            optimizer: &self.recipe.optimizer,
        };
        let pace = probe.run().map_err(|e| Diagnostics::from(Diagnostic::failure_from("load", &e)))?;
        Ok(Some(self.reckon(&pace, batch.ids.len())))
    }

    fn reckon(&self, pace: &Pace, measured_tokens: usize) -> Estimate {
        let trained = self.cost.learned.numbers(&self.model.inventory) as f64;
        // Copies on the CPU share its cores.
        let at_a_time = if self.device.on_host { 1 } else { self.device.count() };
        let step = pace.step(self.cost.step_tokens / at_a_time as f64, self.recompute, trained);
        let eval = pace.eval(self.cost.eval_tokens);
        let evals = match (&self.recipe.eval, self.cost.eval_tokens > 0.0) {
            (Some(config), true) => 2 + config.every.map_or(0, |every| (self.total_steps - 1) / every.max(1)),
            _ => 0,
        };
        Estimate {
            step,
            eval,
            total: self.total_steps as f64 * step + evals as f64 * eval,
            tokens_per_second: self.cost.step_tokens / step,
            measured_tokens,
        }
    }
}
