//! `devices`: what this binary can compute on.

use qwen_tune_train::device::{DEVICES, DeviceError, Processor, open, processor};
use serde_json::json;

use super::{DONE, Ended, written};
use crate::args::DevicesArgs;
use crate::terminal::{Printer, Table};

pub(super) fn run(_: &DevicesArgs, printer: &Printer) -> Ended {
    let mut table = Table::new(["device", "state"]);
    let mut list = Vec::new();
    for name in DEVICES {
        let state = match open(name, qwen_tune_model::ComputeDtype::Auto) {
            Ok(device) if *name == "auto" => format!("{}: {}", device.name, device.reason),
            Ok(_) => "built in".to_owned(),
            Err(DeviceError::NotBuilt { feature, .. }) => format!("build with `--features {feature}`"),
            Err(error) => error.to_string(),
        };
        let mut entry = json!({ "device": name, "state": state });
        let mut cell = state;
        if let Some(processor) = processor().filter(|_| *name == "cpu") {
            entry["cores"] = processor.cores.into();
            entry["products"] = processor.products.into();
            entry["bf16_products"] = processor.bf16.into();
            cell = format!("{cell}: {}", sentence(processor));
        }
        list.push(entry);
        table.row([(*name).to_owned(), cell]);
    }
    if printer.is_json() {
        written(printer.json(&list))?;
    } else {
        written(printer.data(&table.render(0)))?;
    }
    Ok(DONE)
}

fn sentence(Processor { cores, products, bf16 }: Processor) -> String {
    let cores = if cores == 1 { "1 core".to_owned() } else { format!("{cores} cores") };
    match bf16 {
        Some(set) => format!("{cores}; products by {products}, from bf16 by {set}"),
        None => format!("{cores}; products by {products}, from bf16 widened to f32"),
    }
}
