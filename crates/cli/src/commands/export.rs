//! `export`: what comes of a run or an adapter, without a device.

use std::path::{Path, PathBuf};

use qwen_tune_model::Parameters;
use qwen_tune_qwen::export::{self, Change, ExportKind as Kind};
use qwen_tune_qwen::{KeyLayout, ModelDir};
use qwen_tune_train::{Artefact, Checkpoints};
use qwen_tune_weights::atomic::AtomicDir;
use qwen_tune_weights::lock::Lock;
use qwen_tune_weights::peft::Adapter;
use qwen_tune_weights::{Checkpoint, Dtype};

use super::loaded::{final_adapter, read_adapter};
use super::{DONE, Ended, base, failed, written};
use crate::args::{ExportArgs, ExportKind};
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::plan::{Plan, key_layout, model_faults};
use crate::recipe::{Parsed, Purpose, Recipe, RecipeDoc, Setting};
use crate::terminal::Printer;

/// Makes every `[[export]]` of a finished run below its directory; full fine-tuning without any makes the merged model.
/// What an earlier end of the same run left there is replaced.
pub(super) fn export_run(
    plan: &Plan,
    parameters: &Parameters,
    base: Option<&Lock>,
) -> Result<Vec<PathBuf>, Diagnostics> {
    let mut kinds: Vec<Kind> = plan.recipe.export.iter().map(|e| e.to).collect();
    if kinds.is_empty() && matches!(plan.trained.artefact, Artefact::Full) {
        kinds.push(Kind::Merged);
    }
    let adapter = plan.trained.artefact.adapter(parameters);
    let full = if adapter.is_none() { Some(full_tensors(&plan.directory)?.1) } else { None };
    let layout = match &plan.trained.artefact {
        Artefact::Adapter { layout, .. } => *layout,
        Artefact::Full => plan.model.key_layout,
    };
    let learnt = Learnt { adapter: adapter.as_ref(), layout, full: full.as_ref(), base };
    let mut made = Vec::new();
    for kind in kinds {
        let out = plan.directory.join("export").join(match kind {
            Kind::Merged => "merged",
            _ => "adapter",
        });
        make(kind, &plan.model, &learnt, AtomicDir::replacing(&out).map_err(|e| failed("export", &e))?)?;
        made.push(out);
    }
    Ok(made)
}

/// What training made of which base.
struct Learnt<'a> {
    adapter: Option<&'a Adapter>,
    /// Whose module paths an exported adapter has.
    layout: KeyLayout,
    full: Option<&'a Checkpoint>,
    base: Option<&'a Lock>,
}

fn make(kind: Kind, model: &ModelDir, learnt: &Learnt<'_>, out: AtomicDir) -> Result<(), Diagnostics> {
    let told = |errors: Vec<export::ExportError>| {
        errors.iter().map(|e| Diagnostic::failure_from("export", e)).collect::<Diagnostics>()
    };
    match (kind, learnt.adapter) {
        (Kind::Merged, adapter) => {
            let full = learnt.full.map(|full| Change::Full(full));
            let change = adapter.map(Change::Adapter).or(full).expect("invariant: a run trains one or the other");
            export::merge_into(model, change, out.path()).map_err(told)?;
            if let Some(base) = learnt.base {
                base::write_merged(out.path(), base.clone())?;
            }
        }
        (Kind::Adapter, Some(adapter)) => {
            let adapter = export::fit_adapter(model, learnt.layout, adapter).map_err(told)?;
            adapter.write_into(out.path(), Dtype::F32).map_err(|e| failed("export", &e))?;
        }
        (Kind::Adapter, None) => {
            let message = "full fine-tuning has no adapter to export";
            return Err(Diagnostic::mistake("no-adapter", message).hint("use `to = \"merged\"`").into());
        }
        (Kind::Gguf | Kind::AdapterGguf, _) => {
            let message = "GGUF export is not there yet";
            return Err(Diagnostic::mistake("not-there-yet", message)
                .hint("use `--to merged` and convert that")
                .into());
        }
    }
    out.commit().map_err(|e| failed("export", &e))?;
    Ok(())
}

pub(super) fn run(args: &ExportArgs, printer: &Printer) -> Ended {
    let kind = match args.to {
        ExportKind::Merged => Kind::Merged,
        ExportKind::Adapter => Kind::Adapter,
        ExportKind::Gguf => Kind::Gguf,
        ExportKind::AdapterGguf => Kind::AdapterGguf,
    };
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
    let model = open(&recipe, &doc)?;
    let adapter = match (&args.adapter, run) {
        (Some(path), _) => Some(read_adapter(path)?),
        (None, Some(run)) => final_adapter(run).map(|path| read_adapter(&path)).transpose()?,
        (None, None) => {
            return Err(Diagnostic::mistake("no-adapter", "there is nothing to merge into the model")
                .hint("name an adapter: `--adapter DIR`")
                .into());
        }
    };
    let full = match (&adapter, run) {
        (None, Some(run)) => Some(full_tensors(run)?),
        _ => None,
    };
    if let Some(adapter) = &adapter {
        base::refuse_other(adapter, &model, &recipe, &doc)?;
    }
    if let Some((Some(before), _)) = &full {
        base::refuse_changed(before, &model, &recipe, "the run was started with", &doc)?;
    }
    let lock = if kind == Kind::Merged { base::lock(&model, &recipe)? } else { None };
    let full = full.as_ref().map(|(_, tensors)| tensors);
    let layout = match recipe.adapter() {
        Some(lora) => key_layout(&lora, &doc, &model)?,
        None => model.key_layout,
    };
    let learnt = Learnt { adapter: adapter.as_ref(), layout, full, base: lock.as_ref() };
    make(kind, &model, &learnt, AtomicDir::new(&args.out).map_err(|e| failed("export", &e))?)?;
    if printer.is_json() {
        written(printer.json(&serde_json::json!({ "path": args.out })))?;
    } else {
        printer.note(&format!("wrote {}", args.out.display()));
    }
    Ok(DONE)
}

fn open(recipe: &Recipe, doc: &RecipeDoc) -> Result<ModelDir, Diagnostics> {
    ModelDir::open(doc.resolve_path(recipe.model.base.as_ref())).map_err(|errors| model_faults(&errors, doc))
}

/// The base's lock and the trained tensors of a full fine-tuning run, from its last checkpoint.
fn full_tensors(run: &Path) -> Result<(Option<Lock>, Checkpoint), Diagnostics> {
    let latest = Checkpoints::latest(run).map_err(|e| failed("export", &e))?;
    let Some(latest) = latest else {
        let message = format!("`{}` has neither an adapter nor a checkpoint", run.display());
        return Err(Diagnostic::mistake("no-run", message).into());
    };
    let tensors = latest.full_tensors().map_err(|e| failed("export", &e))?;
    Ok((latest.state.made_from.base, tensors))
}
