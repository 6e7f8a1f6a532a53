//! `check`: every mistake that can be found without training.

use serde_json::json;

use super::{DONE, Ended, written};
use crate::args::RecipeArgs;
use crate::plan::{Prepared, prepare};
use crate::recipe::Purpose;
use crate::terminal::{Printer, count};

pub(super) fn run(args: &RecipeArgs, printer: &Printer) -> Ended {
    let Prepared { plan, .. } = prepare(args.recipe.as_deref(), &args.settings.to_vec(), Purpose::Check)?;
    printer.diagnostics(&plan.warnings);
    let (rows, seen) = (plan.data.rows(), plan.audit.sources.iter().map(|source| source.rows).sum::<u64>());
    if printer.is_json() {
        let value = json!({ "errors": 0, "warnings": plan.warnings.len(), "rows": rows, "rows_read": seen, "steps": plan.total_steps });
        written(printer.json(&value))?;
    } else {
        let part = if seen < rows { format!(" ({} of them read)", count(seen)) } else { String::new() };
        printer.note(&format!("no mistakes: {} rows{part}, {} steps", count(rows), count(plan.total_steps)));
    }
    Ok(DONE)
}
