//! The loop: steps of data in, updates, evaluations and checkpoints out.

use std::io;
use std::path::PathBuf;
use std::time::Instant;

use qwen_tune_data::{DataError, Step as DataStep};
use qwen_tune_model::{Decoder, Parameters, Pass, mix};

use crate::backward::{Gradients, Staging, accumulate};
use crate::checkpoint::{CheckpointError, Checkpoints};
use crate::eval::EvalSet;
use crate::event::{Ending, Event, Outcome, Sink, Step};
use crate::objective::Objective;
use crate::optimizer::{AdamW, OptimizerConfig};
use crate::schedule::ScheduleConfig;
use crate::state::TrainState;
use crate::stop::StopFlag;

/// A run, ready to start or to go on.
pub struct Run<'a> {
    /// The model.
    pub decoder: &'a Decoder,
    /// What is trained.
    pub parameters: Parameters,
    /// Its moments.
    pub optimizer: AdamW,
    /// Clipping and the highest learning rate.
    pub optimizer_config: OptimizerConfig,
    /// Shape of the learning rate.
    pub schedule: ScheduleConfig,
    /// What is minimised.
    pub objective: Box<dyn Objective>,
    /// Endless steps of data, beginning at the state's cursor.
    pub data: Box<dyn Iterator<Item = Result<DataStep, DataError>>>,
    /// Held-out rows.
    pub eval: Option<EvalSet>,
    /// Steps between evaluations.
    pub eval_every: Option<u64>,
    /// Evaluations without improvement until the run ends.
    pub early_stop: Option<u64>,
    /// Where checkpoints go, and how often.
    pub checkpoints: Checkpoints,
    /// Lowest blocks that run again in the backward.
    pub recompute: usize,
    /// Whether any adapter drops inputs.
    pub dropout: bool,
    /// Progress so far.
    pub state: TrainState,
    /// The user's wish.
    pub stop: StopFlag,
}

/// Faults of a run under way.
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
    /// Loss or gradient is no number; the step was not applied.
    #[error("step {step}: loss {loss}, gradient norm {grad_norm}; the step was not applied")]
    NotFinite {
        /// The step.
        step: u64,
        /// Its loss.
        loss: f64,
        /// Its gradient norm.
        grad_norm: f64,
    },
    /// A checkpoint could not be written; earlier ones are untouched.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Metrics or terminal could not be written.
    #[error("progress could not be written: {0}")]
    Sink(#[from] io::Error),
}

impl Run<'_> {
    /// Trains to `state.total_steps`, an early stop or the user's wish. The last checkpoint is the last step's.
    ///
    /// # Errors
    /// As [`TrainError`]; the latest checkpoint on disk is whole in every case.
    pub fn execute(&mut self, sink: &mut dyn Sink) -> Result<Outcome, TrainError> {
        let started = Instant::now();
        let first = self.state.step;
        let total = self.state.total_steps;
        let trained_parameters = self.parameters.elements();
        sink.event(&Event::Started { step: first, total_steps: total, trained_parameters })?;
        if first == 0 {
            self.evaluate(sink)?;
        }
        let mut saved = first;
        let mut evaluated = first;
        let mut ending = Ending::Completed;
        while self.state.step < total {
            let mut step = self.one_step()?;
            let done = self.state.step - first;
            let left = total - self.state.step;
            step.eta_seconds = Some(started.elapsed().as_secs_f64() / done as f64 * left as f64);
            sink.event(&Event::Step(step))?;
            let at = |every: Option<u64>| every.is_some_and(|n| self.state.step.is_multiple_of(n));
            let (eval_now, save_now) = (at(self.eval_every), at(self.checkpoints.every()));
            if eval_now {
                evaluated = self.state.step;
                self.evaluate(sink)?;
            }
            if save_now {
                saved = self.state.step;
                self.save(sink)?;
            }
            if self.early_stop.is_some_and(|patience| self.state.stale_evals >= patience) {
                ending = Ending::EarlyStop;
                break;
            }
            if self.stop.raised() {
                ending = Ending::Interrupted;
                break;
            }
        }
        if evaluated != self.state.step && ending != Ending::Interrupted {
            self.evaluate(sink)?;
        }
        if saved != self.state.step || first == self.state.step {
            self.save(sink)?;
        }
        Ok(Outcome {
            ending,
            step: self.state.step,
            tokens: self.state.tokens,
            loss: self.state.last_loss,
            seconds: started.elapsed().as_secs_f64(),
            peak_memory: crate::process::memory("VmHWM:"),
        })
    }

    fn one_step(&mut self) -> Result<Step, TrainError> {
        let started = Instant::now();
        let number = self.state.step + 1;
        let data = self.data.next().ok_or(TrainError::NoData { step: number })??;
        let share = 1.0 / data.trained.max(1) as f32;
        let step_key = mix(mix(self.state.seed) ^ number);
        let mut gradients = Gradients::default();
        let mut nats = 0.0;
        for (index, batch) in data.micro_batches.iter().enumerate() {
            let dropout = self.dropout.then(|| mix(step_key ^ index as u64));
            let staging = Staging { recompute: self.recompute, dropout };
            let objective = self.objective.as_ref();
            nats += accumulate(self.decoder, &self.parameters, objective, batch, share, staging, &mut gradients);
        }
        let loss = nats / data.trained.max(1) as f64;
        let grad_norm = gradients.norm();
        if !loss.is_finite() || !grad_norm.is_finite() {
            return Err(TrainError::NotFinite { step: number, loss, grad_norm });
        }
        let limit = self.optimizer_config.max_grad_norm;
        if limit > 0.0 && grad_norm > limit {
            gradients.scale(limit / (grad_norm + 1e-6));
        }
        let learning_rate = self.optimizer_config.learning_rate * self.schedule.factor(number, self.state.total_steps);
        self.optimizer.step(&mut self.parameters, &gradients, learning_rate);
        self.state.step = number;
        self.state.tokens += data.tokens as u64;
        self.state.last_loss = Some(loss);
        self.state.cursor = data.cursor;
        let seconds = started.elapsed().as_secs_f64();
        Ok(Step {
            step: number,
            total_steps: self.state.total_steps,
            loss,
            learning_rate,
            grad_norm,
            tokens: data.tokens,
            trained_tokens: data.trained,
            tokens_per_second: data.tokens as f64 / seconds,
            seconds,
            epoch: data.epoch,
            eta_seconds: None,
        })
    }

    fn evaluate(&mut self, sink: &mut dyn Sink) -> Result<(), TrainError> {
        let Some(set) = &self.eval else { return Ok(()) };
        let evaluation = set.loss(self.decoder, &Pass::plain(&self.parameters))?.evaluation(self.state.step);
        if self.state.best_eval.is_none_or(|best| evaluation.loss < best) {
            self.state.best_eval = Some(evaluation.loss);
            self.state.stale_evals = 0;
        } else {
            self.state.stale_evals += 1;
        }
        sink.event(&Event::Eval(evaluation))?;
        Ok(())
    }

    fn save(&self, sink: &mut dyn Sink) -> Result<PathBuf, TrainError> {
        let path = self.checkpoints.save(&self.parameters, &self.optimizer, &self.state)?;
        sink.event(&Event::Saved { step: self.state.step, path: path.clone() })?;
        Ok(path)
    }
}
