//! The loop: steps of data in, updates, evaluations and checkpoints out.

use std::time::Instant;

use qwen_tune_data::{DataError, Step as DataStep};
use qwen_tune_model::{Decoder, Parameters, Pass};
use qwen_tune_qwen::memory::Offload;

use crate::bad_step::{BadStep, BadSteps, MOST_SKIPPED_IN_A_ROW, OnBadStep};
use crate::checkpoint::{CheckpointError, Checkpoints};
use crate::error::{Failed, TrainError};
use crate::eval::EvalSet;
use crate::event::{Ending, Event, Outcome, Sink};
use crate::objective::Objective;
use crate::optimizer::{AdamW, OptimizerConfig};
use crate::queue::{Ahead, Queue};
use crate::recent::Fault;
use crate::replicas::{Exchange, Replica};
use crate::schedule::ScheduleConfig;
use crate::state::{Exact, TrainState};
use crate::stop::StopFlag;

/// A run, ready to start or to go on.
pub struct Run<'a> {
    /// The model.
    pub decoder: &'a Decoder,
    /// What is trained.
    pub parameters: Parameters,
    /// Its moments.
    pub optimizer: AdamW,
    /// The same on further devices, which take their share of every step.
    pub others: Vec<Replica>,
    /// How gradients are added over devices.
    pub exchange: Exchange,
    /// Clipping and the highest learning rate.
    pub optimizer_config: OptimizerConfig,
    /// Shape of the learning rate.
    pub schedule: ScheduleConfig,
    /// What is minimised.
    pub objective: Box<dyn Objective>,
    /// Factor of the load-balancing loss of mixtures of experts; 0 leaves it out.
    pub router_aux_loss_coef: f64,
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
    /// Step of the newest checkpoint on disk.
    pub saved: Option<u64>,
    /// What happens when numbers go wrong.
    pub bad_steps: BadSteps,
    /// Whether the host goes on before it knows them.
    pub ahead: Ahead,
    /// Lowest blocks that run again in the backward.
    pub recompute: usize,
    /// What waits in host memory.
    pub offload: Offload,
    /// Whether any adapter drops inputs.
    pub dropout: bool,
    /// Progress so far.
    pub state: TrainState,
    /// The user's wish.
    pub stop: StopFlag,
}

impl Run<'_> {
    /// Trains to `state.total_steps`, an early stop or the user's wish. The last checkpoint is the last step's.
    ///
    /// # Errors
    /// With what ended the run and the step of its newest checkpoint. What had been reached is saved before, unless that
    /// is what failed.
    pub fn execute(&mut self, sink: &mut dyn Sink) -> Result<Outcome, Failed> {
        let started = Instant::now();
        match self.train(sink, started) {
            Ok(ending) => Ok(Outcome {
                ending,
                step: self.state.step,
                tokens: self.state.tokens,
                loss: self.state.last_loss.map(|loss| loss.0),
                skipped: self.state.skipped,
                seconds: started.elapsed().as_secs_f64(),
                peak_memory: crate::process::peak(),
            }),
            Err(cause) => {
                // Between steps the state is whole, and an error leaves it between two of them. Nobody to tell if the
                // same disk refuses again: the cause names it.
                if !matches!(cause, TrainError::Checkpoint(_)) && self.saved != Some(self.state.step) {
                    let _ = self.save();
                }
                Err(Failed { cause: Box::new(cause), step: self.state.step, saved: self.saved })
            }
        }
    }

    /// What is due after a step is done at the head of the loop, so that a run that begins again where it was stopped
    /// does what was still due.
    fn train(&mut self, sink: &mut dyn Sink, started: Instant) -> Result<Ending, TrainError> {
        let (first, total_steps) = (self.state.step, self.state.total_steps);
        let trained_parameters = self.parameters.elements();
        sink.event(&Event::Started { step: first, total_steps, trained_parameters })?;
        if self.saved.is_some() {
            self.checkpoints.prune(first)?;
        }
        let mut queue = Queue::new(first, started);
        loop {
            if queue.holds_one() && !self.is_due_after(self.state.step + 1) {
                self.one_step(&mut queue, sink)?;
                continue;
            }
            self.settle(&mut queue, sink)?;
            if self.evaluation_is_due() {
                self.evaluate(sink)?;
            }
            let ending = self.ending();
            let step = self.state.step;
            if (ending.is_some() || self.checkpoints.due(step)) && self.saved != Some(step) {
                let path = self.save()?;
                sink.event(&Event::Saved { step, path })?;
            }
            if let Some(ending) = ending {
                return Ok(ending);
            }
            self.one_step(&mut queue, sink)?;
        }
    }

    /// Whether something is to be done behind this step, or the user wishes to end: its numbers cannot wait then.
    fn is_due_after(&self, step: u64) -> bool {
        let evaluates = self.eval.is_some() && self.eval_every.is_some_and(|n| step.is_multiple_of(n));
        evaluates || step >= self.state.total_steps || self.checkpoints.due(step) || self.stop.raised()
    }

    fn evaluation_is_due(&self) -> bool {
        let step = self.state.step;
        let at = step == 0 || step >= self.state.total_steps || self.eval_every.is_some_and(|n| step.is_multiple_of(n));
        self.eval.is_some() && at && self.state.evaluated != Some(step)
    }

    fn ending(&self) -> Option<Ending> {
        if self.evaluation_is_due() {
            // Nothing but the user's wish leaves one unfinished.
            Some(Ending::Interrupted)
        } else if self.early_stop.is_some_and(|patience| self.state.stale_evals >= patience) {
            Some(Ending::EarlyStop)
        } else if self.state.step >= self.state.total_steps {
            Some(Ending::Completed)
        } else {
            self.stop.raised().then_some(Ending::Interrupted)
        }
    }

    /// Passes over a step without applying it, or ends the run before it.
    pub(crate) fn refuse(
        &mut self,
        sink: &mut dyn Sink,
        data: &DataStep,
        reason: Fault,
        loss: f64,
        grad_norm: f64,
    ) -> Result<(), TrainError> {
        let patient = self.state.skipped_in_a_row < MOST_SKIPPED_IN_A_ROW;
        let action = if patient { self.bad_steps.policy } else { OnBadStep::Stop };
        let bad = BadStep {
            step: self.state.step + 1,
            reason,
            loss,
            grad_norm,
            action,
            file: self.bad_steps.directory.clone(),
            worst: None,
        };
        let bad = self.bad_steps.record(self.decoder, &self.parameters, data, bad).map_err(CheckpointError::from)?;
        sink.event(&Event::BadStep(bad.clone()))?;
        if action == OnBadStep::Stop {
            return Err(TrainError::BadStep { bad: Box::new(bad), skipped_in_a_row: self.state.skipped_in_a_row });
        }
        self.state.skipped += 1;
        self.state.skipped_in_a_row += 1;
        self.pass(data);
        Ok(())
    }

    pub(crate) fn pass(&mut self, data: &DataStep) {
        self.state.step += 1;
        self.state.tokens += data.tokens as u64;
        self.state.cursor = data.cursor.clone();
    }

    fn evaluate(&mut self, sink: &mut dyn Sink) -> Result<(), TrainError> {
        let Some(set) = &self.eval else { return Ok(()) };
        let pass = Pass::plain(&self.parameters).in_chunks(self.state.ffn_chunk);
        let Some(sum) = set.loss(self.decoder, &pass, &self.stop)? else { return Ok(()) };
        let evaluation = sum.evaluation(self.state.step);
        self.state.evaluated = Some(self.state.step);
        let better = self.state.best_eval.is_none_or(|best| evaluation.loss < best.0);
        if better && evaluation.loss.is_finite() {
            self.state.best_eval = Some(Exact(evaluation.loss));
            self.state.stale_evals = 0;
        } else {
            self.state.stale_evals += 1;
        }
        sink.event(&Event::Eval(evaluation))?;
        Ok(())
    }

    fn save(&mut self) -> Result<std::path::PathBuf, CheckpointError> {
        let path = self.checkpoints.save(&self.parameters, &self.optimizer, &self.state)?;
        self.saved = Some(self.state.step);
        Ok(path)
    }
}
