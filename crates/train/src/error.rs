//! How a run fails.

use std::io;

use qwen_tune_data::DataError;

use crate::bad_step::BadStep;
use crate::checkpoint::CheckpointError;

/// A run that failed, and what is left of it.
#[derive(Debug, thiserror::Error)]
#[error("{cause}")]
pub struct Failed {
    /// Why.
    pub cause: Box<TrainError>,
    /// Steps that had been made.
    pub step: u64,
    /// Step of the newest checkpoint; `None` if there is none.
    pub saved: Option<u64>,
}

/// Faults of runs under way.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The data ended, though they repeat: nothing in them can be trained on.
    #[error("the data gave no more rows at step {step}")]
    NoData {
        /// The step that was to be made.
        step: u64,
    },
    /// Loss or gradients of a step went wrong, and the recipe says to stop or too many before it were skipped.
    #[error("step {}: loss {}, gradient norm {}; the step was not applied", bad.step, bad.loss, bad.grad_norm)]
    BadStep {
        /// The step.
        bad: Box<BadStep>,
        /// Steps skipped just before it.
        skipped_in_a_row: u64,
    },
    /// A device has no room for a step, with as little at a time as there can be.
    #[error("step {step} does not fit into the device's memory: {said}")]
    OutOfMemory {
        /// The step.
        step: u64,
        /// What the device said.
        said: String,
    },
    /// A checkpoint, or the record of a bad step, could not be written; earlier checkpoints are untouched.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Metrics or terminal could not be written.
    #[error("progress could not be written: {0}")]
    Sink(#[from] io::Error),
}
