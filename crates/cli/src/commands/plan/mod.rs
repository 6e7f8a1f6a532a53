//! `plan`: what each setting became, and why; what is trained; what it will take.

mod table;

use std::collections::BTreeMap;

use qwen_tune_qwen::memory::{self, Learned};
use serde_json::{Value, json};

use super::{DONE, Ended, written};
use crate::args::PlanArgs;
use crate::plan::{Estimate, Plan, Prepared, prepare};
use crate::recipe::Purpose;
use crate::terminal::{Printer, Table, bytes, count, duration, percent, short_count};

pub(super) fn run(args: &PlanArgs, printer: &Printer) -> Ended {
    if args.table {
        written(if printer.is_json() { printer.json(&table::as_json()) } else { printer.data(&table::text()) })?;
        return Ok(DONE);
    }
    let Prepared { plan, .. } = prepare(args.recipe.as_deref(), &args.settings.to_vec(), Purpose::Train)?;
    printer.diagnostics(&plan.warnings);
    let estimate = plan.estimate()?;
    if printer.is_json() {
        written(printer.json(&as_json(&plan, estimate.as_ref())))?;
        return Ok(DONE);
    }
    let sections = [settings(&plan), trained(&plan), memory_of(&plan), time(&plan, estimate.as_ref())];
    written(printer.data(&sections.join("\n")))?;
    Ok(DONE)
}

fn settings(plan: &Plan) -> String {
    let mut table = Table::new(["setting", "value", "because"]);
    for choice in &plan.choices {
        table.row([choice.key.clone(), choice.value.to_string(), choice.reason.clone()]);
    }
    table.render(0)
}

/// Trained tensors by the last part of their module's name, or of their own, and whether they are trained themselves beside
/// adapters.
fn targets(plan: &Plan) -> BTreeMap<(&str, bool), (u64, u64)> {
    let learned = &plan.cost.learned;
    let mut targets = BTreeMap::new();
    for tensor in &plan.model.inventory {
        let numbers = learned.numbers_of(tensor);
        let is_whole = matches!(learned, Learned::Adapters { .. }) && learned.is_base(tensor);
        let name = tensor.module.as_deref().unwrap_or_else(|| tensor.name.trim_end_matches(".weight"));
        if numbers > 0 {
            let (tensors, sum) = targets.entry((name.rsplit('.').next().unwrap_or(name), is_whole)).or_insert((0, 0));
            *tensors += 1;
            *sum += numbers;
        }
    }
    targets
}

fn trained(plan: &Plan) -> String {
    let mut table = Table::new(["trained", ">modules", ">parameters"]);
    for ((name, is_whole), (tensors, numbers)) in targets(plan) {
        let name = if is_whole { format!("{name} (whole)") } else { name.to_owned() };
        table.row([name, count(tensors), count(numbers)]);
    }
    let (trained, total) =
        (plan.cost.learned.numbers(&plan.model.inventory), memory::parameters(&plan.model.inventory));
    let share = percent(trained as f64 / total.max(1) as f64);
    table.row(["in all".to_owned(), String::new(), count(trained)]);
    format!(
        "{}{share} of the base's {}; {} FLOP a token{}\n",
        table.render(0),
        short_count(total),
        short_count(plan.cost.flops.model() as u64),
        match plan.cost.flops.recompute {
            0.0 => String::new(),
            _ => format!(", {} with what is run again", short_count(plan.cost.flops.total() as u64)),
        },
    )
}

fn memory_of(plan: &Plan) -> String {
    let of_each = plan.device.count() > 1 && !plan.device.on_host;
    let mut table = Table::new([if of_each { "memory of each device" } else { "memory" }, ">bytes"]);
    for (name, size) in &plan.cost.memory.rows {
        table.row([(*name).to_owned(), bytes(*size)]);
    }
    table.row(["peak (not all at a time)".to_owned(), bytes(plan.cost.memory.total())]);
    if let Some(budget) = plan.cost.memory.budget {
        table.row(["may be taken".to_owned(), bytes(budget)]);
    }
    if plan.cost.memory.host > 0 {
        table.row(["in host memory meanwhile".to_owned(), bytes(plan.cost.memory.host)]);
    }
    let formats = formats(plan).map_or(String::new(), |formats| format!("{formats}\n"));
    format!("{}{formats}largest micro-batch: {} tokens\n", table.render(0), count(plan.cost.worst_tokens as u64))
}

/// How what is trained is held, where it is not all f32.
fn formats(plan: &Plan) -> Option<String> {
    let moments = "moments of matrices are 8-bit codes";
    let values = "trained matrices are bf16, rounded stochastically";
    let formats = plan.cost.formats;
    let told: Vec<&str> = [(formats.coded_moments, moments), (formats.narrow_values, values)]
        .into_iter()
        .filter_map(|(is_so, told)| is_so.then_some(told))
        .collect();
    (!told.is_empty()).then(|| told.join("; "))
}

fn time(plan: &Plan, estimate: Option<&Estimate>) -> String {
    let steps = format!(
        "{} steps of about {} tokens on {}",
        count(plan.total_steps),
        count(plan.cost.step_tokens as u64),
        plan.device.name
    );
    let Some(e) = estimate else { return format!("{steps}; not measured, since it does not fit\n") };
    let eval = if e.eval > 0.0 { format!(", {} an evaluation", seconds(e.eval)) } else { String::new() };
    format!(
        "{steps}: about {}\n{} a step, {} tokens a second{eval}; measured now on {} tokens of the data\n",
        duration(e.total),
        seconds(e.step),
        count(e.tokens_per_second.round() as u64),
        count(e.measured_tokens as u64),
    )
}

fn seconds(value: f64) -> String {
    if value < 10.0 { format!("{value:.2} s") } else { duration(value) }
}

fn as_json(plan: &Plan, estimate: Option<&Estimate>) -> Value {
    let choices: Vec<_> =
        plan.choices.iter().map(|c| json!({ "key": c.key, "value": c.value, "reason": c.reason })).collect();
    let rows: Vec<_> =
        plan.cost.memory.rows.iter().map(|(name, bytes)| json!({ "part": name, "bytes": bytes })).collect();
    let targets: Vec<_> = targets(plan)
        .into_iter()
        .map(|((name, is_whole), (modules, numbers))| {
            let mut target = json!({ "target": name, "modules": modules, "parameters": numbers });
            if is_whole {
                target["whole"] = json!(true);
            }
            target
        })
        .collect();
    json!({
        "steps": plan.total_steps,
        "step_tokens": plan.cost.step_tokens,
        "device": plan.device.name,
        "devices": plan.device.count(),
        "micro_batch": plan.micro_batch,
        "micro_batch_tokens": plan.cost.worst_tokens,
        "recompute": plan.recompute,
        "ffn_chunk": plan.ffn_chunk,
        "offload": plan.offload,
        "choices": choices,
        "parameters": memory::parameters(&plan.model.inventory),
        "trained_parameters": plan.cost.learned.numbers(&plan.model.inventory),
        "targets": targets,
        "flops_per_token": plan.cost.flops.model(),
        "flops_per_token_executed": plan.cost.flops.total(),
        "memory": rows,
        "memory_bytes": plan.cost.memory.total(),
        "memory_budget_bytes": plan.cost.memory.budget,
        "host_memory_bytes": plan.cost.memory.host,
        "time": estimate.map(|e| json!({
            "seconds": e.total,
            "step_seconds": e.step,
            "eval_seconds": e.eval,
            "tokens_per_second": e.tokens_per_second,
            "measured_tokens": e.measured_tokens,
        })),
    })
}
