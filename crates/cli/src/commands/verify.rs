//! `inspect --verify`: digests taken again and held against those that were written down.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use qwen_tune_qwen::{LOCK_FILE, ModelDir};
use qwen_tune_train::Checkpoints;
use qwen_tune_weights::lock::{Cache, Lock};
use serde_json::json;

use super::base::{MergedLock, digests};
use super::loaded::read_adapter;
use super::{DONE, Ended, failed, run_dir, written};
use crate::args::InspectArgs;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::recipe::{Purpose, Recipe};
use crate::terminal::{Printer, Table};

/// One lock held against files.
struct Compared {
    /// What it is the lock of.
    what: String,
    directory: PathBuf,
    expected: Lock,
    found: Lock,
}

pub(super) fn run(args: &InspectArgs, printer: &Printer) -> Ended {
    let path = &args.path;
    let compared = if path.join(LOCK_FILE).is_file() {
        vec![merged(path)?]
    } else if path.join("adapter_config.json").is_file() {
        vec![adapter(path, args.model.as_deref())?]
    } else if run_dir::holds_run(path) {
        of_run(path, args.model.as_deref())?
    } else {
        return Err(no_lock(path));
    };
    let mut table = Table::new(["of", "file", "sha256", ""]);
    let mut faults = Diagnostics::new();
    for Compared { what, directory, expected, found } in &compared {
        let differences = expected.differences(found);
        for (name, digest) in &expected.files {
            let same = differences.iter().all(|d| d.file != *name);
            let verdict = if same { "as locked" } else { "CHANGED" };
            table.row([what.clone(), name.clone(), digest.chars().take(16).collect(), verdict.to_owned()]);
        }
        faults.extend(differences.iter().map(|difference| {
            let message = format!("`{}` of the {what} is not what it was", directory.join(&difference.file).display());
            digests(Diagnostic::failure("lock-differs", message), difference)
        }));
    }
    if printer.is_json() {
        let list: Vec<_> = compared
            .iter()
            .map(|c| {
                json!({
                    "what": c.what,
                    "directory": c.directory,
                    "digest": c.expected.digest,
                    "files": c.expected.files,
                    "differences": c.expected.differences(&c.found),
                })
            })
            .collect();
        written(printer.json(&json!({ "verified": list, "matches": faults.is_empty() })))?;
    } else {
        written(printer.data(&table.render(0)))?;
    }
    if faults.is_empty() {
        return Ok(DONE);
    }
    // The differences are in the JSON already.
    if printer.is_json() { Ok(faults.exit_code()) } else { Err(faults) }
}

fn no_lock(path: &Path) -> Diagnostics {
    let message = format!("nothing with a lock lies at `{}`", path.display());
    Diagnostic::mistake("no-lock", message)
        .expected("an adapter, a merged model or a run that was made with `model.lock = true`, the default")
        .into()
}

fn merged(path: &Path) -> Result<Compared, Diagnostics> {
    let file = path.join(LOCK_FILE);
    let text = std::fs::read(&file).map_err(|e| failed("lock", &e))?;
    let lock: MergedLock = serde_json::from_slice(&text).map_err(|e| {
        Diagnostics::from(Diagnostic::mistake("bad-lock", format!("`{}` is malformed: {e}", file.display())))
    })?;
    let expected = lock.model;
    // Its own list of files: a damaged model may not open any more. Names that lead elsewhere are not followed.
    let inside = |name: &&String| Path::new(name).file_name() == Some(OsStr::new(name));
    let files = expected.files.keys().filter(inside).map(|name| (name.clone(), path.join(name)));
    let files = files.filter(|(_, path)| path.is_file());
    let found = Lock::of(files, &Cache::none()).map_err(|e| failed("lock", &e))?;
    Ok(Compared { what: "merged model".to_owned(), directory: path.to_owned(), expected, found })
}

fn adapter(path: &Path, model: Option<&Path>) -> Result<Compared, Diagnostics> {
    let adapter = read_adapter(path)?;
    let expected = adapter.config.base_lock().ok_or_else(|| no_lock(path))?;
    against_base(expected, model, adapter.config.base_model_name_or_path.as_deref())
}

/// A run's base, and that its newest checkpoint is whole, which reading it shows.
fn of_run(path: &Path, model: Option<&Path>) -> Result<Vec<Compared>, Diagnostics> {
    let latest =
        Checkpoints::latest(path).map_err(|e| failed("damaged-checkpoint", &e))?.ok_or_else(|| no_lock(path))?;
    if let Some(damage) = latest.passed_over.first() {
        return Err(failed("damaged-checkpoint", damage));
    }
    let base = latest.state.made_from.base.ok_or_else(|| no_lock(path))?;
    let resolved = Recipe::load(Some(&path.join("recipe.resolved.toml")), &[], Purpose::Use);
    let said = resolved.map(|parsed| parsed.recipe.model.base).ok();
    Ok(vec![against_base(base, model, said.as_deref())?])
}

fn against_base(expected: Lock, model: Option<&Path>, said: Option<&str>) -> Result<Compared, Diagnostics> {
    let directory = model.map_or_else(|| PathBuf::from(said.unwrap_or_default()), Path::to_owned);
    let model = ModelDir::open(&directory).map_err(|errors| {
        errors
            .iter()
            .map(|e| Diagnostic::mistake_from("model", e).hint("name the base's directory: `--model DIR`"))
            .collect::<Diagnostics>()
    })?;
    let found = model.lock(&Cache::none()).map_err(|e| failed("lock", &e))?;
    Ok(Compared { what: "base model".to_owned(), directory, expected, found })
}
