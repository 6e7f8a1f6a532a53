//! What a run was made from, and whether a run that is to go on still is made from the same.

use std::path::PathBuf;

use qwen_tune_train::{Checkpoints, Loaded, Provenance};
use qwen_tune_weights::lock::{Cache, Lock};
use serde_json::Value;

use super::{base, failed};
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::plan::Plan;
use crate::recipe::{Changed, RecipeDoc, binding_keys, changed_keys, to_resolved_toml};
use crate::terminal::{Printer, count, rate};

/// The recipe, base and data of a run as they are now.
pub(super) fn provenance(plan: &Plan, doc: &RecipeDoc, base: Option<Lock>) -> Result<Provenance, Diagnostics> {
    let resolved = to_resolved_toml(&plan.recipe, &plan.choices).map_err(|e| failed("run-dir", &e))?;
    let recipe: toml::Table = toml::from_str(&resolved).map_err(|e| failed("run-dir", &e))?;
    let recipe = serde_json::to_value(recipe).map_err(|e| failed("run-dir", &e))?;
    let recipe = binding_keys(&recipe);
    let data = Lock::of(files_of(plan, doc), &Cache::user()).map_err(|e| failed("data", &e))?;
    Ok(Provenance { recipe, base, data })
}

/// Every file that rows come from, by its place in the recipe.
fn files_of(plan: &Plan, doc: &RecipeDoc) -> Vec<(String, PathBuf)> {
    let named = |place: String, path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        (format!("{place}: {name}"), path.clone())
    };
    let mut files = Vec::new();
    for (source, info) in plan.data.sources().enumerate() {
        files.extend(
            info.files.iter().enumerate().map(|(i, path)| named(format!("data[{source}] file {}", i + 1), path)),
        );
    }
    // Rows held out of the training files are in those.
    let own = plan.recipe.eval.as_ref().is_some_and(|eval| eval.data.is_some());
    for (source, info) in plan.eval.iter().filter(|_| own).flat_map(|set| set.dataset.sources()).enumerate() {
        let place = |i: usize| format!("eval.data[{source}] file {}", i + 1);
        files.extend(info.files.iter().enumerate().map(|(i, path)| named(place(i), path)));
    }
    let template = plan.recipe.tokens.template.as_ref().map(|written| doc.resolve_path(written.as_ref()));
    files.extend(template.filter(|path| path.is_file()).map(|path| named("tokens.template".to_owned(), &path)));
    files
}

/// The newest whole checkpoint of the plan's run; damaged ones are warned of.
///
/// # Errors
/// If all are damaged, or with everything that is not what the run was made from.
pub(super) fn checkpoint(
    plan: &Plan,
    doc: &RecipeDoc,
    now: &Provenance,
    printer: &Printer,
) -> Result<Option<Loaded>, Diagnostics> {
    let latest = Checkpoints::latest(&plan.directory).map_err(|error| {
        Diagnostics::from(
            Diagnostic::failure_from("damaged-checkpoint", &error)
                .hint("no checkpoint of the run is whole; begin a new run: `--set run.dir=runs/another-name`"),
        )
    })?;
    let Some(loaded) = latest else { return Ok(None) };
    for damage in &loaded.passed_over {
        printer.diagnostics(
            &Diagnostic::warning("damaged-checkpoint", damage.to_string())
                .hint(format!("the run goes on from step {} instead", loaded.state.step))
                .into(),
        );
    }
    refuse_changed(&loaded.state.made_from, now, doc)?;
    tell(plan, &loaded, printer);
    Ok(Some(loaded))
}

fn refuse_changed(was: &Provenance, now: &Provenance, doc: &RecipeDoc) -> Result<(), Diagnostics> {
    // By way of text, as the other has gone: `serde_json` may read a number off in its last place.
    let recipe: Value = serde_json::from_str(&now.recipe.to_string()).map_err(|e| failed("resume", &e))?;
    let mut faults: Diagnostics =
        changed_keys(&was.recipe, &recipe).iter().map(|changed| changed_key(changed, doc)).collect();
    faults.extend(was.data.differences(&now.data).into_iter().map(|difference| {
        let message = format!("`{}` is not what the run was started with", difference.file);
        // `data[0] file 1: rows.jsonl` stands at `data[0].path`, or where its section names no table.
        let entry = difference.file.split([' ', ':']).next().unwrap_or_default();
        let key = entry.split('[').next().unwrap_or_default();
        let span = doc.span_of(&format!("{entry}.path")).or_else(|| doc.span_of(key));
        base::digests(Diagnostic::mistake("resume-data-changed", message).at(span), &difference)
            .hint("put the file back, or begin a new run: `--set run.dir=runs/another-name`")
    }));
    faults.sort_by_place();
    if let (Some(was), Some(now)) = (&was.base, &now.base) {
        faults.extend(base::changes(was, now, "the run was started with", doc));
    }
    faults.stop_on_errors().map(|_| ())
}

fn changed_key(changed: &Changed, doc: &RecipeDoc) -> Diagnostic {
    let shown = |value: &Option<Value>| value.as_ref().map_or_else(|| "nothing".to_owned(), |v| format!("`{v}`"));
    let message = format!("`{}` is not what the run was started with", changed.key);
    Diagnostic::mistake("resume-recipe-changed", message)
        .at(doc.span_of(&changed.key))
        .found(shown(&changed.is))
        .expected(shown(&changed.was))
        .hint("put it back, or begin a new run: `--set run.dir=runs/another-name`")
}

fn tell(plan: &Plan, loaded: &Loaded, printer: &Printer) {
    let (done, was, is) = (loaded.state.step, loaded.state.total_steps, plan.total_steps);
    printer.note(&format!("resuming after step {}", count(done)));
    if was != is {
        let next = |total: u64| plan.recipe.optimizer.learning_rate * plan.recipe.schedule.factor(done + 1, total);
        printer.warn(&format!(
            "the run is {} steps long now, {} before: the learning rate follows the schedule of the new length from step \
             {} on, {} where it would have been {}",
            count(is),
            count(was),
            count(done + 1),
            rate(next(is)),
            rate(next(was)),
        ));
    }
}
