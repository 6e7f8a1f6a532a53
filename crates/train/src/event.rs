//! What a run has to say. Producers push events to a [`Sink`]; nothing else here knows about terminals or files.

use std::io;
use std::path::PathBuf;

use serde::Serialize;

use crate::bad_step::BadStep;
use crate::balance::ExpertFigures;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// Before the first step.
    Started {
        /// Steps done before, when resuming.
        step: u64,
        /// Steps of the whole run.
        total_steps: u64,
        /// Values that are trained.
        trained_parameters: usize,
    },
    /// After an update.
    Step(Step),
    /// A step whose numbers went wrong; its update was not applied.
    BadStep(BadStep),
    /// After an evaluation.
    Eval(Evaluation),
    /// A checkpoint is whole.
    Saved {
        /// Its step.
        step: u64,
        /// Its directory.
        path: PathBuf,
    },
    /// A device ran out of memory in a step, which is made again with less at a time, as are all after it.
    OutOfMemory {
        /// Its number, from 1.
        step: u64,
        /// Most laid-out rows in one forward from now on.
        micro_batch: usize,
        /// Lowest blocks that run again in the backward from now on.
        recompute: usize,
        /// Tokens that go through their feed-forward part together from now on; absent for all.
        #[serde(skip_serializing_if = "Option::is_none")]
        ffn_chunk: Option<usize>,
    },
    /// Something a user should know but that stops nothing.
    Warned {
        /// One sentence.
        message: String,
    },
    /// An export is whole.
    Exported {
        /// Where it lies.
        path: PathBuf,
    },
    /// After everything.
    Finished(Outcome),
}

/// One optimizer step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Step {
    /// From 1.
    pub step: u64,
    /// Steps of the whole run.
    #[serde(skip)]
    pub total_steps: u64,
    /// Mean over the step's trained tokens, in nats, of the forward before the update.
    pub loss: f64,
    /// Rate of this update.
    pub learning_rate: f64,
    /// Global norm before clipping.
    pub grad_norm: f64,
    /// Tokens seen in this step.
    pub tokens: usize,
    /// Targets with loss in this step.
    pub trained_tokens: usize,
    /// `tokens / seconds`.
    pub tokens_per_second: f64,
    /// Wall time of the step, waiting for data included.
    pub seconds: f64,
    /// Of those, in which the loop waited for its data.
    pub data_seconds: f64,
    /// Passes over the data after this step.
    pub epoch: f64,
    /// Expected time to the end of the run.
    #[serde(skip)]
    pub eta_seconds: Option<f64>,
    /// How tokens were spread over experts, where there are some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experts: Option<ExpertFigures>,
}

/// Loss on held-out rows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evaluation {
    /// Updates made before it; 0 is the untouched model.
    pub step: u64,
    /// Mean over trained tokens, in nats.
    pub loss: f64,
    /// `exp(loss)`.
    pub perplexity: f64,
    /// Targets counted.
    pub tokens: usize,
    /// Rows counted.
    pub rows: usize,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// All steps done.
    Completed,
    /// Evaluations stopped improving.
    EarlyStop,
    /// The user asked; a checkpoint was written.
    Interrupted,
}

/// The end of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// Why it ended.
    pub ending: Ending,
    /// Steps done in all.
    pub step: u64,
    /// Tokens seen in all.
    pub tokens: u64,
    /// Loss of the last step.
    pub loss: Option<f64>,
    /// Steps whose update was not applied, in all.
    pub skipped: u64,
    /// Wall time of this execution.
    pub seconds: f64,
    /// Most memory that the process has held so far, in bytes, where the system says so (Linux).
    pub peak_memory: Option<u64>,
}

/// A listener.
pub trait Sink {
    /// Hears one event.
    ///
    /// # Errors
    /// If it could not be passed on; the run then stops after saving.
    fn event(&mut self, event: &Event) -> io::Result<()>;
}

/// Several listeners as one.
#[derive(Default)]
pub struct Fanout(pub Vec<Box<dyn Sink>>);

impl Sink for Fanout {
    fn event(&mut self, event: &Event) -> io::Result<()> {
        self.0.iter_mut().try_for_each(|sink| sink.event(event))
    }
}
