//! `model.quantize` freezes what `[full]` would train.

use super::Context;
use crate::diagnostic::Diagnostics;

pub(super) fn check(context: &Context<'_>, said: &mut Diagnostics) {
    let quantize = context.recipe.model.quantize;
    if quantize.is_quantised() && context.recipe.full.is_some() {
        said.push(
            context
                .mistake(
                    "quantize-and-full",
                    "model.quantize",
                    format!("`[full]` cannot train weights in `{}`", quantize.name()),
                )
                .label("only frozen weights are quantised")
                .also(context.doc.key_span_of("full"), "trains the model's own weights")
                .hint("train an adapter beside them: `[lora]` in place of `[full]`")
                .hint("or leave `model.quantize` out"),
        );
    }
}
