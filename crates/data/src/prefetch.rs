//! The thread behind a [`crate::Stream`]: draws rows in order, encodes them in parallel, groups them into steps.

use std::collections::VecDeque;
use std::sync::Arc;

use crossbeam_channel::Sender;
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::batch::Step;
use crate::dataset::{Candidate, Dataset};
use crate::encode::Encoded;
use crate::error::DataError;
use crate::order::{Cursor, Walk};
use crate::pack::lay_out;
use crate::stream::{BatchPlan, StepSize};

/// Rows encoded at a time, at least: enough to keep all threads busy.
const CHUNK: usize = 16;
/// And at most: bounds what is held when steps are large.
const MAX_CHUNK: usize = 256;

pub(crate) struct Producer {
    dataset: Arc<Dataset>,
    plan: BatchPlan,
    walk: Walk,
    pool: ThreadPool,
    /// Encoded rows that no step has taken yet, each with the place after it.
    ahead: VecDeque<(Result<Encoded, DataError>, Cursor)>,
    /// The place after the last row that a step has taken.
    cursor: Cursor,
    /// Rows passed over since the last one that could be trained on.
    barren: u64,
}

impl Producer {
    pub(crate) fn new(dataset: Arc<Dataset>, plan: BatchPlan, cursor: Cursor) -> Result<Self, DataError> {
        check(&plan)?;
        let threads = (rayon::current_num_threads() / 2).clamp(1, 8);
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("data-{i}"))
            .build()
            .map_err(|error| DataError::Thread { message: error.to_string() })?;
        let walk = Walk::new(dataset.clone(), plan.seed, plan.shuffle, cursor.clone())?;
        Ok(Self { dataset, plan, walk, pool, ahead: VecDeque::new(), cursor, barren: 0 })
    }

    /// Prepares steps until nobody wants them any more, or until an error.
    pub(crate) fn run(mut self, steps: &Sender<Result<Step, DataError>>) {
        loop {
            let step = self.step();
            let failed = step.is_err();
            if steps.send(step).is_err() || failed {
                return;
            }
        }
    }

    pub(crate) fn step(&mut self) -> Result<Step, DataError> {
        let (mut samples, mut rows, mut tokens) = (Vec::new(), 0, 0);
        let (mut dropped, mut truncated) = (0, 0);
        loop {
            if matches!(self.plan.step, StepSize::Rows(n) if rows >= n) {
                break;
            }
            self.refill(rows)?;
            let Some((encoded, after)) = self.ahead.pop_front() else { break };
            let mut encoded = encoded?;
            encoded.samples.retain(|s| s.num_trained() > 0);
            let more: usize = encoded.samples.iter().map(|s| s.ids.len()).sum();
            if matches!(self.plan.step, StepSize::Tokens(n) if rows > 0 && tokens + more > n) {
                self.ahead.push_front((Ok(encoded), after));
                break;
            }
            self.cursor = after;
            if encoded.samples.is_empty() {
                dropped += 1;
                self.barren += 1;
                if self.barren >= self.dataset.epoch_rows() {
                    return Err(DataError::NothingTrained { rows: self.barren });
                }
                continue;
            }
            self.barren = 0;
            rows += 1;
            tokens += more;
            truncated += usize::from(encoded.truncated);
            samples.append(&mut encoded.samples);
        }
        let micro_batches = lay_out(&samples, self.plan.packing, self.plan.max_length, self.plan.micro_batch);
        Ok(Step {
            trained: micro_batches.iter().map(|b| b.trained).sum(),
            micro_batches,
            rows,
            samples: samples.len(),
            tokens,
            dropped,
            truncated,
            epoch: self.cursor.epochs(),
            cursor: self.cursor.clone(),
        })
    }

    /// Encodes more rows if there are none.
    fn refill(&mut self, rows: usize) -> Result<(), DataError> {
        if !self.ahead.is_empty() {
            return Ok(());
        }
        let wanted = match self.plan.step {
            StepSize::Rows(n) => n - rows,
            StepSize::Tokens(_) => CHUNK,
        };
        let chunk = self.walk.take(wanted.clamp(CHUNK, MAX_CHUNK))?;
        let dataset = &self.dataset;
        let encode = |(candidate, after): (Candidate, Cursor)| (dataset.encode(&candidate), after);
        let encoded: Vec<_> = self.pool.install(|| Vec::from(chunk).into_par_iter().map(encode).collect());
        self.ahead.extend(encoded);
        Ok(())
    }
}

fn check(plan: &BatchPlan) -> Result<(), DataError> {
    let zero = |key| Err(DataError::Setting { key, found: "0".into(), expected: "at least 1" });
    match plan.step {
        StepSize::Rows(0) => zero("run.global_batch"),
        StepSize::Tokens(0) => zero("run.global_tokens"),
        _ if plan.micro_batch == 0 => zero("run.micro_batch"),
        _ => Ok(()),
    }
}
