//! `devices`: what this binary can compute on.

use qwen_tune_train::device::{DEVICES, DeviceError, open};
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
        list.push(json!({ "device": name, "state": state }));
        table.row([(*name).to_owned(), state]);
    }
    if printer.is_json() {
        written(printer.json(&list))?;
    } else {
        written(printer.data(&table.render(0)))?;
    }
    Ok(DONE)
}
