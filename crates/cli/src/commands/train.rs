//! `train`: a recipe from its text to its exports.

use std::path::Path;
use std::sync::Arc;

use qwen_tune_data::Stream;
use qwen_tune_model::{Decoder, Device, Parameters};
use qwen_tune_qwen::export::{ExportConfig, ExportKind};
use qwen_tune_train::{
    AdamW, Ahead, Artefact, BadSteps, CheckpointConfig, Checkpoints, Ending, Event, Fanout, Jsonl, Loaded, Provenance,
    Replica, Run, Sink, StopFlag, TrainState, objective,
};
use qwen_tune_weights::atomic::AtomicDir;

use super::{DONE, Ended, INTERRUPTED, base, export, failed, failure, rehearsal, resume, run_dir};
use crate::args::TrainArgs;
use crate::diagnostic::Diagnostics;
use crate::plan::{Plan, Prepared, bind_adapter, prepare};
use crate::recipe::Purpose;
use crate::terminal::{JsonLines, Printer, Progress, count};

pub(super) fn run(args: &TrainArgs, printer: &Printer) -> Ended {
    let stop = stop_on_signal(printer);
    let Prepared { doc, mut plan } = prepare(args.recipe.as_deref(), &args.settings.to_vec(), Purpose::Train)?;
    printer.diagnostics(&plan.warnings);
    if !args.resume {
        run_dir::refuse_occupied(&plan.directory, &doc)?;
    }
    let _claim = run_dir::claim(&plan.directory, &doc)?;
    base::announce(&plan.model, &plan.recipe, printer);
    let lock = base::lock(&plan.model, &plan.recipe)?;
    base::seal(&mut plan.trained.artefact, lock.as_ref(), &doc)?;
    let made_from = resume::provenance(&plan, &doc, lock)?;
    let resumed = if args.resume {
        resume::checkpoint(&plan, &doc, &made_from, printer)?
    } else {
        // Again: another run may have come and gone before this one had the directory to itself.
        run_dir::refuse_occupied(&plan.directory, &doc)?;
        None
    };
    if let Some(loaded) = &resumed {
        plan.keep_sums(&loaded.state);
    }
    tell(&plan, printer);
    let (decoder, parameters) = rehearsal::within_budget(&mut plan, resumed.is_some(), &doc, printer)?;
    run_dir::begin(&plan, &doc, made_from.base.as_ref())?;

    let mut run = ready(&plan, &decoder, parameters, made_from, resumed.as_ref(), stop)?;
    let mut sink = listeners(&plan, resumed.as_ref(), printer)?;
    let outcome = run.execute(&mut sink).map_err(|e| failure::told(&e, &plan))?;
    if outcome.ending == Ending::Interrupted {
        finish(&mut sink, &Event::Finished(outcome))?;
        printer.note("interrupted after a checkpoint; go on with `--resume`");
        return Ok(INTERRUPTED);
    }
    if let Artefact::Adapter { .. } = plan.trained.artefact {
        save_adapter(&plan.trained.artefact, &run, &plan.directory.join("adapter"))?;
    }
    let exports = export::asked(&plan);
    let is_compared = |e: &ExportConfig| e.verify && matches!(e.to, ExportKind::Merged | ExportKind::Gguf);
    let witness = if exports.iter().any(is_compared) { Some(witness(&plan, &decoder, &run.parameters)?) } else { None };
    let adapter = plan.trained.artefact.adapter(&run.parameters);
    let lock = run.state.made_from.base.take();
    // Exports are streams, and what is read back is a model of its own: there is room for one.
    drop(run);
    drop(decoder);
    let witness = match (witness, &adapter) {
        (Some(witness), Some(adapter)) if plan.recipe.model.quantize.is_quantised() => {
            let quantised = plan.recipe.model.quantize.name();
            Some(witness.of_stored_base(&plan.model, bind_adapter(adapter, &plan.model)?, quantised)?)
        }
        (witness, _) => witness,
    };
    let full = if adapter.is_none() { Some(export::full_tensors(&plan.directory)?.1) } else { None };
    let layout = match &plan.trained.artefact {
        Artefact::Adapter { layout, .. } => *layout,
        Artefact::Full => plan.model.key_layout,
    };
    let trained = export::Trained {
        adapter: adapter.as_ref(),
        layout,
        full: full.as_ref(),
        base: lock.as_ref(),
        recipe: &plan.recipe,
        run: Some(&plan.directory),
    };
    for path in export::export_run(&plan, &exports, &trained, witness.as_ref(), printer)? {
        finish(&mut sink, &Event::Exported { path })?;
    }
    finish(&mut sink, &Event::Finished(outcome))?;
    Ok(DONE)
}

/// What the trained model answers on rows that it was not trained on, where there are some.
fn witness(plan: &Plan, decoder: &Decoder, parameters: &Parameters) -> Result<export::Witness, Diagnostics> {
    let rows = match &plan.eval {
        Some(eval) => (&eval.dataset, export::HELD_OUT),
        None => (&plan.data, export::TRAINED_ON),
    };
    let base_is_there = matches!(&plan.trained.artefact, Artefact::Adapter { whole, .. } if whole.is_empty());
    export::Witness::of(decoder, parameters, base_is_there, plan.data.encoder(), Some(rows), plan.device.clone())
}

/// The model on the devices beside the first.
fn others(plan: &Plan, decoder: &Decoder, parameters: &Parameters) -> Result<Vec<Replica>, Diagnostics> {
    let replica = |device: &Device| {
        let (decoder, parameters) = if device == decoder.device() {
            // Frozen weights are shared.
            (decoder.clone(), parameters.clone())
        } else {
            rehearsal::load(plan, device)?
        };
        let optimizer = AdamW::new(plan.recipe.optimizer.clone(), &parameters);
        Ok(Replica { decoder, parameters, optimizer })
    };
    plan.device.others.iter().map(replica).collect()
}

/// The run at its beginning, or where its checkpoint left it.
fn ready<'a>(
    plan: &Plan,
    decoder: &'a Decoder,
    mut parameters: Parameters,
    made_from: Provenance,
    resumed: Option<&Loaded>,
    stop: StopFlag,
) -> Result<Run<'a>, Diagnostics> {
    let recipe = &plan.recipe;
    let mut optimizer = AdamW::new(recipe.optimizer.clone(), &parameters);
    let begin = TrainState::new(recipe.run.seed, plan.total_steps, plan.micro_batch, made_from);
    let mut state = TrainState { ffn_chunk: plan.ffn_chunk, ..begin };
    let mut others = others(plan, decoder, &parameters)?;
    if let Some(loaded) = resumed {
        let further = others.iter_mut().map(|other| (&mut other.parameters, &mut other.optimizer));
        for (parameters, optimizer) in std::iter::once((&mut parameters, &mut optimizer)).chain(further) {
            loaded.restore(&plan.trained.artefact, parameters, optimizer).map_err(|e| failed("resume", &e))?;
        }
        let TrainState { total_steps, micro_batch, ffn_chunk, made_from, .. } = state;
        state = TrainState { total_steps, micro_batch, ffn_chunk, made_from, ..loaded.state.clone() };
    }
    let data = Stream::start(Arc::new(plan.data.clone()), plan.batches(), state.cursor.clone())
        .map_err(|e| failed("data", &e))?;
    let eval = recipe.eval.clone().unwrap_or_default();
    let CheckpointConfig { every, keep } = recipe.checkpoint;
    Ok(Run {
        decoder,
        parameters,
        optimizer,
        others,
        exchange: plan.device.exchange(),
        optimizer_config: recipe.optimizer.clone(),
        schedule: recipe.schedule.clone(),
        objective: objective(&recipe.objective).expect("invariant: the rules refuse objectives not there yet"),
        router_aux_loss_coef: recipe.objective.router_aux_loss_coef.unwrap_or(0.0),
        data: Box::new(data),
        eval: plan.eval.clone(),
        eval_every: eval.every,
        early_stop: eval.early_stop,
        checkpoints: Checkpoints::new(&plan.directory, every, keep, plan.trained.artefact.clone()),
        saved: resumed.map(|loaded| loaded.state.step),
        bad_steps: BadSteps {
            policy: recipe.run.on_bad_step,
            spike: recipe.run.spike,
            directory: plan.directory.join("bad-batches"),
            dataset: plan.data.clone(),
        },
        ahead: Ahead::default(),
        recompute: plan.recompute,
        offload: plan.device.moved(plan.offload),
        dropout: plan.trained.dropout,
        state,
        stop,
    })
}

/// Everyone who hears of the run: a person, `metrics.jsonl`, a program.
fn listeners(plan: &Plan, resumed: Option<&Loaded>, printer: &Printer) -> Result<Fanout, Diagnostics> {
    let mut sinks: Vec<Box<dyn Sink>> = vec![Box::new(Progress::new(printer.clone()))];
    if plan.recipe.report.jsonl {
        let path = plan.directory.join("metrics.jsonl");
        let jsonl = match resumed {
            Some(loaded) => Jsonl::resume(&path, loaded.state.step),
            None => Jsonl::create(&path),
        };
        sinks.push(Box::new(jsonl.map_err(|e| failed("metrics", &e))?));
    }
    if printer.is_json() {
        sinks.push(Box::new(JsonLines::new(printer.clone())));
    }
    Ok(Fanout(sinks))
}

fn finish(sink: &mut Fanout, event: &Event) -> Result<(), Diagnostics> {
    sink.event(event).map_err(|e| failed("output", &e))
}

fn save_adapter(artefact: &Artefact, run: &Run<'_>, target: &Path) -> Result<(), Diagnostics> {
    let staging = AtomicDir::replacing(target).map_err(|e| failed("save", &e))?;
    artefact.write_into(staging.path(), &run.parameters).map_err(|e| failed("save", &e))?;
    staging.commit().map_err(|e| failed("save", &e))?;
    Ok(())
}

/// The first signal asks the loop to stop after its step, the second ends the process at once: checkpoints are whole or
/// absent at every moment, so nothing is lost.
fn stop_on_signal(printer: &Printer) -> StopFlag {
    let flag = StopFlag::default();
    let (raised, told) = (flag.clone(), printer.clone());
    let handler = move || {
        if raised.raise() {
            #[expect(clippy::exit, reason = "the user asked twice")]
            std::process::exit(i32::from(INTERRUPTED));
        }
        told.note("stopping after this step; once more to stop at once");
    };
    if ctrlc::set_handler(handler).is_err() {
        printer.warn("signals cannot be caught here: an interrupt ends the run at its last checkpoint");
    }
    flag
}

/// What is about to happen, in a few lines.
fn tell(plan: &Plan, printer: &Printer) {
    let spec = &plan.model.spec;
    let total: u64 = qwen_tune_qwen::inventory(spec).iter().map(qwen_tune_qwen::TensorSpec::elements).sum();
    printer.note(&format!(
        "{}  {} ({} layers, {} parameters) on {} in {:?}",
        printer.strong("model"),
        plan.recipe.model.base,
        spec.layers.len(),
        count(total),
        plan.device.name,
        plan.device.dtype,
    ));
    for (info, audit) in plan.data.sources().zip(&plan.audit.sources) {
        printer.note(&format!(
            "{}   {} rows as {:?} ({}); {:.0}% of tokens carry loss, longest {} tokens",
            printer.strong("data"),
            count(info.rows),
            info.format,
            info.reason,
            100.0 * audit.trained_share(),
            count(audit.longest as u64),
        ));
        if audit.truncated > 0 {
            printer.warn(&format!(
                "{} of the first {} rows lose their end to `tokens.max_length`",
                audit.truncated, audit.rows
            ));
        }
    }
    printer.note(&format!(
        "{}    {} steps into {}",
        printer.strong("run"),
        count(plan.total_steps),
        plan.directory.display()
    ));
}
