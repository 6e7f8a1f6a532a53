//! Exports that cannot be, or would overwrite each other.

use qwen_tune_qwen::export::ExportKind;

use super::Context;
use crate::diagnostic::{Diagnostic, Diagnostics};

pub(super) fn check(context: &Context<'_>, said: &mut Diagnostics) {
    let exports = &context.recipe.export;
    for (index, export) in exports.iter().enumerate() {
        let key = |name: &str| format!("export[{index}].{name}");
        if !context.doc.contains(&key("to")) {
            continue;
        }
        if export.to == ExportKind::Gguf {
            if let Err(error) = export.quants() {
                said.push(context.mistake("quant", &key("quant"), error.to_string()));
            }
        } else if !export.quant.is_empty() {
            said.push(
                context
                    .mistake("quant-without-gguf", &key("quant"), "only GGUF files are quantised")
                    .hint("leave `quant` out"),
            );
        }
        if matches!(export.to, ExportKind::Adapter | ExportKind::AdapterGguf) && context.recipe.full.is_some() {
            said.push(
                context
                    .mistake("no-adapter", &key("to"), "there is no adapter to export")
                    .also(context.doc.key_span_of("full"), "trains the model's own weights")
                    .hint("export `merged` or `gguf`: the trained model itself"),
            );
        }
        let is_whole = context.recipe.lora.as_ref().is_some_and(|lora| !lora.modules_to_save.is_empty());
        if export.to == ExportKind::AdapterGguf && is_whole {
            said.push(
                context
                    .mistake("whole-in-adapter-gguf", &key("to"), "a GGUF adapter holds no whole tensors")
                    .also(context.doc.key_span_of("lora.modules_to_save"), "trains some")
                    .hint("export `gguf`: the merged model, with everything that was trained"),
            );
        }
        if let Some(first) = exports[..index]
            .iter()
            .position(|other| other.to == export.to)
            .filter(|first| context.doc.contains(&format!("export[{first}].to")))
        {
            said.push(
                Diagnostic::mistake("export-twice", "two exports would be written to the same place")
                    .at(context.doc.span_of(&key("to")))
                    .label("the second")
                    .also(context.doc.span_of(&format!("export[{first}].to")), "the first"),
            );
        }
    }
}
