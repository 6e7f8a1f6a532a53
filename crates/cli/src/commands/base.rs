//! The base model's lock: what is made from a base says which one it was, and is not used with another unasked.

use std::path::Path;

use qwen_tune_qwen::{LOCK_FILE, ModelDir};
use qwen_tune_train::Artefact;
use qwen_tune_weights::WeightError;
use qwen_tune_weights::atomic::write_file;
use qwen_tune_weights::lock::{Cache, Difference, Lock};
use qwen_tune_weights::peft::Adapter;
use serde::{Deserialize, Serialize};

use super::failed;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::recipe::{Recipe, RecipeDoc};
use crate::terminal::{Printer, bytes};

/// Bytes that take more than a second to hash.
const LONG: u64 = 2 << 30;

/// The content of a merged model's lock file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct MergedLock {
    /// The model it was merged from.
    pub(super) base: Lock,
    /// Its own files.
    pub(super) model: Lock,
}

/// The base's lock, unless the recipe does without.
pub(super) fn lock(model: &ModelDir, recipe: &Recipe) -> Result<Option<Lock>, Diagnostics> {
    let lock = recipe.model.lock.then(|| model.lock(&Cache::user()));
    lock.transpose().map_err(|e| failed("lock", &e))
}

/// Says so before the lock keeps a person waiting.
pub(super) fn announce(model: &ModelDir, recipe: &Recipe, printer: &Printer) {
    let files = model.defining_files().unwrap_or_default();
    let unread: u64 = files.iter().map(|(_, path)| Cache::user().bytes_to_read(path)).sum();
    if recipe.model.lock && unread > LONG {
        printer.note(&format!("taking the SHA-256 of {} of the base; remembered until they change", bytes(unread)));
    }
}

/// Writes the lock into what training makes; an adapter to go on from has to be of this base.
pub(super) fn seal(artefact: &mut Artefact, lock: Option<&Lock>, doc: &RecipeDoc) -> Result<(), Diagnostics> {
    let Artefact::Adapter { config, .. } = artefact else { return Ok(()) };
    if let (Some(before), Some(now)) = (config.base_lock(), lock) {
        stop_on(changes(&before, now, "the adapter in `lora.init` was trained on", doc))?;
    }
    config.set_base_lock(lock);
    Ok(())
}

/// Refuses a base that the adapter was not trained on; an adapter without a lock goes with any that it fits.
pub(super) fn refuse_other(
    adapter: &Adapter,
    model: &ModelDir,
    recipe: &Recipe,
    doc: &RecipeDoc,
) -> Result<(), Diagnostics> {
    match adapter.config.base_lock() {
        Some(before) => refuse_changed(&before, model, recipe, "the adapter was trained on", doc),
        None => Ok(()),
    }
}

/// Refuses a base that is not the one of a lock.
pub(super) fn refuse_changed(
    before: &Lock,
    model: &ModelDir,
    recipe: &Recipe,
    made: &str,
    doc: &RecipeDoc,
) -> Result<(), Diagnostics> {
    let Some(now) = lock(model, recipe)? else { return Ok(()) };
    stop_on(changes(before, &now, made, doc))
}

fn stop_on(mistakes: Vec<Diagnostic>) -> Result<(), Diagnostics> {
    mistakes.into_iter().collect::<Diagnostics>().stop_on_errors().map(|_| ())
}

/// One mistake for each file that differs.
pub(super) fn changes(before: &Lock, now: &Lock, made: &str, doc: &RecipeDoc) -> Vec<Diagnostic> {
    let tell = |difference: Difference| {
        let message = format!("`{}` of the base model is not the one {made}", difference.file);
        digests(Diagnostic::mistake("base-changed", message).at(doc.span_of("model.base")), &difference)
            .hint("name the base that it was: `--set model.base=DIR`")
            .hint("or go on with this one deliberately: `--set model.lock=false`")
    };
    before.differences(now).into_iter().map(tell).collect()
}

/// Both digests.
pub(super) fn digests(diagnostic: Diagnostic, difference: &Difference) -> Diagnostic {
    let shown =
        |digest: &Option<String>| digest.as_ref().map_or_else(|| "no such file".to_owned(), |d| format!("sha256 {d}"));
    diagnostic.found(shown(&difference.found)).expected(shown(&difference.expected))
}

/// Writes the lock of a merged model in `directory`.
pub(super) fn write_merged(directory: &Path, base: Lock) -> Result<(), Diagnostics> {
    let merged = ModelDir::open(directory)
        .map_err(|errors| errors.iter().map(|e| Diagnostic::failure_from("export", e)).collect::<Diagnostics>())?;
    let model = merged.lock(&Cache::none()).map_err(|e| failed("export", &e))?;
    let text = serde_json::to_vec_pretty(&MergedLock { base, model }).map_err(|e| failed("export", &e))?;
    let path = directory.join(LOCK_FILE);
    write_file(&path, |file| std::io::Write::write_all(file, &text).map_err(WeightError::io("write", &path)))
        .map_err(|e| failed("export", &e))
}
