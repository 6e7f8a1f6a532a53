//! Learning rate as a pure function of the step.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the learning rate moves over the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleConfig {
    /// Shape after the warmup.
    pub kind: ScheduleKind,
    /// Linear rise from zero: below 1 a share of the run, from 1 a number of steps.
    pub warmup: f64,
    /// Last learning rate as a share of the highest.
    pub min_ratio: f64,
    /// `wsd` only: share of the run, at its end, in which the rate falls.
    pub decay: f64,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self { kind: ScheduleKind::Cosine, warmup: 0.05, min_ratio: 0.0, decay: 0.2 }
    }
}

/// Shapes of the schedule after the warmup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// Half a cosine down to `min_ratio`.
    #[default]
    Cosine,
    /// A straight line down to `min_ratio`.
    Linear,
    /// No fall.
    Constant,
    /// Warmup, stable, decay: constant, then a straight line over the last `decay` share.
    Wsd,
}

impl ScheduleConfig {
    /// Steps of warmup in a run of `total` steps.
    #[must_use]
    pub fn warmup_steps(&self, total: u64) -> u64 {
        if self.warmup < 1.0 { (self.warmup * total as f64).ceil() as u64 } else { self.warmup as u64 }
    }

    /// Factor on the learning rate at `step` (from 1) of `total`. transformers' schedulers give the first update of a
    /// warmup the rate zero; here step s of the warmup has `s / warmup`, so that no step is spent on nothing.
    #[must_use]
    pub fn factor(&self, step: u64, total: u64) -> f64 {
        let warmup = self.warmup_steps(total);
        if step <= warmup {
            return step as f64 / warmup as f64;
        }
        let done = (step - warmup - 1) as f64;
        let span = total.saturating_sub(warmup).max(1) as f64;
        let fall = |share: f64| self.min_ratio + (1.0 - self.min_ratio) * share.clamp(0.0, 1.0);
        match self.kind {
            ScheduleKind::Constant => 1.0,
            ScheduleKind::Linear => fall(1.0 - done / span),
            ScheduleKind::Cosine => fall(0.5 * (1.0 + (std::f64::consts::PI * (done / span).min(1.0)).cos())),
            ScheduleKind::Wsd => {
                let decay = (self.decay * total as f64).max(1.0);
                let left = total as f64 - (step - 1) as f64;
                fall(left / decay)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: ScheduleKind, warmup: f64) -> ScheduleConfig {
        ScheduleConfig { kind, warmup, min_ratio: 0.1, decay: 0.2 }
    }

    #[test]
    fn warmup_rises_linearly_to_one() {
        let s = schedule(ScheduleKind::Cosine, 4.0);
        let seen: Vec<f64> = (1..=5).map(|i| s.factor(i, 20)).collect();
        assert_eq!(seen, [0.25, 0.5, 0.75, 1.0, 1.0]);
    }

    #[test]
    fn a_fraction_is_a_share_of_the_run() {
        assert_eq!(schedule(ScheduleKind::Linear, 0.1).warmup_steps(50), 5);
        assert_eq!(schedule(ScheduleKind::Linear, 0.0).warmup_steps(50), 0);
    }

    #[test]
    fn cosine_passes_its_middle_and_stays_above_the_minimum() {
        let s = schedule(ScheduleKind::Cosine, 0.0);
        assert!((s.factor(6, 10) - 0.55).abs() < 1e-12);
        assert!((1..=10).all(|i| s.factor(i, 10) >= 0.1));
    }

    #[test]
    fn linear_falls_by_equal_amounts() {
        let s = schedule(ScheduleKind::Linear, 0.0);
        assert!((s.factor(1, 10) - 1.0).abs() < 1e-12);
        assert!((s.factor(2, 10) - (0.1 + 0.9 * 0.9)).abs() < 1e-12);
    }

    #[test]
    fn wsd_holds_then_falls_over_its_share() {
        let s = schedule(ScheduleKind::Wsd, 2.0);
        assert!((s.factor(16, 20) - 1.0).abs() < 1e-12);
        assert!((s.factor(17, 20) - 1.0).abs() < 1e-12);
        assert!((s.factor(19, 20) - (0.1 + 0.9 * 0.5)).abs() < 1e-12);
        assert!(s.factor(20, 20) < s.factor(19, 20));
    }

    #[test]
    fn constant_does_not_fall() {
        assert!((schedule(ScheduleKind::Constant, 1.0).factor(20, 20) - 1.0).abs() < f64::EPSILON);
    }
}
