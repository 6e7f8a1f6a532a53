//! Training batches without end, prepared ahead of the device.

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::Receiver;

use crate::batch::Step;
use crate::dataset::Dataset;
use crate::error::DataError;
use crate::order::Cursor;
use crate::prefetch::Producer;
use crate::tokens::Packing;

/// Steps that may be ready before they are asked for.
const AHEAD: usize = 3;

/// How rows become steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPlan {
    /// What a step takes.
    pub step: StepSize,
    /// Laid-out rows in a micro-batch, at most.
    pub micro_batch: usize,
    /// Decides the order, if shuffled.
    pub seed: u64,
    /// Whether rows come shuffled and sources interleaved, or in the order of sources and files.
    pub shuffle: bool,
    /// How a step's documents share rows.
    pub packing: Packing,
    /// Tokens in a laid-out row, at most.
    pub max_length: usize,
}

/// How much data a step takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepSize {
    /// This many rows of data. Rows without anything to train on do not count.
    Rows(usize),
    /// Rows of data until the next would bring the step above this many tokens; at least one.
    Tokens(usize),
}

/// An endless iterator over steps; an error ends it. Dropping it stops the thread behind it.
pub struct Stream {
    steps: Option<Receiver<Result<Step, DataError>>>,
    thread: Option<JoinHandle<()>>,
}

impl Stream {
    /// Starts preparing steps from a cursor on ([`Cursor::default`] is the beginning).
    pub fn start(dataset: Arc<Dataset>, plan: BatchPlan, cursor: Cursor) -> Result<Self, DataError> {
        let producer = Producer::new(dataset, plan, cursor)?;
        let (sender, steps) = crossbeam_channel::bounded(AHEAD);
        let thread = std::thread::Builder::new()
            .name("data".into())
            .spawn(move || producer.run(&sender))
            .map_err(|error| DataError::Thread { message: error.to_string() })?;
        Ok(Self { steps: Some(steps), thread: Some(thread) })
    }
}

impl Iterator for Stream {
    type Item = Result<Step, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.steps.as_ref()?.recv();
        match step {
            Ok(Ok(step)) => Some(Ok(step)),
            Ok(Err(error)) => {
                self.steps = None;
                Some(Err(error))
            }
            // The thread sends an error before it ends, unless it panicked.
            Err(_) => {
                self.steps = None;
                Some(Err(DataError::Thread { message: "it stopped without saying why".into() }))
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // A closed channel is the sign to stop.
        self.steps = None;
        if let Some(thread) = self.thread.take() {
            // A panic in there has been reported as an error.
            let _ = thread.join();
        }
    }
}
