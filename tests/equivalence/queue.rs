//! A host that is ahead of its device: steps whose numbers come behind their update are the steps whose numbers come before.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::Tensor;
use qwen_tune_data::Batch;
use qwen_tune_train::{Ahead, Likelihood, Objective, OnBadStep, Step, TrainError};

use super::replicas::{Outcome, bits, lora, run_for};

/// The likelihood, times a factor in some of its forwards, which are counted from 1.
struct Spoiled {
    factor: f32,
    forwards: &'static [u64],
    made: AtomicU64,
}

impl Objective for Spoiled {
    fn loss(&self, logp: Tensor<1>, batch: &Batch) -> Tensor<1> {
        Likelihood.loss(logp, batch)
    }

    fn fixed_weights(&self, batch: &Batch) -> Option<Vec<f32>> {
        let forward = self.made.fetch_add(1, Ordering::SeqCst) + 1;
        let factor = if self.forwards.contains(&forward) { self.factor } else { 1.0 };
        Likelihood.fixed_weights(batch).map(|weights| weights.iter().map(|weight| weight * factor).collect())
    }
}

#[test]
fn numbers_that_come_late_change_nothing() {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("datasets/tiny-qwen3");
    // One forward a step. NaN makes the loss none; the large factor leaves it finite, but not the gradients' norm.
    let cases =
        [(f32::NAN, &[][..]), (f32::NAN, &[1]), (f32::NAN, &[2, 3]), (f32::NAN, &[1, 2, 3, 4, 5, 6]), (1e30, &[5, 6])];
    for (factor, forwards) in cases {
        for policy in [OnBadStep::Stop, OnBadStep::Skip] {
            let run = |ahead| -> Outcome {
                let objective = Spoiled { factor, forwards, made: AtomicU64::new(0) };
                run_for(Box::new(objective), &directory, 1, lora, 8, 0.0, (policy, ahead))
            };
            let (expected, found) = (run(Ahead::OfDevice), run(Ahead::Always));
            let what = format!("{factor} in {forwards:?}, {policy:?}");
            assert_eq!(expected.bad, found.bad, "{what}");
            let stops = policy == OnBadStep::Stop && !forwards.is_empty() || forwards.len() == 6;
            for outcome in [&expected, &found] {
                assert_eq!(outcome.bad.is_empty(), forwards.is_empty(), "{what}");
                assert_eq!(matches!(outcome.end, Err(TrainError::BadStep { .. })), stops, "{what}");
            }
            let numbers = |step: &Step| {
                let floats = [step.loss, step.grad_norm, step.learning_rate].map(f64::to_bits);
                (step.step, floats, step.tokens, step.trained_tokens)
            };
            let steps = |outcome: &Outcome| outcome.steps.iter().map(numbers).collect::<Vec<_>>();
            assert_eq!(steps(&expected), steps(&found), "{what}");
            assert!(bits(&expected.devices[0]) == bits(&found.devices[0]), "{what}: values or moments differ");
        }
    }
}
