//! How near another form of a model comes to the model itself: what a quantised file changes, in nats.
//!
//! The two models never live at the same time. Of the first the hidden states at the compared positions and the head stay;
//! the second one's logits are then compared row by row, in f64 on the host, chunk by chunk.

use burn::tensor::Tensor;
use qwen_tune_data::Batch;
use qwen_tune_kernels::{Weight, chunk_tokens, linear};
use qwen_tune_model::{Decoder, Pass};
use rayon::prelude::*;
use serde::Serialize;

/// A model's answers at the trained targets of some batches.
pub struct Reference {
    batches: Vec<Batch>,
    /// By batch, hidden states `[targets, hidden]` after the final norm.
    hidden: Vec<Tensor<2>>,
    head: Weight<2>,
}

/// Another model compared with a [`Reference`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fidelity {
    /// Targets compared.
    pub tokens: usize,
    /// `Σ p (ln p - ln q)` over the whole vocabulary, its mean over the targets, in nats; p is the reference.
    pub mean_kl: f64,
    /// The largest of them.
    pub max_kl: f64,
    /// Largest difference of a target's log-probability, in nats.
    pub max_logprob_difference: f64,
    /// Share of targets at which both find the same token most probable.
    pub top1_agreement: f64,
    /// `exp` of the mean negative log-probability of the targets, by the reference.
    pub reference_perplexity: f64,
    /// The same by the other model.
    pub perplexity: f64,
}

/// Sums over targets.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    tokens: usize,
    kl: f64,
    max_kl: f64,
    max_difference: f64,
    agreed: usize,
    reference_nats: f64,
    nats: f64,
}

impl Reference {
    /// Runs the model over the batches.
    #[must_use]
    pub fn of(decoder: &Decoder, pass: &Pass<'_>, batches: Vec<Batch>) -> Self {
        let hidden = batches.iter().map(|batch| at_targets(decoder, pass, batch)).collect();
        Self { batches, hidden, head: pass.matrix(decoder.head()) }
    }

    /// The batches that it was asked about.
    #[must_use]
    pub fn into_batches(self) -> Vec<Batch> {
        self.batches
    }

    /// Targets there are.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.batches.iter().map(|batch| batch.trained).sum()
    }

    /// Compares another model of the same vocabulary.
    #[must_use]
    pub fn compare(&self, decoder: &Decoder, pass: &Pass<'_>) -> Fidelity {
        let head = pass.matrix(decoder.head());
        let [vocab, _] = self.head.dims();
        assert_eq!(vocab, head.dims()[0], "invariant: both models have one vocabulary");
        let mut sums = Sums::default();
        for (batch, reference) in self.batches.iter().zip(&self.hidden) {
            let hidden = at_targets(decoder, pass, batch);
            let targets: Vec<usize> =
                batch.targets.iter().filter(|&&target| target >= 0).map(|&target| target as usize).collect();
            let rows = chunk_tokens(targets.len(), vocab, decoder.device());
            for start in (0..targets.len()).step_by(rows) {
                let count = rows.min(targets.len() - start);
                let logits = |hidden: &Tensor<2>, head: &Weight<2>| -> Vec<f32> {
                    let part = hidden.clone().narrow(0, start, count);
                    let logits = linear(part, head.clone(), None, None);
                    logits.into_data().convert::<f32>().try_to_vec().expect("invariant: converted to f32")
                };
                let (p, q) = (logits(reference, &self.head), logits(&hidden, &head));
                let parts: Vec<Sums> = p
                    .par_chunks_exact(vocab)
                    .zip(q.par_chunks_exact(vocab))
                    .zip(&targets[start..start + count])
                    .map(|((p, q), &target)| compare_row(p, q, target))
                    .collect();
                parts.iter().for_each(|part| sums.add(part));
            }
        }
        sums.result()
    }
}

/// Hidden states `[targets, hidden]` at the positions that have a target.
fn at_targets(decoder: &Decoder, pass: &Pass<'_>, batch: &Batch) -> Tensor<2> {
    let sequences: Vec<(usize, usize)> = batch.sequences.iter().map(|s| (s.start, s.len)).collect();
    let context = decoder.context(&sequences, &batch.positions);
    let hidden = decoder.hidden(&batch.ids, &context, pass);
    let at: Vec<i32> = (0_i32..).zip(&batch.targets).filter(|(_, target)| **target >= 0).map(|(i, _)| i).collect();
    let count = at.len();
    let index = Tensor::<1, burn::tensor::Int>::from_data(
        burn::tensor::TensorData::new(at, [count]),
        &hidden.device().without_autodiff(),
    );
    hidden.select(0, index)
}

/// One target: two rows of logits.
fn compare_row(p: &[f32], q: &[f32], target: usize) -> Sums {
    let (p_norm, q_norm) = (log_sum_exp(p), log_sum_exp(q));
    let kl: f64 = p
        .iter()
        .zip(q)
        .map(|(&p, &q)| {
            let (log_p, log_q) = (f64::from(p) - p_norm, f64::from(q) - q_norm);
            log_p.exp() * (log_p - log_q)
        })
        .sum();
    // A divergence is never negative; rounding may say so of equal rows.
    let kl = if kl < 0.0 { 0.0 } else { kl };
    let (reference, other) = (f64::from(p[target]) - p_norm, f64::from(q[target]) - q_norm);
    Sums {
        tokens: 1,
        kl,
        max_kl: kl,
        max_difference: (reference - other).abs(),
        agreed: usize::from(largest(p) == largest(q)),
        reference_nats: -reference,
        nats: -other,
    }
}

fn log_sum_exp(row: &[f32]) -> f64 {
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    f64::from(top) + row.iter().map(|&x| f64::from(x - top).exp()).sum::<f64>().ln()
}

fn largest(row: &[f32]) -> usize {
    row.iter().enumerate().fold(0, |best, (index, value)| if *value > row[best] { index } else { best })
}

impl Sums {
    fn add(&mut self, other: &Self) {
        self.tokens += other.tokens;
        self.kl += other.kl;
        self.max_kl = worse(self.max_kl, other.max_kl);
        self.max_difference = worse(self.max_difference, other.max_difference);
        self.agreed += other.agreed;
        self.reference_nats += other.reference_nats;
        self.nats += other.nats;
    }

    fn result(&self) -> Fidelity {
        let tokens = self.tokens.max(1) as f64;
        Fidelity {
            tokens: self.tokens,
            mean_kl: self.kl / tokens,
            max_kl: self.max_kl,
            max_logprob_difference: self.max_difference,
            top1_agreement: self.agreed as f64 / tokens,
            reference_perplexity: (self.reference_nats / tokens).exp(),
            perplexity: (self.nats / tokens).exp(),
        }
    }
}

/// The larger one; what is no number is worse than any.
fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_rows_do_not_differ() {
        let row = [0.5, -1.0, 2.0];
        let sums = compare_row(&row, &row, 1);
        assert_eq!((sums.kl, sums.max_difference, sums.agreed), (0.0, 0.0, 1));
        let norm = (0.5f64.exp() + (-1f64).exp() + 2f64.exp()).ln();
        assert!((sums.nats - (norm + 1.0)).abs() < 1e-12);
    }

    #[test]
    fn a_shift_of_all_logits_changes_nothing() {
        let sums = compare_row(&[1.0, 2.0], &[3.0, 4.0], 0);
        assert!(sums.kl < 1e-12 && sums.max_difference < 1e-12);
    }

    #[test]
    fn the_divergence_is_that_of_the_formula() {
        // p = (1/2, 1/2), q = (1/4, 3/4): ln 2 - (ln 3) / 2.
        let sums = compare_row(&[0.0, 0.0], &[0.0, 3f32.ln()], 1);
        assert!((sums.kl - (2f64.ln() - 3f64.ln() / 2.0)).abs() < 1e-7, "{}", sums.kl);
        assert!((sums.max_difference - 1.5f64.ln()).abs() < 1e-7);
        assert_eq!(sums.agreed, 0);
    }

    #[test]
    fn what_is_no_number_is_told() {
        let mut sums = compare_row(&[0.0, 0.0], &[0.0, 0.0], 0);
        sums.add(&compare_row(&[0.0, 0.0], &[f32::NAN, 0.0], 0));
        assert!(sums.result().max_logprob_difference.is_nan());
    }
}
