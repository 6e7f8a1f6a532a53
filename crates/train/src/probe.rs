//! How long steps take on this machine: one batch of the run's own data through one block, and through that and one of
//! each kind that the model has, forward and backward. The differences are the blocks' costs and the rest is embedding,
//! head and what goes with them, so a model of any depth is measured in moments and without its weights being loaded.

use std::time::Instant;

use burn::tensor::Device;
use qwen_tune_data::Batch;
use qwen_tune_kernels as kernels;
use qwen_tune_model::{BuildError, Decoder, ModelPart, Parameters, Pass, Storage, Training};
use qwen_tune_qwen::{DecoderSpec, ModelDir};

use crate::backward::{Gradients, Staging, accumulate};
use crate::eval::batch_logps;
use crate::objective::Objective;
use crate::optimizer::{AdamW, OptimizerConfig};

/// A measurement about to be made.
pub struct Probe<'a> {
    /// The model; only one block of each kind, embedding and head are loaded.
    pub model: &'a ModelDir,
    /// What is trained.
    pub training: &'a Training,
    /// Where.
    pub device: &'a Device,
    /// How frozen weights are held.
    pub storage: Storage,
    /// What is minimised.
    pub objective: &'a dyn Objective,
    /// A typical micro-batch.
    pub batch: &'a Batch,
    /// Whether adapters drop inputs.
    pub dropout: bool,
    /// Tokens that go through the feed-forward part of blocks that run again together.
    pub ffn_chunk: Option<usize>,
    /// Whether inputs of blocks that run again wait in host memory.
    pub inputs_on_host: bool,
    /// How updates are made.
    pub optimizer: &'a OptimizerConfig,
}

/// Seconds of a token, as measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Pace {
    /// In each block, bottom first.
    blocks: Vec<BlockPace>,
    /// In everything but the blocks.
    rest: f64,
    /// In everything but the blocks in an evaluation.
    eval_rest: f64,
    /// Of the update of a trained number, which is no token's.
    update: f64,
}

/// Seconds of a token in a block.
#[derive(Debug, Clone, Copy, PartialEq)]
struct BlockPace {
    /// Forward and backward, its activations kept.
    kept: f64,
    /// The same, run again in the backward.
    again: f64,
    /// Forward only.
    eval: f64,
}

impl Pace {
    /// Seconds of a step of this many tokens, with this many of the lowest blocks run again.
    #[must_use]
    pub fn step(&self, tokens: f64, recompute: usize, trained_parameters: f64) -> f64 {
        let blocks = self.blocks.iter().enumerate();
        let blocks: f64 = blocks.map(|(index, block)| if index < recompute { block.again } else { block.kept }).sum();
        tokens * (blocks + self.rest) + trained_parameters * self.update
    }

    /// Seconds of an evaluation of this many tokens.
    #[must_use]
    pub fn eval(&self, tokens: f64) -> f64 {
        tokens * (self.blocks.iter().map(|block| block.eval).sum::<f64>() + self.eval_rest)
    }
}

/// Blocks that cost the same.
#[derive(Debug, PartialEq)]
struct Kind {
    /// Their indices.
    layers: Vec<usize>,
    /// They lie below everything trained, so that no gradient flows through them.
    below: bool,
}

/// The blocks by kind: alike, trained or not, and above or below the lowest trained one, whose index comes with them.
fn kinds(spec: &DecoderSpec, training: &Training) -> (Vec<Kind>, usize) {
    let layers = spec.layers.len();
    let names: Box<dyn Iterator<Item = &str>> = match training {
        Training::Nothing => Box::new(std::iter::empty()),
        Training::Lora(plan) => Box::new(plan.modules.keys().chain(plan.whole.keys()).map(String::as_str)),
        Training::Full(plan) => Box::new(plan.tensors.iter().map(String::as_str)),
    };
    let mut trained = vec![false; layers];
    let mut lowest = layers;
    for name in names {
        let layer = name.strip_prefix("layers.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
        match layer {
            Some(layer) if layer < layers => trained[layer] = true,
            _ if name.starts_with("embed_tokens.") => lowest = 0,
            _ => {}
        }
    }
    lowest = lowest.min(trained.iter().position(|trained| *trained).unwrap_or(layers));
    let mut kinds = Vec::new();
    for alike in spec.alike() {
        for state in [(true, false), (false, false), (false, true)] {
            let own = |layer: &usize| (*layer < lowest, trained[*layer]) == state;
            let layers: Vec<usize> = alike.iter().copied().filter(own).collect();
            if !layers.is_empty() {
                kinds.push(Kind { layers, below: state.0 });
            }
        }
    }
    (kinds, lowest)
}

/// Seconds of some blocks between embedding and head.
#[derive(Clone, Copy)]
struct Seconds {
    kept: f64,
    again: f64,
    eval: f64,
}

impl Probe<'_> {
    /// Measures.
    ///
    /// # Errors
    /// If the blocks cannot be loaded.
    pub fn run(&self) -> Result<Pace, BuildError> {
        let (kinds, lowest) = kinds(&self.model.spec, self.training);
        let layers = self.model.spec.layers.len();
        // The one that each is measured together with, so that the difference is that of a block among others.
        let foot = lowest.min(layers.saturating_sub(1));
        let mut blocks: Vec<usize> = kinds.iter().map(|kind| kind.layers[0]).chain([foot]).collect();
        blocks.sort_unstable();
        blocks.dedup();
        let place = |layer: usize| blocks.binary_search(&layer).expect("invariant: it was put in");
        let part = ModelPart { blocks: blocks.clone(), vocabulary: None };
        let (decoder, mut parameters) =
            Decoder::load_part(self.model, &part, self.training, self.device, self.storage)?;
        let tokens = self.batch.ids.len().max(1) as f64;
        let one = self.seconds(&decoder.with_blocks(&[place(foot)]), &parameters);
        let mut measured = vec![BlockPace { kept: 0.0, again: 0.0, eval: 0.0 }; layers];
        for kind in &kinds {
            let (foot, block) = (place(foot), place(kind.layers[0]));
            let order = if kind.below { [block, foot] } else { [foot, block] };
            let two = self.seconds(&decoder.with_blocks(&order), &parameters);
            // Noise may make two blocks as fast as one; a block never takes less than nothing.
            let block = |of: fn(&Seconds) -> f64| ((of(&two) - of(&one)) / tokens).max(0.0);
            let pace = BlockPace { kept: block(|s| s.kept), again: block(|s| s.again), eval: block(|s| s.eval) };
            kind.layers.iter().for_each(|&layer| measured[layer] = pace);
        }
        let of_foot = measured.get(foot).copied();
        let rest = |all: f64, block: fn(BlockPace) -> f64| (all / tokens - of_foot.map_or(0.0, block)).max(0.0);
        Ok(Pace {
            rest: rest(one.kept, |block| block.kept),
            eval_rest: rest(one.eval, |block| block.eval),
            blocks: measured,
            update: self.update(&decoder, &mut parameters),
        })
    }

    fn gradients(&self, decoder: &Decoder, parameters: &Parameters, recompute: usize) -> Gradients {
        let mut gradients = Gradients::default();
        let dropout = self.dropout.then_some(0);
        let Self { ffn_chunk, inputs_on_host, .. } = *self;
        let staging = Staging { dropout, ffn_chunk, inputs_on_host, ..Staging::plain(recompute) };
        kernels::on_pool(|| {
            accumulate(decoder, parameters, self.objective, self.batch, 1.0, staging, &mut gradients);
        });
        gradients
    }

    fn seconds(&self, decoder: &Decoder, parameters: &Parameters) -> Seconds {
        let pass = Pass::plain(parameters).in_chunks(self.ffn_chunk);
        Seconds {
            kept: fastest(|| self.gradients(decoder, parameters, 0).norm()),
            again: fastest(|| self.gradients(decoder, parameters, usize::MAX).norm()),
            eval: fastest(|| batch_logps(decoder, &pass, self.batch, &self.batch.targets)),
        }
    }

    /// Seconds of the update of one trained number.
    fn update(&self, decoder: &Decoder, parameters: &mut Parameters) -> f64 {
        let gradients = self.gradients(decoder, parameters, 0);
        let mut optimizer = AdamW::new(self.optimizer.clone(), parameters);
        let numbers = parameters.elements().max(1) as f64;
        fastest(|| optimizer.step(parameters, &gradients, 1.0, 0.0)) / numbers
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

#[cfg(test)]
mod tests;
