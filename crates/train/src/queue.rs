//! Steps whose update is queued on a device before their numbers are known.
//!
//! A device is kept busy by a host that is ahead of it. So the update of a step is queued behind its gradients, clipped by
//! a norm that only the device knows yet, and left out there if that norm or the loss is no finite number. The host hears
//! of it while the next step's gradients are computed, and before that step's update is queued: what a bad step leads to
//! is what it would have led to at once.

use std::time::Instant;

use qwen_tune_data::Step as DataStep;
use qwen_tune_kernels::NormCopy;

use crate::attempt::Tried;
use crate::backward::Passed;
use crate::balance::Balance;
use crate::error::TrainError;
use crate::event::{Event, Sink, Step};
use crate::loss::Loss;
use crate::run::Run;
use crate::state::Exact;

/// When an update is queued before its step's numbers are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ahead {
    /// Where a device still has them: elsewhere nothing is gained, and a step would be told of late.
    #[default]
    OfDevice,
    /// Everywhere.
    Always,
}

/// At most one step whose numbers are on their way, and what their time is measured against.
pub(crate) struct Queue {
    queued: Option<Queued>,
    /// When the numbers of the step before were there.
    settled: Instant,
    /// Step and time at which the run began.
    first: u64,
    began: Instant,
}

/// A step whose update is queued or made.
struct Queued {
    data: DataStep,
    loss: Loss,
    balance: Balance,
    norm: NormCopy,
    learning_rate: f64,
    started: Instant,
    data_seconds: f64,
}

impl Queue {
    pub(crate) fn new(first: u64, began: Instant) -> Self {
        Self { queued: None, settled: began, first, began }
    }

    /// Whether a step's numbers are on their way.
    pub(crate) fn holds_one(&self) -> bool {
        self.queued.is_some()
    }
}

impl Run<'_> {
    /// One step up to its update, and behind its gradients the numbers of the step before. Where they are not known before
    /// the update, its own stay in the queue.
    pub(crate) fn one_step(&mut self, queue: &mut Queue, sink: &mut dyn Sink) -> Result<(), TrainError> {
        let started = Instant::now();
        let number = self.state.step + 1 + u64::from(queue.holds_one());
        let gradients = self.next_gradients(number, started, sink);
        self.settle(queue, sink)?;
        let (data, data_seconds, Tried { passed, gradients, norm }) = gradients?;
        let Passed { loss, balance, .. } = passed;
        let learning_rate = self.optimizer_config.learning_rate * self.schedule.factor(number, self.state.total_steps);
        let copy = norm.copy();
        // A jump is told from the steps before; several devices clip by one number.
        let late = self.ahead == Ahead::Always || !norm.is_here();
        if late && self.bad_steps.spike.is_none() && self.others.is_empty() && !loss.is_unsound() {
            self.optimizer.step_clipped(&mut self.parameters, &gradients[0], &norm, learning_rate);
            queue.queued = Some(Queued { data, loss, balance, norm: copy, learning_rate, started, data_seconds });
            return Ok(());
        }
        let (loss, grad_norm) = (mean(loss, &data), copy.value());
        if let Some(reason) = self.state.recent.fault(self.bad_steps.spike, loss, grad_norm) {
            return self.refuse(sink, &data, reason, loss, grad_norm);
        }
        let clip = self.optimizer_config.clip(grad_norm);
        self.optimizer.step(&mut self.parameters, &gradients[0], clip, learning_rate);
        for (other, gradients) in self.others.iter_mut().zip(&gradients[1..]) {
            other.optimizer.step(&mut other.parameters, gradients, clip, learning_rate);
        }
        if self.bad_steps.spike.is_some() {
            self.state.recent.push(loss, grad_norm);
        }
        self.made(Made { data, loss, grad_norm, balance, learning_rate, started, data_seconds }, queue, sink)
    }

    fn next_gradients(
        &mut self,
        number: u64,
        started: Instant,
        sink: &mut dyn Sink,
    ) -> Result<(DataStep, f64, Tried), TrainError> {
        let data = self.data.next().ok_or(TrainError::NoData { step: number })??;
        let data_seconds = started.elapsed().as_secs_f64();
        let tried = self.gradients(number, &data, sink)?;
        Ok((data, data_seconds, tried))
    }

    /// Waits for the numbers of the step in the queue, if there is one. Until then the state is that of the step before.
    pub(crate) fn settle(&mut self, queue: &mut Queue, sink: &mut dyn Sink) -> Result<(), TrainError> {
        let Some(queued) = queue.queued.take() else { return Ok(()) };
        let Queued { data, loss, balance, norm, learning_rate, started, data_seconds } = queued;
        let (loss, grad_norm) = (mean(loss, &data), norm.value());
        if let Some(reason) = self.state.recent.fault(None, loss, grad_norm) {
            self.optimizer.take_back();
            return self.refuse(sink, &data, reason, loss, grad_norm);
        }
        self.made(Made { data, loss, grad_norm, balance, learning_rate, started, data_seconds }, queue, sink)
    }

    /// Takes a step whose update was made into the state, and tells of it.
    fn made(&mut self, made: Made, queue: &mut Queue, sink: &mut dyn Sink) -> Result<(), TrainError> {
        let Made { data, loss, grad_norm, balance, learning_rate, started, data_seconds } = made;
        self.state.last_loss = Some(Exact(loss));
        self.state.skipped_in_a_row = 0;
        self.pass(&data);
        // Steps overlap: what passed since the numbers before came is this one's.
        let seconds = started.max(queue.settled).elapsed().as_secs_f64();
        queue.settled = Instant::now();
        let (step, total_steps) = (self.state.step, self.state.total_steps);
        let pace = queue.began.elapsed().as_secs_f64() / (step - queue.first) as f64;
        let step = Step {
            step,
            total_steps,
            loss,
            learning_rate,
            grad_norm,
            tokens: data.tokens,
            trained_tokens: data.trained,
            tokens_per_second: data.tokens as f64 / seconds,
            seconds,
            data_seconds,
            epoch: data.epoch,
            eta_seconds: Some(pace * (total_steps - step) as f64),
            experts: balance.figures(),
        };
        Ok(sink.event(&Event::Step(step))?)
    }
}

/// A step whose update was made, and its numbers.
struct Made {
    data: DataStep,
    loss: f64,
    grad_norm: f64,
    balance: Balance,
    learning_rate: f64,
    started: Instant,
    data_seconds: f64,
}

/// Over the trained tokens.
fn mean(loss: Loss, data: &DataStep) -> f64 {
    loss.nats() / data.trained.max(1) as f64
}
