//! The proof of a memory plan: the run's largest batches, tried before anything is written.

use qwen_tune_model::{Decoder, Device, Parameters};
use qwen_tune_qwen::memory::{DEVICE_PROGRAM, Offload};
use qwen_tune_train::backward::Staging;
use qwen_tune_train::{objective, process, rehearse};

use super::failed;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::plan::{Plan, Way};
use crate::recipe::RecipeDoc;
use crate::terminal::{Printer, bytes};

/// Plans that stay below this share of their budget need no proof: formulas are not off by so much.
const SURE: f64 = 0.75;

/// Loads the model, and where the plan comes close to a budget that has to be kept, sees what the largest batches take;
/// if that is too much, goes on to a way that takes less.
///
/// # Errors
/// If the model cannot be loaded, or nothing that the recipe leaves open makes it fit.
pub(super) fn within_budget(
    plan: &mut Plan,
    resumed: bool,
    doc: &RecipeDoc,
    printer: &Printer,
) -> Result<(Decoder, Parameters), Diagnostics> {
    let (mut decoder, mut parameters) = load(plan, &plan.device.device.clone())?;
    let Some(budget) = budget_to_prove(plan) else { return Ok((decoder, parameters)) };
    loop {
        let took = tried(plan, &decoder, &parameters);
        let Some(took) = took.filter(|&took| took > budget) else { return Ok((decoder, parameters)) };
        let before = plan.way();
        if !plan.take_smaller(resumed) {
            return Err(Diagnostic::mistake(
                "too-little-memory",
                format!("the run's largest batch takes {}, {} may be taken", bytes(took), bytes(budget)),
            )
            .at(doc.span_of("run.memory"))
            .hint("give it more memory, or shorter rows with `--set tokens.max_length=...`")
            .into());
        }
        let Way { micro_batch, recompute, ffn_chunk, offload } = plan.way();
        let chunk = ffn_chunk.map_or(String::new(), |tokens| format!(", ffn_chunk = {tokens}"));
        printer.note(&format!(
            "the largest batch takes {} of {}: going on with micro_batch = {micro_batch}, recompute = {recompute}{chunk}, offload = {}",
            bytes(took),
            bytes(budget),
            offload.name(),
        ));
        if offload != before.offload {
            drop((decoder, parameters));
            (decoder, parameters) = load(plan, &plan.device.device.clone())?;
        }
    }
}

/// The run's model on a device.
pub(super) fn load(plan: &Plan, device: &Device) -> Result<(Decoder, Parameters), Diagnostics> {
    Decoder::load(&plan.model, &plan.trained.training, device, plan.storage()).map_err(|e| failed("load", &e))
}

/// The budget, where the plan fills it and it is a limit: what the recipe names, or all that a device has. What is free in
/// a machine's memory is another amount the next moment.
fn budget_to_prove(plan: &Plan) -> Option<u64> {
    let memory = &plan.cost.memory;
    let is_limit = plan.recipe.run.memory.as_ref().is_some() || !plan.device.on_host;
    let close = |budget: &u64| memory.total() as f64 > SURE * *budget as f64;
    memory.budget.filter(|_| is_limit).filter(close)
}

/// Bytes at the peak of it, where the system or the device says so.
fn tried(plan: &Plan, decoder: &Decoder, parameters: &Parameters) -> Option<u64> {
    let objective = objective(&plan.recipe.objective).expect("invariant: the rules refuse objectives not there yet");
    let staging = Staging {
        ffn_chunk: plan.ffn_chunk,
        dropout: plan.trained.dropout.then_some(0),
        inputs_on_host: plan.device.moved(plan.offload) >= Offload::Inputs,
        ..Staging::plain(plan.recompute)
    };
    let held = process::peak_of(|| rehearse(decoder, parameters, objective.as_ref(), staging, &plan.largest()));
    if plan.device.on_host {
        held
    } else {
        plan.device.device.memory_pool_usage().map(|pool| pool.bytes_reserved + DEVICE_PROGRAM)
    }
}
