//! An adapter to go on from brings its own shape.

use super::Context;
use crate::diagnostic::Diagnostics;

/// Keys of `[lora]` that an existing adapter decides.
pub(in crate::recipe) const SHAPE: [&str; 6] = ["rank", "alpha", "target", "layers", "rslora", "modules_to_save"];

pub(super) fn check(context: &Context<'_>, said: &mut Diagnostics) {
    let Some(lora) = &context.recipe.lora else { return };
    if matches!(lora.init.as_str(), "default" | "pissa") {
        return;
    }
    for key in SHAPE.map(|name| format!("lora.{name}")).iter().filter(|key| context.doc.contains(key)) {
        said.push(
            context
                .warning("adapter-decides", key, format!("`{key}` is taken from the adapter that `lora.init` names"))
                .label("not used")
                .also(context.doc.span_of("lora.init"), "the adapter to go on from"),
        );
    }
}
