//! Paths that are empty: they would name the working directory by accident.

use qwen_tune_qwen::Auto;

use super::Context;
use crate::diagnostic::Diagnostics;

pub(super) fn check(context: &Context<'_>, said: &mut Diagnostics) {
    let recipe = context.recipe;
    let mut refuse = |key: &str, expected: &str| {
        said.push(context.mistake("empty-path", key, format!("`{key}` is empty")).expected(expected));
    };
    // A stand-in for a missing key is empty too, and not the user's.
    if recipe.model.base.trim().is_empty() && context.doc.contains("model.base") {
        refuse("model.base", "the directory of a checkpoint");
    }
    if matches!(&recipe.run.dir, Auto::Value(dir) if dir.trim().is_empty()) {
        refuse("run.dir", "a directory for the run, or `\"auto\"`");
    }
    if recipe.lora.as_ref().is_some_and(|lora| lora.init.trim().is_empty()) {
        refuse("lora.init", "`\"default\"` or the directory of an adapter");
    }
    if recipe.tokens.template.as_deref().is_some_and(|template| template.trim().is_empty()) {
        refuse("tokens.template", "the path of a Jinja template, or the template itself");
    }
}
