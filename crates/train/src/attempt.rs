//! A step up to its update: gradients of all devices, added up, and with less at a time where a device has no room. Nothing
//! of it is kept until the update, so it can be tried as often as needed.

use qwen_tune_data::{Batch, Step as DataStep};
use qwen_tune_kernels::Norm;
use qwen_tune_model::mix;
use qwen_tune_qwen::memory::{FEWEST_CHUNK_TOKENS, Offload};

use crate::backward::{Gradients, Passed};
use crate::error::TrainError;
use crate::event::{Event, Sink};
use crate::out_of_memory::attempt;
use crate::replicas::Work;
use crate::run::Run;
use crate::state::TrainState;

/// A step before its update.
pub(crate) struct Tried {
    pub(crate) passed: Passed,
    /// The whole step's, on every device.
    pub(crate) gradients: Vec<Gradients>,
    /// Of the gradients, perhaps still on its way.
    pub(crate) norm: Norm,
}

impl Run<'_> {
    /// Everything of step `step` up to its update, with less at a time where a device has no room.
    pub(crate) fn gradients(&mut self, step: u64, data: &DataStep, sink: &mut dyn Sink) -> Result<Tried, TrainError> {
        loop {
            let parts = data.micro_batches.iter().flat_map(|batch| batch.split(self.state.micro_batch)).collect();
            let fault = match attempt(|| self.attempt(step, data, parts)) {
                Ok((tried, None)) => return Ok(tried),
                Ok((tried, Some(message))) => {
                    sink.event(&Event::Warned { message })?;
                    return Ok(tried);
                }
                Err(fault) => fault,
            };
            self.clear_away();
            let rows = data.micro_batches.iter().map(|batch| batch.rows).max().unwrap_or(1);
            let blocks = self.decoder.blocks().len();
            let tokens = data.micro_batches.iter().map(|batch| batch.ids.len()).max().unwrap_or(0);
            let smallest = Some(FEWEST_CHUNK_TOKENS as usize).filter(|&chunk| tokens > chunk);
            let splits = smallest.is_some() && self.state.ffn_chunk.is_none_or(|chunk| Some(chunk) > smallest);
            match (rows.min(self.state.micro_batch), self.recompute, self.offload) {
                (2.., ..) => self.state.micro_batch = rows.min(self.state.micro_batch) / 2,
                (_, recompute, _) if recompute < blocks => self.recompute = blocks,
                _ if splits => self.state.ffn_chunk = smallest,
                (_, _, offload) if offload < Offload::Inputs => self.offload = Offload::Inputs,
                _ => return Err(TrainError::OutOfMemory { step, said: fault.said }),
            }
            let TrainState { micro_batch, ffn_chunk, .. } = self.state;
            sink.event(&Event::OutOfMemory { step, micro_batch, recompute: self.recompute, ffn_chunk })?;
        }
    }

    /// Takes notice of what failed on the devices, and gives back what nobody holds any more.
    fn clear_away(&self) {
        let others = self.others.iter().map(|other| other.decoder.device());
        for device in std::iter::once(self.decoder.device()).chain(others) {
            // What it says has been said.
            let _ = device.sync();
            device.memory_cleanup();
        }
    }

    /// Gradients of all devices, added up; and what there is to warn of.
    fn attempt(&mut self, step: u64, data: &DataStep, micro_batches: Vec<Batch>) -> (Tried, Option<String>) {
        let step_key = mix(mix(self.state.seed) ^ step);
        let work = Work {
            micro_batches,
            tokens: data.tokens,
            trained: data.trained,
            objective: self.objective.as_ref(),
            router_aux_loss_coef: self.router_aux_loss_coef,
            recompute: self.recompute,
            ffn_chunk: self.state.ffn_chunk,
            dropout: self.dropout.then_some(step_key),
            inputs_on_host: self.offload >= Offload::Inputs,
        };
        let others = self.others.iter().map(|other| (&other.decoder, &other.parameters));
        let replicas: Vec<_> = std::iter::once((self.decoder, &self.parameters)).chain(others).collect();
        let (passed, mut gradients) = work.run(&replicas);
        let devices: Vec<_> = replicas.iter().map(|(decoder, _)| decoder.device()).collect();
        let warning = self.exchange.sum(&mut gradients, &devices);
        // Of the sum, and of one device for all: none of them may clip by another number.
        let norm = gradients[0].norm_beside(&passed.witnesses);
        // An update must not rest on what was never made.
        norm.check_queued();
        (Tried { passed, gradients, norm }, warning)
    }
}
