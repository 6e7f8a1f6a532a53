//! `plan`: what each setting became, and why.

use serde_json::json;

use super::{DONE, Ended, written};
use crate::args::RecipeArgs;
use crate::plan::{Prepared, prepare};
use crate::terminal::{Printer, Table, bytes, count};

pub(super) fn run(args: &RecipeArgs, printer: &Printer) -> Ended {
    let Prepared { plan, .. } = prepare(args.recipe.as_deref(), &args.settings.to_vec())?;
    printer.diagnostics(&plan.warnings);
    let memory = &plan.memory;
    if printer.is_json() {
        let choices: Vec<_> =
            plan.choices.iter().map(|c| json!({ "key": c.key, "value": c.value, "reason": c.reason })).collect();
        let rows: Vec<_> = memory.rows.iter().map(|(name, bytes)| json!({ "part": name, "bytes": bytes })).collect();
        let value = json!({
            "steps": plan.total_steps,
            "device": plan.device.name,
            "micro_batch": plan.micro_batch,
            "recompute": plan.recompute,
            "choices": choices,
            "memory": rows,
            "memory_bytes": memory.total(),
        });
        written(printer.json(&value))?;
        return Ok(DONE);
    }
    let mut table = Table::new(["setting", "value", "because"]);
    for choice in &plan.choices {
        table.row([choice.key.clone(), choice.value.to_string(), choice.reason.clone()]);
    }
    written(printer.data(&table.render(0)))?;
    let mut table = Table::new(["memory", ">bytes"]);
    for (name, size) in &memory.rows {
        table.row([(*name).to_owned(), bytes(*size)]);
    }
    table.row(["in all (estimate)".to_owned(), bytes(memory.total())]);
    written(printer.data(&format!("\n{}", table.render(0))))?;
    written(printer.line(&format!("\n{} steps on {}", count(plan.total_steps), plan.device.name)))?;
    Ok(DONE)
}
