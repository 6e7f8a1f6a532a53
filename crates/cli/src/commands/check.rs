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
    if printer.is_json() {
        let value = json!({ "errors": 0, "warnings": plan.warnings.len(), "rows": plan.data.rows(), "steps": plan.total_steps });
        written(printer.json(&value))?;
    } else {
        printer.note(&format!("no mistakes: {} rows, {} steps", count(plan.data.rows()), count(plan.total_steps)));
    }
    Ok(DONE)
}
