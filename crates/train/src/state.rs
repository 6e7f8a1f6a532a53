//! Everything a run needs to go on as if it had never stopped, beside the trained tensors and the moments.

use qwen_tune_data::Cursor;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::provenance::Provenance;
use crate::recent::Recent;

/// The content of `state.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainState {
    /// Version of this file.
    pub format: u32,
    /// Steps made, those included whose update was not applied.
    pub step: u64,
    /// Steps of the whole run when this was written.
    pub total_steps: u64,
    /// Most laid-out rows in one forward.
    pub micro_batch: usize,
    /// Tokens that go through a feed-forward part together where a block runs again; absent for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ffn_chunk: Option<usize>,
    /// Tokens seen.
    pub tokens: u64,
    /// Where the data go on.
    pub cursor: Cursor,
    /// Seed of the run.
    pub seed: u64,
    /// Step of the last evaluation.
    pub evaluated: Option<u64>,
    /// Loss of the best evaluation so far.
    pub best_eval: Option<Exact>,
    /// Evaluations in a row that have not improved on it.
    pub stale_evals: u64,
    /// Loss of the last step that was applied.
    pub last_loss: Option<Exact>,
    /// Steps whose update was not applied.
    pub skipped: u64,
    /// Of these, the latest ones in a row.
    pub skipped_in_a_row: u64,
    /// Losses and norms of the latest steps, where `run.spike` looks at them.
    pub recent: Recent,
    /// What the run was made from.
    pub made_from: Provenance,
}

/// Version written by this build.
pub const STATE_FORMAT: u32 = 2;

impl TrainState {
    /// Before the first step.
    #[must_use]
    pub fn new(seed: u64, total_steps: u64, micro_batch: usize, made_from: Provenance) -> Self {
        Self {
            format: STATE_FORMAT,
            step: 0,
            total_steps,
            micro_batch,
            ffn_chunk: None,
            tokens: 0,
            cursor: Cursor::default(),
            seed,
            evaluated: None,
            best_eval: None,
            stale_evals: 0,
            last_loss: None,
            skipped: 0,
            skipped_in_a_row: 0,
            recent: Recent::default(),
            made_from,
        }
    }

    /// Updates applied: what Adam's bias correction counts.
    #[must_use]
    pub fn updates(&self) -> u64 {
        self.step - self.skipped
    }
}

/// A number that comes back from a file bit for bit. Written as text: `serde_json` may be off in the last place when it
/// reads a number, and has none for NaN.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Exact(pub f64);

impl Serialize for Exact {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Exact {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn numbers_come_back_bit_for_bit() {
        let mut bits = 0x3ff0_0000_0000_0001_u64;
        for _ in 0..20_000 {
            bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let value = f64::from_bits(bits);
            let text = serde_json::to_string(&Exact(value)).unwrap();
            let back: Exact = serde_json::from_str(&text).unwrap();
            assert!(back.0.to_bits() == bits || value.is_nan() && back.0.is_nan(), "{text}");
        }
    }
}
