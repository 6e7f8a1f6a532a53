//! A step that changes nothing: what a run's largest batches take, seen before it begins instead of an hour later.

use qwen_tune_data::{Batch, Origin, Sample};
use qwen_tune_kernels as kernels;
use qwen_tune_model::{Decoder, Parameters, Pass, mix};

use crate::backward::{Gradients, Staging, accumulate};
use crate::eval::batch_logps;
use crate::objective::Objective;

/// The largest batches of a run, as lengths of their sequences.
#[derive(Debug, Clone, Default)]
pub struct Largest {
    /// Of a micro-batch.
    pub micro_batch: Vec<usize>,
    /// Whether it comes beside others of its step, whose gradients it may find.
    pub accumulates: bool,
    /// Of an evaluation; nothing without one.
    pub eval: Vec<usize>,
}

/// Runs the largest micro-batch, twice where the later ones of a step find the gradients of the first, and the largest batch
/// of an evaluation. Tokens are arbitrary and all of them are targets; nothing is kept.
pub fn rehearse(
    decoder: &Decoder,
    parameters: &Parameters,
    objective: &dyn Objective,
    staging: Staging,
    largest: &Largest,
) {
    let vocabulary = decoder.spec.vocab_size;
    let batch = made_up(&largest.micro_batch, vocabulary);
    if !batch.ids.is_empty() {
        let mut gradients = Gradients::default();
        for _ in 0..if largest.accumulates { 2 } else { 1 } {
            kernels::on_pool(|| accumulate(decoder, parameters, objective, &batch, 1.0, staging, &mut gradients));
        }
    }
    let batch = made_up(&largest.eval, vocabulary);
    if !batch.ids.is_empty() {
        let pass = Pass::plain(parameters).in_chunks(staging.ffn_chunk);
        drop(batch_logps(decoder, &pass, &batch, &batch.targets));
    }
}

/// Sequences of these lengths.
fn made_up(lengths: &[usize], vocabulary: usize) -> Batch {
    let samples: Vec<Sample> = lengths
        .iter()
        .enumerate()
        .map(|(row, &length)| {
            let id = |at: usize| (mix(mix(row as u64) ^ at as u64) % vocabulary as u64) as u32;
            let trained = (0..length).map(|at| at > 0).collect();
            Sample {
                ids: (0..length).map(id).collect(),
                trained,
                origin: Origin { source: 0, file: 0, row: row as u64 },
            }
        })
        .collect();
    let rows: Vec<Vec<&Sample>> = samples.iter().map(|sample| vec![sample]).collect();
    Batch::from_rows(&rows)
}
