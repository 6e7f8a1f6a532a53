//! Everything a run needs to go on as if it had never stopped, beside the trained tensors and the moments.

use qwen_tune_data::Cursor;
use serde::{Deserialize, Serialize};

/// The content of `state.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainState {
    /// Version of this file.
    pub format: u32,
    /// Updates made.
    pub step: u64,
    /// Steps of the whole run when this was written.
    pub total_steps: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Where the data go on.
    pub cursor: Cursor,
    /// Seed of the run.
    pub seed: u64,
    /// Loss of the best evaluation so far.
    pub best_eval: Option<f64>,
    /// Evaluations in a row that have not improved on it.
    pub stale_evals: u64,
    /// Loss of the last step.
    pub last_loss: Option<f64>,
}

/// Version written by this build.
pub const STATE_FORMAT: u32 = 1;

impl TrainState {
    /// Before the first step.
    #[must_use]
    pub fn new(seed: u64, total_steps: u64) -> Self {
        Self {
            format: STATE_FORMAT,
            step: 0,
            total_steps,
            tokens: 0,
            cursor: Cursor::default(),
            seed,
            best_eval: None,
            stale_evals: 0,
            last_loss: None,
        }
    }
}
