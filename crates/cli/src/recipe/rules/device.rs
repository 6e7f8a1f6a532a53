//! Device names, and which of them this binary was built with.

use qwen_tune_train::device::{BACKENDS, DeviceName, NoDevice};

use super::{Context, Purpose};
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::recipe::nearest;

pub(super) fn check(context: &Context<'_>, said: &mut Diagnostics) {
    let device = context.recipe.run.device.as_str();
    if device == "auto" {
        return;
    }
    let name = match device.parse::<DeviceName>() {
        Ok(name) => name.kind,
        Err(NoDevice { kind }) => return said.push(unknown(context, device, kind)),
    };
    match BACKENDS.iter().find(|(known, _)| *known == name) {
        // Said as a warning when the device is looked for.
        Some((_, false)) if context.purpose == Purpose::Check => {}
        Some((backend, false)) => said.push(
            context
                .mistake(
                    "device-not-built",
                    "run.device",
                    format!("device `{device}` is not in this build of qwen-tune"),
                )
                .found(format!("a build with {}", built()))
                .hint(format!("install with it: `cargo install --path . --features {backend}`")),
        ),
        _ => {}
    }
}

/// No device; perhaps its kind is one.
fn unknown(context: &Context<'_>, device: &str, kind: Option<&'static str>) -> Diagnostic {
    let mistake = context
        .mistake("unknown-device", "run.device", format!("there is no device `{device}`"))
        .expected("`auto`, `cpu`, `cuda:0`, `cuda:0,1`, `cuda:all`, `wgpu`, `vulkan` or `ndarray`");
    let name = device.split(':').next().unwrap_or_default();
    let near = match kind {
        Some("cuda") => Some("cuda:0"),
        Some("cpu") if device.contains(',') => {
            return mistake.hint("copies on the CPU are counted from 0: two are `cpu:0,1`");
        }
        Some(kind) => Some(kind),
        None if matches!(name, "gpu" | "nvidia" | "cuda0") => Some("cuda:0"),
        None => nearest(name, ["auto", "gpu", "cpu", "cuda:0", "wgpu", "vulkan", "ndarray"]),
    };
    match near {
        Some(near) => mistake.hint(format!("did you mean `{near}`?")),
        None => mistake,
    }
}

fn built() -> String {
    let names: Vec<String> = BACKENDS.iter().filter(|(_, built)| *built).map(|(name, _)| format!("`{name}`")).collect();
    names.join(", ")
}
