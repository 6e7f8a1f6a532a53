//! Which step's numbers are not to be trusted: what is no number, and what jumps far out of what was seen lately.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::state::Exact;

/// Steps looked back on.
const WINDOW: usize = 128;
/// Steps that have to be known before a jump can be told from noise.
const ENOUGH: usize = 64;
/// The deviation counts as at least this share of the mean: a loss that hardly moves is not on a spike when it moves a
/// little.
const LEAST_DEVIATION: f64 = 0.01;

/// Losses and gradient norms of the latest steps that were applied.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recent {
    losses: VecDeque<Exact>,
    norms: VecDeque<Exact>,
}

/// Why a step is not applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The loss is NaN or infinite.
    LossNotFinite,
    /// The norm of the gradients is NaN or infinite.
    GradientNotFinite,
    /// The loss lies far above those of the latest steps.
    LossSpike,
    /// The norm of the gradients lies far above those of the latest steps.
    GradientSpike,
}

impl Recent {
    /// What is wrong with a step's loss and gradient norm. A spike is a value more than `spike` standard deviations above
    /// the mean of up to 128 steps before it, of which there have to be 64: the rule by which OLMo-core's optimizers skip
    /// steps (there with 6 deviations).
    pub(crate) fn fault(&self, spike: Option<f64>, loss: f64, grad_norm: f64) -> Option<Fault> {
        if !loss.is_finite() {
            return Some(Fault::LossNotFinite);
        }
        if !grad_norm.is_finite() {
            return Some(Fault::GradientNotFinite);
        }
        let spike = spike?;
        if exceeds(&self.losses, spike, loss) {
            return Some(Fault::LossSpike);
        }
        exceeds(&self.norms, spike, grad_norm).then_some(Fault::GradientSpike)
    }

    /// Remembers a step that was applied.
    pub(crate) fn push(&mut self, loss: f64, grad_norm: f64) {
        for (values, value) in [(&mut self.losses, loss), (&mut self.norms, grad_norm)] {
            if values.len() == WINDOW {
                values.pop_front();
            }
            values.push_back(Exact(value));
        }
    }
}

fn exceeds(before: &VecDeque<Exact>, spike: f64, value: f64) -> bool {
    if before.len() < ENOUGH {
        return false;
    }
    let count = before.len() as f64;
    let mean = before.iter().map(|x| x.0).sum::<f64>() / count;
    let variance = before.iter().map(|x| (x.0 - mean) * (x.0 - mean)).sum::<f64>() / (count - 1.0);
    value - mean > spike * variance.sqrt().max(LEAST_DEVIATION * mean.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noisy(steps: usize) -> Recent {
        let mut recent = Recent::default();
        (0..steps).for_each(|i| recent.push(2.0 + 0.1 * (i as f64).sin(), 1.0 + 0.2 * (i as f64).cos()));
        recent
    }

    #[test]
    fn what_is_no_number_is_always_a_fault() {
        let recent = Recent::default();
        assert_eq!(recent.fault(None, f64::NAN, 1.0), Some(Fault::LossNotFinite));
        assert_eq!(recent.fault(None, 1.0, f64::INFINITY), Some(Fault::GradientNotFinite));
        assert_eq!(recent.fault(None, 1e30, 1e30), None);
    }

    #[test]
    fn a_jump_is_a_spike_once_enough_is_known_and_only_upwards() {
        assert_eq!(noisy(63).fault(Some(6.0), 100.0, 100.0), None);
        let recent = noisy(64);
        assert_eq!(recent.fault(None, 100.0, 1.0), None);
        assert_eq!(recent.fault(Some(6.0), 2.6, 1.0), Some(Fault::LossSpike));
        assert_eq!(recent.fault(Some(6.0), 2.0, 2.0), Some(Fault::GradientSpike));
        assert_eq!(recent.fault(Some(6.0), 2.2, 1.5), None);
        assert_eq!(recent.fault(Some(6.0), 0.0, 0.0), None);
    }

    #[test]
    fn only_the_latest_steps_count() {
        let mut recent = noisy(WINDOW);
        assert_eq!(recent.fault(Some(6.0), 9.0, 1.0), Some(Fault::LossSpike));
        (0..WINDOW).for_each(|_| recent.push(9.0, 1.0));
        assert_eq!(recent, {
            let mut only = Recent::default();
            (0..WINDOW).for_each(|_| only.push(9.0, 1.0));
            only
        });
        assert_eq!(recent.fault(Some(6.0), 9.1, 1.0), None);
    }
}
