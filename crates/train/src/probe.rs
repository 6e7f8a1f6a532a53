//! How long steps take on this machine: one batch of the run's own data through the lowest one and two blocks, forward
//! and backward. The difference is a block's cost and the rest is embedding, head and what goes with them, so a model of
//! any depth is measured in moments and without its weights being loaded.

use std::time::Instant;

use burn::tensor::{DType, Device};
use qwen_tune_data::Batch;
use qwen_tune_model::{BuildError, Decoder, Parameters, Pass, Training};
use qwen_tune_qwen::ModelDir;

use crate::backward::{Gradients, Staging, accumulate};
use crate::eval::batch_logps;
use crate::objective::Objective;
use crate::optimizer::{AdamW, OptimizerConfig};

/// A measurement about to be made.
pub struct Probe<'a> {
    /// The model; only its lowest two blocks, embedding and head are loaded.
    pub model: &'a ModelDir,
    /// What is trained.
    pub training: &'a Training,
    /// Where.
    pub device: &'a Device,
    /// Number format of frozen weights.
    pub dtype: DType,
    /// What is minimised.
    pub objective: &'a dyn Objective,
    /// A typical micro-batch.
    pub batch: &'a Batch,
    /// Whether adapters drop inputs.
    pub dropout: bool,
}

/// Seconds, as measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Blocks of the whole model.
    layers: f64,
    /// A token through a block, forward and backward, its activations kept.
    block: f64,
    /// The same, run again in the backward.
    block_again: f64,
    /// A token's share of everything but the blocks.
    rest: f64,
    /// A token through a block, forward only.
    eval_block: f64,
    /// A token's share of everything but the blocks in an evaluation.
    eval_rest: f64,
    /// The update of a trained number.
    update: f64,
}

impl Pace {
    /// Seconds of a step of this many tokens, with this many of the lowest blocks run again.
    #[must_use]
    pub fn step(&self, tokens: f64, recompute: usize, trained_parameters: f64) -> f64 {
        let again = recompute as f64;
        let blocks = (self.layers - again) * self.block + again * self.block_again;
        tokens * (blocks + self.rest) + trained_parameters * self.update
    }

    /// Seconds of an evaluation of this many tokens.
    #[must_use]
    pub fn eval(&self, tokens: f64) -> f64 {
        tokens * (self.layers * self.eval_block + self.eval_rest)
    }
}

/// Seconds of one depth.
#[derive(Clone, Copy)]
struct Seconds {
    kept: f64,
    again: f64,
    eval: f64,
    update: f64,
}

impl Probe<'_> {
    /// Measures.
    ///
    /// # Errors
    /// If the blocks cannot be loaded.
    pub fn run(&self) -> Result<Pace, BuildError> {
        let one = self.depth(1)?;
        let two = self.depth(2)?;
        let tokens = self.batch.ids.len().max(1) as f64;
        // Noise may make two blocks as fast as one; a block never takes less than nothing.
        let block = |of: fn(&Seconds) -> f64| ((of(&two) - of(&one)) / tokens).max(0.0);
        let rest = |of: fn(&Seconds) -> f64, block: f64| (of(&one) / tokens - block).max(0.0);
        let (kept, eval) = (block(|s| s.kept), block(|s| s.eval));
        Ok(Pace {
            layers: self.model.spec.layers.len() as f64,
            block: kept,
            block_again: block(|s| s.again),
            rest: rest(|s| s.kept, kept),
            eval_block: eval,
            eval_rest: rest(|s| s.eval, eval),
            update: two.update,
        })
    }

    fn depth(&self, layers: usize) -> Result<Seconds, BuildError> {
        let (decoder, mut parameters) =
            Decoder::load_lowest(self.model, layers, self.training, self.device, self.dtype)?;
        let step = |parameters: &Parameters, recompute: usize| {
            let mut gradients = Gradients::default();
            let staging = Staging { dropout: self.dropout.then_some(0), ..Staging::plain(recompute) };
            accumulate(&decoder, parameters, self.objective, self.batch, 1.0, staging, &mut gradients);
            gradients
        };
        let gradients = step(&parameters, 0);
        let mut optimizer = AdamW::new(OptimizerConfig::default(), &parameters);
        let numbers = parameters.elements().max(1) as f64;
        Ok(Seconds {
            kept: fastest(|| step(&parameters, 0).norm()),
            again: fastest(|| step(&parameters, layers).norm()),
            eval: fastest(|| batch_logps(&decoder, &Pass::plain(&parameters), self.batch, &self.batch.targets)),
            update: fastest(|| optimizer.step(&mut parameters, &gradients, 0.0)) / numbers,
        })
    }
}

/// Seconds of the fastest of some runs: what disturbs a measurement only ever slows it down.
fn fastest<T>(mut run: impl FnMut() -> T) -> f64 {
    const RUNS: u32 = 5;
    /// No more runs once this much time has gone by.
    const ENOUGH: f64 = 0.4;
    let begin = Instant::now();
    let mut best = f64::INFINITY;
    for _ in 0..RUNS {
        let started = Instant::now();
        drop(std::hint::black_box(run()));
        best = best.min(started.elapsed().as_secs_f64());
        if begin.elapsed().as_secs_f64() > ENOUGH {
            break;
        }
    }
    best
}
