//! `[lora]` and `[full]` exclude each other.

use super::Context;
use crate::diagnostic::{Diagnostic, Diagnostics};

pub(super) fn check(context: &Context<'_>, said: &mut Diagnostics) {
    if context.recipe.lora.is_some() && context.recipe.full.is_some() {
        said.push(
            Diagnostic::mistake("lora-and-full", "`[lora]` and `[full]` cannot both be there")
                .at(context.doc.key_span_of("full"))
                .label("trains the model's own weights")
                .also(context.doc.key_span_of("lora"), "trains an adapter beside frozen weights")
                .hint("leave one of the two sections out; with neither, an adapter with the defaults is trained"),
        );
    }
}
