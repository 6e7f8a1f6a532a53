//! Device names, and which of them this binary was built with.

use qwen_tune_train::device::BACKENDS;

use super::{Context, Purpose};
use crate::diagnostic::Diagnostics;
use crate::recipe::nearest;

pub(super) fn check(context: &Context<'_>, said: &mut Diagnostics) {
    let device = context.recipe.run.device.as_str();
    if device == "auto" {
        return;
    }
    let (name, number) = device.split_once(':').map_or((device, None), |(name, number)| (name, Some(number)));
    let numbered = number.is_none_or(|number| name == "cuda" && number.parse::<u16>().is_ok());
    match BACKENDS.iter().find(|(known, _)| *known == name) {
        Some((_, true)) if numbered => {}
        // Said as a warning when the device is looked for.
        Some((_, false)) if numbered && context.purpose == Purpose::Check => {}
        Some((backend, false)) if numbered => said.push(
            context
                .mistake(
                    "device-not-built",
                    "run.device",
                    format!("device `{device}` is not in this build of qwen-tune"),
                )
                .found(format!("a build with {}", built()))
                .hint(format!("install with it: `cargo install --path . --features {backend}`")),
        ),
        other => {
            let mut mistake = context
                .mistake("unknown-device", "run.device", format!("there is no device `{device}`"))
                .expected("`auto`, `cpu`, `cuda:0`, `wgpu`, `vulkan` or `ndarray`");
            let names = ["auto", "gpu", "cpu", "cuda:0", "wgpu", "vulkan", "ndarray"];
            let near = match other {
                Some((known, _)) => Some(if *known == "cuda" { "cuda:0" } else { known }),
                None if matches!(name, "gpu" | "nvidia" | "cuda0") => Some("cuda:0"),
                None => nearest(name, names),
            };
            if let Some(near) = near {
                mistake = mistake.hint(format!("did you mean `{near}`?"));
            }
            said.push(mistake);
        }
    }
}

fn built() -> String {
    let names: Vec<String> = BACKENDS.iter().filter(|(_, built)| *built).map(|(name, _)| format!("`{name}`")).collect();
    names.join(", ")
}
