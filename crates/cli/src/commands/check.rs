//! `check`: every mistake that can be found without training.

use serde_json::{Value, json};

use super::{DONE, Ended, written};
use crate::args::RecipeArgs;
use crate::plan::{PackingCheck, Prepared, prepare};
use crate::recipe::Purpose;
use crate::terminal::{Printer, count};

pub(super) fn run(args: &RecipeArgs, printer: &Printer) -> Ended {
    let Prepared { plan, .. } = prepare(args.recipe.as_deref(), &args.settings.to_vec(), Purpose::Check)?;
    printer.diagnostics(&plan.warnings);
    let packing = plan.check_packing()?;
    let (rows, seen) = (plan.data.rows(), plan.audit.sources.iter().map(|source| source.rows).sum::<u64>());
    if printer.is_json() {
        let value = json!({
            "errors": 0,
            "warnings": plan.warnings.len(),
            "rows": rows,
            "rows_read": seen,
            "steps": plan.total_steps,
            "packing": packing_as_json(&packing),
        });
        written(printer.json(&value))?;
    } else {
        let part = if seen < rows { format!(" ({} of them read)", count(seen)) } else { String::new() };
        printer.note(&format!("no mistakes: {} rows{part}, {} steps", count(rows), count(plan.total_steps)));
        if let Some(said) = packing_as_text(&packing) {
            printer.note(&said);
        }
    }
    Ok(DONE)
}

fn packing_as_json(packing: &PackingCheck) -> Value {
    match packing {
        PackingCheck::NotPacked => Value::Null,
        PackingCheck::Skipped(reason) => json!({ "skipped": reason }),
        PackingCheck::Same(seen) => {
            json!({ "rows": seen.rows, "tokens": seen.tokens, "largest_difference": seen.largest })
        }
    }
}

fn packing_as_text(packing: &PackingCheck) -> Option<String> {
    match packing {
        PackingCheck::NotPacked => None,
        PackingCheck::Skipped(reason) => Some(format!("packing was not compared: {reason}")),
        PackingCheck::Same(seen) => Some(format!(
            "packed = separate: largest difference {} nats over {} tokens of {} rows",
            if seen.largest == 0.0 { "0".to_owned() } else { format!("{:.1e}", seen.largest) },
            count(seen.tokens as u64),
            count(seen.rows as u64)
        )),
    }
}
