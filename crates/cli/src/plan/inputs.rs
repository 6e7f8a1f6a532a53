//! Everything a recipe names, opened; what is wrong with any of it is told at once.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use qwen_tune_data::{Audit, Dataset, Encoder, LossOn, SourceConfig};
use qwen_tune_model::ComputeDtype;
use qwen_tune_qwen::{ModelDir, Role};
use qwen_tune_train::device::{self, DeviceError, OpenDevice};
use qwen_tune_train::threads::{self, Threads};
use qwen_tune_train::{EvalConfig, EvalData, EvalSource, ObjectiveKind};

use super::trained::{self, trained};
use super::{Part, Trained, audit, data_fault, data_faults, length, model_faults};
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::recipe::{Purpose, Recipe, RecipeDoc};

/// What a plan is made from.
pub(super) struct Inputs {
    pub(super) model: ModelDir,
    pub(super) device: OpenDevice,
    pub(super) threads: Threads,
    pub(super) trained: Trained,
    /// Rows to train on.
    pub(super) data: Dataset,
    /// Rows held out.
    pub(super) held: Option<Dataset>,
    /// What the first rows of every source look like.
    pub(super) audit: Audit,
    /// The same of held-out rows that are not a part of the training rows.
    pub(super) eval_audit: Option<Audit>,
    pub(super) warnings: Diagnostics,
}

impl Inputs {
    pub(super) fn open(recipe: &Recipe, doc: &RecipeDoc, purpose: Purpose) -> Result<Self, Diagnostics> {
        let threads = threads::begin(recipe.run.threads);
        let mut faults = Diagnostics::new();
        let model = faults.keep(open_directory(recipe, doc));
        let encoder = faults.keep(open_encoder(recipe, model.as_ref(), doc)).map(Arc::new);
        let device = faults.keep(open_device(recipe, doc, purpose));
        let trained = model.as_ref().and_then(|model| {
            faults.extend(length::beyond_positions(recipe, model, doc));
            let odd = qwen_tune_qwen::family::warnings(&model.config);
            let base = doc.span_of("model.base");
            faults.extend(odd.into_iter().map(|message| Diagnostic::warning("config", message).at(base.clone())));
            faults.extend(quantised_twice(recipe, model, doc));
            faults.keep(trained(recipe, doc, model))
        });
        if let Some((device, said)) = &device {
            // A device that stands in for another says nothing about the other's number format.
            faults.extend(said.is_none().then(|| trained::narrow_master_in_f32(recipe, doc, device)).flatten());
        }
        let eval = recipe.eval.clone().unwrap_or_default();
        let whole = faults.keep(open_data(&recipe.data, encoder.as_ref(), doc, "data")).flatten();
        let held = faults.keep(held_out(&eval, encoder.as_ref(), doc)).flatten();
        let look = |data: &Dataset, part, faults: &mut Diagnostics| {
            let (audit, told) = faults.keep(audit::first_rows(data, part, &recipe.tokens, doc, purpose))?;
            faults.extend(told);
            Some(audit)
        };
        let eval_audit = held.as_ref().and_then(|held| look(held, Part::Eval, &mut faults));
        let rows = whole.and_then(|whole| match held {
            Some(held) => Some((whole, Some(held))),
            None => faults.keep(training_rows(whole, recipe, doc)),
        });
        let audit = rows.as_ref().and_then(|(data, _)| look(data, Part::Train, &mut faults));
        let (Some(model), Some(device), Some(trained), Some((data, held)), Some(audit), false) =
            (model, device, trained, rows, audit, faults.has_errors())
        else {
            return Err(faults);
        };
        let (device, said) = device;
        faults.extend(said);
        Ok(Self { model, device, threads, trained, data, held, audit, eval_audit, warnings: faults })
    }
}

/// The model of a recipe and the encoder that goes with it.
pub struct Opened {
    /// The directory.
    pub model: ModelDir,
    /// Tokenizer, template and `[tokens]`.
    pub encoder: Arc<Encoder>,
}

/// Opens what `[model]` and `[tokens]` name. Whoever uses a model begins here, and a plan in [`Inputs::open`]: threads are
/// there from then on.
///
/// # Errors
/// With every fault of directory, weights, tokenizer and template.
pub fn open_model(recipe: &Recipe, doc: &RecipeDoc) -> Result<Opened, Diagnostics> {
    threads::begin(recipe.run.threads);
    let mut faults = Diagnostics::new();
    let model = faults.keep(open_directory(recipe, doc));
    let encoder = faults.keep(open_encoder(recipe, model.as_ref(), doc));
    match (model, encoder) {
        (Some(model), Some(encoder)) => Ok(Opened { model, encoder: Arc::new(encoder) }),
        _ => Err(faults),
    }
}

/// A file in blocks of few bits is trained in those; to quantise it once more would lose twice.
fn quantised_twice(recipe: &Recipe, model: &ModelDir, doc: &RecipeDoc) -> Option<Diagnostic> {
    let quantize = recipe.model.quantize;
    let linear = model.inventory.iter().filter(|tensor| matches!(tensor.role, Role::Linear(_) | Role::Experts));
    let types = linear.filter_map(|tensor| Some(model.blocks(tensor)?.ty()));
    let ty = types.filter(|_| quantize.is_quantised()).find(|ty| ty.block() > 1)?;
    Some(
        Diagnostic::mistake("quantised-twice", format!("`{}` is in blocks already", model.path.display()))
            .at(doc.span_of("model.quantize"))
            .label(format!("cannot make {} of {ty}", quantize.name()))
            .hint("leave `model.quantize` out: the file's own blocks are trained in place")
            .hint("or name the model it was made from in `model.base`"),
    )
}

fn open_directory(recipe: &Recipe, doc: &RecipeDoc) -> Result<ModelDir, Diagnostics> {
    let path = doc.resolve_path(recipe.model.base.as_ref());
    ModelDir::open(&path).map_err(|errors| model_faults(&errors, doc))
}

/// The encoder of a model's directory. Where the model itself cannot be opened, data are still held against its
/// tokenizer, if the directory is there at all.
fn open_encoder(recipe: &Recipe, model: Option<&ModelDir>, doc: &RecipeDoc) -> Result<Encoder, Diagnostics> {
    let path = doc.resolve_path(recipe.model.base.as_ref());
    let path = model.map_or(path, |model| model.side_directory().to_owned());
    if model.is_none() && !path.is_dir() {
        // Said already.
        return Err(Diagnostics::new());
    }
    let mut tokens = recipe.tokens.clone();
    if recipe.objective.kind == ObjectiveKind::Cpt {
        // Continued pre-training learns every token of every row.
        tokens.loss_on = LossOn::All;
    }
    if let Some(template) = &tokens.template {
        let path = doc.resolve_path(Path::new(template));
        if path.is_file() {
            tokens.template = Some(path.to_string_lossy().into_owned());
        }
    }
    let vocabulary = model.map_or(i32::MAX as usize, |model| model.spec.vocab_size);
    Encoder::from_dir(&path, &tokens, vocabulary).map_err(|e| {
        Diagnostics::from(data_fault(&e).at(doc.span_of("tokens.template").or_else(|| doc.span_of("model.base"))))
    })
}

/// The device with what there is to say about it. A check needs none: what this machine lacks, another may have.
fn open_device(
    recipe: &Recipe,
    doc: &RecipeDoc,
    purpose: Purpose,
) -> Result<(OpenDevice, Option<Diagnostic>), Diagnostics> {
    let refused = |error: &DeviceError| {
        let key = if matches!(error, DeviceError::Dtype { .. }) { "model.dtype" } else { "run.device" };
        device_fault(error).at(doc.span_of(key))
    };
    match device::open(&recipe.run.device, recipe.model.dtype) {
        Ok(device) => Ok((device, None)),
        Err(error) if purpose == Purpose::Check && error.is_of_this_machine() => {
            let stand_in = device::open("cpu", ComputeDtype::Auto).map_err(|_| Diagnostics::from(refused(&error)))?;
            let message = format!("{error}; everything else was checked");
            Ok((stand_in, Some(Diagnostic::warning("device", message).at(doc.span_of("run.device")))))
        }
        Err(error) => Err(refused(&error).into()),
    }
}

/// A device that cannot be used, and what to do about it.
pub fn device_fault(error: &DeviceError) -> Diagnostic {
    let mistake = Diagnostic::mistake_from("device", error);
    match error.hint() {
        Some(hint) => mistake.hint(hint).hint("or do without the device: `--set run.device=cpu`"),
        None => mistake,
    }
}

/// Opens sources. Without an encoder nothing can be made of their rows, but files, formats and columns are looked at.
fn open_data(
    sources: &[SourceConfig],
    encoder: Option<&Arc<Encoder>>,
    doc: &RecipeDoc,
    key: &str,
) -> Result<Option<Dataset>, Diagnostics> {
    let roots = roots(doc);
    match encoder {
        Some(encoder) => Dataset::open(sources, encoder.clone(), &roots).map(Some),
        None => Dataset::check(sources, &roots).map(|()| None),
    }
    .map_err(|errors| data_faults(&errors, doc, key))
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
pub fn held_out(
    eval: &EvalConfig,
    encoder: Option<&Arc<Encoder>>,
    doc: &RecipeDoc,
) -> Result<Option<Dataset>, Diagnostics> {
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
    open_data(&sources, encoder, doc, "eval.data")
}

/// Directories that relative paths are tried from.
pub fn roots(doc: &RecipeDoc) -> Vec<PathBuf> {
    let own = doc.directory().map(Path::to_owned).filter(|p| !p.as_os_str().is_empty());
    std::iter::once(PathBuf::from(".")).chain(own).collect()
}
