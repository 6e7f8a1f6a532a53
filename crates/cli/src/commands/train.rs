//! `train`: a recipe from its text to its exports.

use std::path::Path;
use std::sync::Arc;

use qwen_tune_data::Stream;
use qwen_tune_model::Decoder;
use qwen_tune_train::{
    AdamW, Artefact, Checkpoints, Ending, Event, Fanout, Jsonl, Run, Sink, StopFlag, TrainState, objective,
};
use qwen_tune_weights::atomic::AtomicDir;

use super::{DONE, Ended, INTERRUPTED, export::export_run, failed, run_dir};
use crate::args::TrainArgs;
use crate::diagnostic::Diagnostics;
use crate::plan::{Plan, Prepared, prepare};
use crate::recipe::Purpose;
use crate::terminal::{JsonLines, Printer, Progress, count};

pub(super) fn run(args: &TrainArgs, printer: &Printer) -> Ended {
    let Prepared { doc, plan } = prepare(args.recipe.as_deref(), &args.settings.to_vec(), Purpose::Train)?;
    printer.diagnostics(&plan.warnings);
    let resumed = if args.resume {
        Checkpoints::latest(&plan.directory).map_err(|e| failed("resume", &e))?
    } else {
        run_dir::refuse_occupied(&plan.directory, &doc)?;
        None
    };
    tell(&plan, printer);
    run_dir::begin(&plan, &doc)?;

    let (decoder, mut parameters) =
        Decoder::load(&plan.model, &plan.trained.training, &plan.device.device, plan.device.dtype)
            .map_err(|e| failed("load", &e))?;
    let optimizer_config = plan.recipe.optimizer.clone();
    let mut optimizer = AdamW::new(optimizer_config.clone(), &parameters);
    let mut state = TrainState::new(plan.recipe.run.seed, plan.total_steps);
    let metrics = plan.directory.join("metrics.jsonl");
    if let Some(loaded) = &resumed {
        loaded.restore(&plan.trained.artefact, &mut parameters, &mut optimizer).map_err(|e| failed("resume", &e))?;
        state = TrainState { total_steps: plan.total_steps, ..loaded.state.clone() };
        printer.note(&format!("resuming after step {}", count(state.step)));
    }
    let data = Stream::start(Arc::new(plan.data.clone()), plan.batches(), state.cursor.clone())
        .map_err(|e| failed("data", &e))?;

    let mut sinks: Vec<Box<dyn Sink>> = vec![Box::new(Progress::new(printer.clone()))];
    if plan.recipe.report.jsonl {
        let jsonl = if state.step > 0 { Jsonl::resume(&metrics, state.step) } else { Jsonl::create(&metrics) };
        sinks.push(Box::new(jsonl.map_err(|e| failed("metrics", &e))?));
    }
    if printer.is_json() {
        sinks.push(Box::new(JsonLines::new(printer.clone())));
    }
    let mut sink = Fanout(sinks);
    let objective = objective(&plan.recipe.objective).expect("invariant: the rules refuse objectives not there yet");
    let every = plan.recipe.checkpoint.every;
    let artefact = plan.trained.artefact.clone();
    let eval_config = plan.recipe.eval.clone().unwrap_or_default();
    let mut run = Run {
        decoder: &decoder,
        parameters,
        optimizer,
        optimizer_config,
        schedule: plan.recipe.schedule.clone(),
        objective,
        data: Box::new(data),
        eval: plan.eval.clone(),
        eval_every: eval_config.every,
        early_stop: eval_config.early_stop,
        checkpoints: Checkpoints::new(&plan.directory, every, plan.recipe.checkpoint.keep, artefact),
        recompute: plan.recompute,
        dropout: plan.trained.dropout,
        state,
        stop: stop_on_signal(printer),
    };
    let outcome = run.execute(&mut sink).map_err(|e| failed("train", &e))?;
    let ending = outcome.ending;
    if ending == Ending::Interrupted {
        finish(&mut sink, &Event::Finished(outcome))?;
        printer.note("interrupted after a checkpoint; go on with `--resume`");
        return Ok(INTERRUPTED);
    }
    if let Artefact::Adapter { .. } = plan.trained.artefact {
        save_adapter(&plan.trained.artefact, &run, &plan.directory.join("adapter"))?;
    }
    for path in export_run(&plan, &run.parameters)? {
        finish(&mut sink, &Event::Exported { path })?;
    }
    finish(&mut sink, &Event::Finished(outcome))?;
    Ok(DONE)
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
