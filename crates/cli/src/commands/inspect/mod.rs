//! `inspect`: what lies at a path.

mod gguf;
mod layers;

use std::path::Path;

use qwen_tune_qwen::{HeadSpec, ModelDir, TensorSpec, inventory, memory};
use qwen_tune_train::Checkpoints;
use qwen_tune_weights::peft::{Adapter, FullTensor};
use qwen_tune_weights::{Checkpoint, TensorSource};
use serde_json::{Value, json};

use super::{DONE, Ended, failed, run_dir, verify, written};
use crate::args::InspectArgs;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::terminal::{Printer, Table, bytes, count};

pub(super) fn run(args: &InspectArgs, printer: &Printer) -> Ended {
    if args.verify {
        return verify::run(args, printer);
    }
    let path = &args.path;
    let (value, text) = if path.join("config.json").is_file() {
        model(path)?
    } else if path.join("adapter_config.json").is_file() {
        adapter(path)?
    } else if run_dir::holds_run(path) {
        finished_run(path)?
    } else if gguf::is_gguf(path) {
        gguf::describe(path)?
    } else if path.is_file() || path.join("model.safetensors").is_file() {
        tensors(path)?
    } else {
        let message = format!("nothing known lies at `{}`", path.display());
        return Err(Diagnostic::mistake("unknown-path", message)
            .expected("a model directory, a GGUF or safetensors file, an adapter or a run directory")
            .into());
    };
    if printer.is_json() {
        written(printer.json(&value))?;
    } else {
        written(printer.data(&text))?;
    }
    Ok(DONE)
}

fn model(path: &Path) -> Result<(Value, String), Diagnostics> {
    let model = ModelDir::open(path)
        .map_err(|errors| errors.iter().map(|e| Diagnostic::mistake_from("model", e)).collect::<Diagnostics>())?;
    let spec = &model.spec;
    let list = inventory(spec);
    let total: u64 = list.iter().map(TensorSpec::elements).sum();
    let stored: u64 = model.checkpoint.tensors().iter().map(|t| t.bytes() as u64).sum();
    let head = match spec.head {
        HeadSpec::Tied => "tied to the embedding",
        HeadSpec::Own => "own",
    };
    let mut table = Table::new(["", ""]);
    table.row(["model type".to_owned(), spec.model_type.clone()]);
    let active = memory::active_parameters(spec, &list);
    let of_a_token = if active < total { format!(", {} of them for a token", count(active)) } else { String::new() };
    table.row(["parameters".to_owned(), format!("{}{of_a_token}", count(total))]);
    table.row(["on disk".to_owned(), format!("{} in {} file(s)", bytes(stored), model.checkpoint.shards().len())]);
    table.row(["hidden".to_owned(), count(spec.hidden_size as u64)]);
    table.row(["vocabulary".to_owned(), format!("{}, head {head}", count(spec.vocab_size as u64))]);
    table.row(["positions".to_owned(), format!("{}, rope {}", count(spec.max_positions as u64), spec.rope.scaling)]);
    for row in layers::rows(&spec.layers) {
        table.row(row);
    }
    let passengers = model.passenger_groups();
    for (index, group) in passengers.iter().enumerate() {
        let title = if index == 0 { "carried on" } else { "" };
        let parameters = count(group.parameters);
        let size = bytes(group.bytes);
        let text = format!("{}: {} tensors, {parameters} parameters, {size}", group.purpose, group.tensors);
        table.row([title.to_owned(), text]);
    }
    let value = json!({
        "kind": "model",
        "spec": spec,
        "parameters": total,
        "active_parameters": active,
        "bytes": stored,
        "files": model.checkpoint.shards().len(),
        "passengers": model.passengers,
        "passenger_groups": passengers,
    });
    Ok((value, table.render(0)))
}

fn adapter(path: &Path) -> Result<(Value, String), Diagnostics> {
    let adapter = Adapter::read(path)
        .map_err(|errors| errors.iter().map(|e| Diagnostic::mistake_from("bad-adapter", e)).collect::<Diagnostics>())?;
    let values: usize = adapter.pairs.iter().map(|p| p.a.len() + p.b.len()).sum();
    let norm = |v: &[f32]| v.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    let mut table = Table::new(["module", ">rank", ">scale", ">out x in", ">|A|", ">|B|"]);
    for p in &adapter.pairs {
        table.row([
            p.module.clone(),
            p.rank.to_string(),
            format!("{:.4}", p.scale),
            format!("{} x {}", p.out_features, p.in_features),
            format!("{:.3}", norm(&p.a)),
            format!("{:.3}", norm(&p.b)),
        ]);
    }
    let base = adapter.config.base_model_name_or_path.clone().unwrap_or_default();
    let head = format!("adapter for {base}: {} modules, {} values\n", adapter.pairs.len(), count(values as u64));
    let modules: Vec<Value> = adapter
        .pairs
        .iter()
        .map(|p| json!({ "module": p.module, "rank": p.rank, "scale": p.scale, "out": p.out_features, "in": p.in_features }))
        .collect();
    let mut value = json!({ "kind": "adapter", "base": base, "parameters": values, "modules": modules });
    if adapter.others.is_empty() {
        return Ok((value, head + &table.render(0)));
    }
    let mut whole = Table::new(["whole tensor", "type", ">shape"]);
    for FullTensor { info, .. } in &adapter.others {
        whole.row([info.name.clone(), info.dtype.to_string(), format!("{:?}", info.shape)]);
    }
    let listed = |FullTensor { info, .. }: &FullTensor| json!({ "tensor": info.name, "dtype": info.dtype.to_string(), "shape": info.shape });
    value["whole"] = adapter.others.iter().map(listed).collect();
    Ok((value, [head, table.render(0), whole.render(0)].join("\n")))
}

fn finished_run(path: &Path) -> Result<(Value, String), Diagnostics> {
    let latest = Checkpoints::latest(path).map_err(|e| failed("inspect", &e))?;
    let metrics = std::fs::read_to_string(path.join("metrics.jsonl")).unwrap_or_default();
    let events: Vec<Value> = metrics.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let last = |kind: &str| events.iter().rev().find(|e| e["event"] == kind).cloned();
    let first_eval = events.iter().find(|e| e["event"] == "eval").cloned();
    let state = latest.as_ref().map(|l| &l.state);
    let value = json!({
        "kind": "run",
        "step": state.map(|s| s.step),
        "total_steps": state.map(|s| s.total_steps),
        "tokens": state.map(|s| s.tokens),
        "skipped": state.map(|s| s.skipped),
        "last_step": last("step"),
        "first_eval": first_eval,
        "last_eval": last("eval"),
        "adapter": path.join("adapter").is_dir(),
    });
    let mut table = Table::new(["", ""]);
    if let Some(state) = state {
        table.row(["steps".to_owned(), format!("{} of {}", count(state.step), count(state.total_steps))]);
        table.row(["tokens".to_owned(), count(state.tokens)]);
        if state.skipped > 0 {
            table.row(["not applied".to_owned(), format!("{} bad steps", count(state.skipped))]);
        }
    }
    for damage in latest.iter().flat_map(|latest| &latest.passed_over) {
        table.row(["damaged".to_owned(), damage.to_string()]);
    }
    for (name, event) in
        [("last loss", last("step")), ("first evaluation", first_eval), ("last evaluation", last("eval"))]
    {
        if let Some(loss) = event.as_ref().and_then(|e| e["loss"].as_f64()) {
            table.row([name.to_owned(), format!("{loss:.4}")]);
        }
    }
    for part in ["adapter", "export"] {
        if path.join(part).is_dir() {
            table.row([part.to_owned(), path.join(part).display().to_string()]);
        }
    }
    Ok((value, table.render(0)))
}

fn tensors(path: &Path) -> Result<(Value, String), Diagnostics> {
    let file = Checkpoint::open(path).map_err(|e| Diagnostics::from(Diagnostic::mistake_from("tensors", &e)))?;
    let mut table = Table::new(["tensor", "dtype", ">shape"]);
    for info in file.tensors() {
        table.row([info.name.clone(), info.dtype.name().to_owned(), format!("{:?}", info.shape)]);
    }
    let list: Vec<Value> =
        file.tensors().iter().map(|t| json!({ "name": t.name, "dtype": t.dtype.name(), "shape": t.shape })).collect();
    Ok((json!({ "kind": "tensors", "tensors": list }), table.render(0)))
}
