//! From what the recipe says to what will happen: files opened, every `auto` decided with its reason, lengths turned
//! into steps. Nothing is allocated on a device and nothing is written.

mod audit;
mod fault;
mod length;
mod room;
mod trained;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use qwen_tune_data::{Audit, Dataset, Encoder, LossOn, Packing, SourceConfig, StepSize, TokensConfig};
use qwen_tune_qwen::ModelDir;
use qwen_tune_train::device::{self, OpenDevice};
use qwen_tune_train::{EvalConfig, EvalData, EvalSet, EvalSource, ObjectiveKind, Recompute};

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::recipe::{Choice, Purpose, Recipe, RecipeDoc, Setting};

pub use audit::{Part, audit_report};
pub use fault::{data_fault, data_faults, model_faults};
pub use length::step_size;
pub use room::{MemoryTable, available_memory};
pub use trained::{Trained, bind_adapter, trained};

/// A run with nothing left to decide.
pub struct Plan {
    /// The recipe, with every choice filled in.
    pub recipe: Recipe,
    /// The base model's directory.
    pub model: ModelDir,
    /// Training rows.
    pub data: Dataset,
    /// Held-out rows.
    pub eval: Option<EvalSet>,
    /// What the first rows of every source look like.
    pub audit: Audit,
    /// The same of rows that are only evaluated on, where they are not a part of the training rows.
    pub eval_audit: Option<Audit>,
    /// What is trained.
    pub trained: Trained,
    /// Where.
    pub device: OpenDevice,
    /// Run directory.
    pub directory: PathBuf,
    /// Portion of data in a step.
    pub step_size: StepSize,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Most laid-out rows in one forward.
    pub micro_batch: usize,
    /// Lowest blocks that run again in the backward.
    pub recompute: usize,
    /// Estimate of what the run holds at its peak.
    pub memory: MemoryTable,
    /// What a user should know and that stops nothing.
    pub warnings: Diagnostics,
    /// What was decided, and why.
    pub choices: Vec<Choice>,
}

/// A recipe and what will happen.
pub struct Prepared {
    /// Where each value was written.
    pub doc: RecipeDoc,
    /// The run.
    pub plan: Plan,
}

/// Reads a recipe with settings over it and decides everything.
///
/// # Errors
/// With every mistake of the recipe and, as far as it can be read, of the files it names: all at once.
pub fn prepare(path: Option<&Path>, settings: &[Setting]) -> Result<Prepared, Diagnostics> {
    let doc = match path {
        Some(path) => RecipeDoc::read(path, settings)?,
        None => RecipeDoc::from_settings(settings),
    };
    let (recipe, mut said) = Recipe::examine(&doc, Purpose::Train);
    let Some(recipe) = recipe.filter(|recipe| !recipe.model.base.is_empty()) else { return Err(said) };
    match Plan::make(&recipe, &doc) {
        Ok(mut plan) => {
            said.extend(std::mem::take(&mut plan.warnings));
            plan.warnings = said.stop_on_errors()?;
            Ok(Prepared { doc, plan })
        }
        Err(more) => {
            let told: Vec<_> = said.iter().filter_map(|d| d.span.clone()).collect();
            said.extend(more.into_iter().filter(|d| d.span.as_ref().is_none_or(|span| !told.contains(span))));
            said.sort_by_place();
            Err(said)
        }
    }
}

/// The model of a recipe and the encoder that goes with it.
pub struct Opened {
    /// The directory.
    pub model: ModelDir,
    /// Tokenizer, template and `[tokens]`.
    pub encoder: Arc<Encoder>,
}

/// Opens what `[model]` and `[tokens]` name.
///
/// # Errors
/// With every fault of directory, weights, tokenizer and template.
pub fn open_model(recipe: &Recipe, doc: &RecipeDoc) -> Result<Opened, Diagnostics> {
    let path = doc.resolve_path(recipe.model.base.as_ref());
    let model = ModelDir::open(&path).map_err(|errors| model_faults(&errors, doc))?;
    let encoder = open_encoder(&model, &recipe.tokens, recipe.objective.kind, doc)?;
    Ok(Opened { model, encoder: Arc::new(encoder) })
}

fn open_encoder(
    model: &ModelDir,
    tokens: &TokensConfig,
    objective: ObjectiveKind,
    doc: &RecipeDoc,
) -> Result<Encoder, Diagnostics> {
    let mut tokens = tokens.clone();
    if objective == ObjectiveKind::Cpt {
        // Continued pre-training learns every token of every row.
        tokens.loss_on = LossOn::All;
    }
    if let Some(template) = &tokens.template {
        let path = doc.resolve_path(Path::new(template));
        if path.is_file() {
            tokens.template = Some(path.to_string_lossy().into_owned());
        }
    }
    Encoder::from_dir(&model.path, &tokens, model.spec.vocab_size).map_err(|e| {
        Diagnostics::from(data_fault(&e).at(doc.span_of("tokens.template").or_else(|| doc.span_of("model.base"))))
    })
}

impl Plan {
    /// Decides everything.
    ///
    /// # Errors
    /// With every fault of recipe, checkpoint and data that can be seen without running.
    pub fn make(recipe: &Recipe, doc: &RecipeDoc) -> Result<Self, Diagnostics> {
        let mut faults = Diagnostics::new();
        let opened = match open_model(recipe, doc) {
            Ok(opened) => Some(opened),
            Err(more) => {
                faults.extend(more);
                None
            }
        };
        let device = match device::open(&recipe.run.device, recipe.model.dtype) {
            Ok(device) => Some(device),
            Err(error) => {
                let key = if matches!(error, device::DeviceError::Dtype { .. }) { "model.dtype" } else { "run.device" };
                faults.push(Diagnostic::mistake_from("device", &error).at(doc.span_of(key)));
                None
            }
        };
        let Some(Opened { model, encoder }) = opened else { return Err(faults) };
        faults.extend(length::beyond_positions(recipe, &model, doc));
        let base = doc.span_of("model.base");
        let odd = qwen_tune_qwen::family::warnings(&model.config);
        faults.extend(odd.into_iter().map(|message| Diagnostic::warning("config", message).at(base.clone())));
        let trained = trained(recipe, doc, &model).map_err(|more| faults.extend(more)).ok();
        let whole = Dataset::open(&recipe.data, encoder.clone(), &roots(doc));
        let whole = whole.map_err(|errors| faults.extend(data_faults(&errors, doc, "data"))).ok();
        let eval = recipe.eval.clone().unwrap_or_default();
        let held = held_out(&eval, &encoder, doc).map_err(|more| faults.extend(more)).ok().flatten();
        let (Some(trained), Some(whole), Some(device), false) = (trained, whole, device, faults.has_errors()) else {
            return Err(faults);
        };
        let (data, held) = match held {
            Some(held) => (whole, Some(held)),
            None => training_rows(whole, recipe, doc)?,
        };
        let (audit, told) = audit::first_rows(&data, Part::Train, &recipe.tokens, doc)?;
        faults.extend(told);
        let mut eval_audit = None;
        if let (Some(held), true) = (&held, eval.data.is_some()) {
            let (audit, told) = audit::first_rows(held, Part::Eval, &recipe.tokens, doc)?;
            faults.extend(told);
            eval_audit = Some(audit);
        }
        let faults = faults.stop_on_errors()?;

        let mut choices = Vec::new();
        let mut resolved = recipe.clone();
        let mut choose = |key: &str, value: toml::Value, reason: &str| choices.push(Choice::new(key, value, reason));
        if recipe.run.device == "auto" {
            choose("run.device", device.name.as_str().into(), &device.reason);
        }
        let packing = match recipe.tokens.packing {
            Packing::Auto => {
                choose(
                    "tokens.packing",
                    "best_fit".into(),
                    "documents never see each other, so it has no side effects",
                );
                Packing::BestFit
            }
            packing => packing,
        };
        resolved.tokens.packing = packing;
        // The resolved recipe lies in the run directory, where a path relative to the recipe's own would lead nowhere.
        resolved.model.base = model.path.to_string_lossy().into_owned();
        let directory = match recipe.run.dir.as_ref() {
            Some(dir) => PathBuf::from(dir),
            None => {
                let name = doc.path.as_deref().and_then(Path::file_stem).map_or("run".into(), |s| s.to_string_lossy());
                let dir = Path::new("runs").join(&*name);
                choose("run.dir", dir.to_string_lossy().into_owned().into(), "the recipe's name below `runs`");
                dir
            }
        };
        let length = length::resolve(&recipe.run, &data, &audit);
        for choice in &length.choices {
            choose(&choice.key, choice.value.clone(), &choice.reason);
        }
        let room = room::decide(recipe, &model, &trained, &device);
        if recipe.run.micro_batch.is_auto() {
            choose("run.micro_batch", (room.micro_batch as i64).into(), &room.micro_batch_reason);
        }
        if let Some(reason) = &room.recompute_reason {
            choose("run.recompute", (room.recompute as i64).into(), reason);
        }
        resolved.run.recompute = Recompute::Blocks(room.recompute);
        let eval = held.map(|dataset| EvalSet {
            dataset,
            limit: eval.limit.unwrap_or(usize::MAX),
            micro_batch: room.micro_batch,
            packing,
        });
        Ok(Self {
            recipe: resolved,
            model,
            data,
            eval,
            audit,
            eval_audit,
            trained,
            device,
            directory,
            step_size: length.step_size,
            total_steps: length.total_steps,
            micro_batch: room.micro_batch,
            recompute: room.recompute,
            memory: room.table,
            warnings: faults,
            choices,
        })
    }
}

/// Directories that relative paths are tried from.
pub fn roots(doc: &RecipeDoc) -> Vec<PathBuf> {
    let own = doc.directory().map(Path::to_owned).filter(|p| !p.as_os_str().is_empty());
    std::iter::once(PathBuf::from(".")).chain(own).collect()
}

/// Rows to train on and rows held out of them, where `[eval] fraction` holds some out.
///
/// # Errors
/// If a part would have no row.
pub fn training_rows(
    whole: Dataset,
    recipe: &Recipe,
    doc: &RecipeDoc,
) -> Result<(Dataset, Option<Dataset>), Diagnostics> {
    let eval = recipe.eval.as_ref().filter(|eval| eval.data.is_none());
    let Some(fraction) = eval.and_then(|eval| eval.fraction) else { return Ok((whole, None)) };
    let (kept, held) = whole
        .split(fraction, recipe.run.seed)
        .map_err(|e| Diagnostics::from(data_fault(&e).at(doc.span_of("eval.fraction"))))?;
    Ok((kept, Some(held)))
}

/// Rows that `[eval] data` names.
///
/// # Errors
/// With every fault of their files.
pub fn held_out(eval: &EvalConfig, encoder: &Arc<Encoder>, doc: &RecipeDoc) -> Result<Option<Dataset>, Diagnostics> {
    let Some(data) = &eval.data else { return Ok(None) };
    let sources: Vec<SourceConfig> = match data {
        EvalData::Path(path) => vec![SourceConfig::new(path)],
        EvalData::Sources(list) => list
            .iter()
            .map(|source| match source {
                EvalSource::Path(path) => SourceConfig::new(path),
                EvalSource::Table(config) => config.clone(),
            })
            .collect(),
    };
    Dataset::open(&sources, encoder.clone(), &roots(doc))
        .map(Some)
        .map_err(|errors| data_faults(&errors, doc, "eval.data"))
}
