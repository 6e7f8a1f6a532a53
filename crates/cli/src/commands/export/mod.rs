//! `export`: what comes of a run or an adapter, read back and compared before it counts as done.

mod job;
mod proof;
mod witness;

use std::path::{Path, PathBuf};

use qwen_tune_data::Dataset;
use qwen_tune_model::{Decoder, Training};
use qwen_tune_qwen::ModelDir;
use qwen_tune_qwen::export::{ExportConfig, ExportKind as Kind};
use qwen_tune_train::{Artefact, Checkpoints, device};
use qwen_tune_weights::lock::Lock;
use qwen_tune_weights::peft::Adapter;
use qwen_tune_weights::{Checkpoint, TensorSource};

pub(super) use job::Trained;
use job::{Job, carry_out};
pub(super) use witness::Witness;

use super::loaded::{final_adapter, read_adapter};
use super::{DONE, Ended, base, failed, written};
use crate::args::{ExportArgs, ExportKind};
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::plan::{Opened, Plan, bind_adapter, device_fault, held_out, key_layout, open_model, training_rows};
use crate::recipe::{Parsed, Purpose, Recipe, RecipeDoc, Setting};
use crate::terminal::Printer;

/// What a run is asked to make when it has ended; full fine-tuning that is asked for nothing makes the merged model.
pub(super) fn asked(plan: &Plan) -> Vec<ExportConfig> {
    match (&plan.recipe.export[..], &plan.trained.artefact) {
        ([], Artefact::Full) => vec![ExportConfig::new(Kind::Merged)],
        (asked, _) => asked.to_vec(),
    }
}

/// Makes every export of a finished run below its directory. What an earlier end of the same run left there is replaced.
pub(super) fn export_run(
    plan: &Plan,
    asked: &[ExportConfig],
    trained: &Trained<'_>,
    witness: Option<&Witness>,
    printer: &Printer,
) -> Result<Vec<PathBuf>, Diagnostics> {
    let mut made = Vec::new();
    for export in asked {
        let out = plan.directory.join("export").join(export.to.directory());
        let job = Job {
            kind: export.to,
            quants: export.quants().map_err(|e| failed("export", &e))?,
            verify: export.verify,
            name: name_of(&plan.directory),
            replaces: true,
            out: out.clone(),
        };
        carry_out(&job, &plan.model, trained, witness.filter(|_| export.verify), printer)?;
        made.push(out);
    }
    Ok(made)
}

/// The last part of a path, which models are named by.
fn name_of(path: &Path) -> String {
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    whole.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}

pub(super) fn run(args: &ExportArgs, printer: &Printer) -> Ended {
    let kind = match args.to {
        ExportKind::Merged => Kind::Merged,
        ExportKind::Adapter => Kind::Adapter,
        ExportKind::Gguf => Kind::Gguf,
        ExportKind::AdapterGguf => Kind::AdapterGguf,
    };
    let asked = ExportConfig { to: kind, quant: args.quant.clone(), verify: !args.no_verify };
    asked.check().map_err(|e| Diagnostics::from(Diagnostic::mistake_from("quant", &e)))?;
    let (recipe, doc, run) = match (&args.run, &args.model) {
        (Some(run), _) => {
            let resolved = run.join("recipe.resolved.toml");
            if !resolved.is_file() {
                let message = format!("`{}` holds no run", run.display());
                return Err(Diagnostic::mistake("no-run", message).expected("a directory made by `train`").into());
            }
            let Parsed { recipe, doc, .. } = Recipe::load(Some(&resolved), &args.settings.to_vec(), Purpose::Use)?;
            (recipe, doc, Some(run))
        }
        (None, Some(model)) => {
            let mut settings = args.settings.to_vec();
            settings.push(Setting::from_flag("--model", "model.base", model.to_string_lossy()));
            let Parsed { recipe, doc, .. } = Recipe::load(None, &settings, Purpose::Use)?;
            (recipe, doc, None)
        }
        (None, None) => unreachable!("invariant: clap requires one of them"),
    };
    let opened = open_model(&recipe, &doc)?;
    let adapter = match (&args.adapter, run) {
        (Some(path), _) => Some(read_adapter(path)?),
        (None, Some(run)) => final_adapter(run).map(|path| read_adapter(&path)).transpose()?,
        (None, None) => None,
    };
    let full = match (&adapter, run) {
        (None, Some(run)) => Some(full_tensors(run)?),
        _ => None,
    };
    if adapter.is_none() && full.is_none() && kind != Kind::Gguf {
        return Err(Diagnostic::mistake("no-adapter", "there is nothing to merge into the model")
            .hint("name an adapter: `--adapter DIR`")
            .hint("a model as it is can become GGUF: `--to gguf`")
            .into());
    }
    if let Some(adapter) = &adapter {
        base::refuse_other(adapter, &opened.model, &recipe, &doc)?;
    }
    if let Some((Some(before), _)) = &full {
        base::refuse_changed(before, &opened.model, &recipe, "the run was started with", &doc)?;
    }
    let lock = if kind == Kind::Adapter { None } else { base::lock(&opened.model, &recipe)? };
    let full = full.as_ref().map(|(_, tensors)| tensors);
    let answers = matches!(kind, Kind::Merged | Kind::Gguf) && asked.verify;
    let witness = if answers { Some(witness(&recipe, &doc, &opened, adapter.as_ref(), full)?) } else { None };
    let layout = match recipe.adapter() {
        Some(lora) => key_layout(&lora, &doc, &opened.model)?,
        None => opened.model.key_layout,
    };
    let trained = Trained {
        adapter: adapter.as_ref(),
        layout,
        full,
        base: lock.as_ref(),
        recipe: &recipe,
        run: run.map(AsRef::as_ref),
    };
    let job = Job {
        kind,
        quants: asked.quants().map_err(|e| failed("export", &e))?,
        verify: asked.verify,
        name: name_of(run.map_or(&args.out, |run| run)),
        replaces: false,
        out: args.out.clone(),
    };
    carry_out(&job, &opened.model, &trained, witness.as_ref(), printer)?;
    if printer.is_json() {
        written(printer.json(&serde_json::json!({ "path": args.out })))?;
    } else {
        printer.note(&format!("wrote {}", args.out.display()));
    }
    Ok(DONE)
}

/// Builds the trained model again, to ask it what its export has to answer.
fn witness(
    recipe: &Recipe,
    doc: &RecipeDoc,
    opened: &Opened,
    adapter: Option<&Adapter>,
    full: Option<&Checkpoint>,
) -> Result<Witness, Diagnostics> {
    let Opened { model, encoder } = opened;
    let device = device::open(&recipe.run.device, recipe.model.dtype)
        .map_err(|e| Diagnostics::from(device_fault(&e).at(doc.span_of("run.device"))))?;
    let training = match (adapter, full) {
        (Some(adapter), _) => Training::Lora(bind_adapter(adapter, model)?),
        (None, Some(full)) => Training::Full(full.tensors().iter().map(|info| info.name.clone()).collect()),
        (None, None) => Training::Nothing,
    };
    let (decoder, mut parameters) = Decoder::load(
        model,
        &training,
        &device.device,
        device.storage(recipe.model.quantize, recipe.run.offload.value().unwrap_or_default()),
    )
    .map_err(|e| failed("load", &e))?;
    if let Some(full) = full {
        for parameter in parameters.iter_mut() {
            let values = full.read_f32(&parameter.name).map_err(|e| failed("load", &e))?;
            parameter.set(values);
        }
    }
    let rows = rows(recipe, doc, opened);
    let rows = rows.as_ref().map(|(data, what)| (data, *what));
    let base_is_there = adapter.is_some_and(|adapter| adapter.others.is_empty());
    let witness = Witness::of(&decoder, &parameters, base_is_there, encoder, rows, device)?;
    drop((decoder, parameters));
    match adapter.filter(|_| recipe.model.quantize.is_quantised()) {
        Some(adapter) => witness.of_stored_base(model, bind_adapter(adapter, model)?, recipe.model.quantize.name()),
        None => Ok(witness),
    }
}

/// The rows of a run to compare on, if they are still where they were: held out where there are such.
fn rows(recipe: &Recipe, doc: &RecipeDoc, opened: &Opened) -> Option<(Dataset, &'static str)> {
    let eval = recipe.eval.clone().unwrap_or_default();
    if let Ok(Some(held)) = held_out(&eval, Some(&opened.encoder), doc) {
        return Some((held, HELD_OUT));
    }
    let roots = crate::plan::roots(doc);
    let whole = Dataset::open(&recipe.data, opened.encoder.clone(), &roots).ok().filter(|_| !recipe.data.is_empty())?;
    match training_rows(whole, recipe, doc).ok()? {
        (_, Some(held)) => Some((held, HELD_OUT)),
        (rows, None) => Some((rows, TRAINED_ON)),
    }
}

/// Rows that the model was not trained on.
pub(super) const HELD_OUT: &str = "held-out rows";
/// Rows that it may have been trained on.
pub(super) const TRAINED_ON: &str = "rows of the training data";

/// The base's lock and the trained tensors of a full fine-tuning run, from its last checkpoint.
pub(super) fn full_tensors(run: &Path) -> Result<(Option<Lock>, Checkpoint), Diagnostics> {
    let latest = Checkpoints::latest(run).map_err(|e| failed("export", &e))?;
    let Some(latest) = latest else {
        let message = format!("`{}` has neither an adapter nor a checkpoint", run.display());
        return Err(Diagnostic::mistake("no-run", message).into());
    };
    let tensors = latest.full_tensors().map_err(|e| failed("export", &e))?;
    Ok((latest.state.made_from.base, tensors))
}

/// The license that the base's own card names.
fn license(model: &ModelDir) -> Option<String> {
    let text = std::fs::read_to_string(model.path.join("README.md")).ok()?;
    let front = text.strip_prefix("---")?.split("\n---").next()?;
    let line = front.lines().find_map(|line| line.strip_prefix("license:"))?;
    Some(line.trim().trim_matches(['"', '\'']).to_owned()).filter(|name| !name.is_empty())
}
