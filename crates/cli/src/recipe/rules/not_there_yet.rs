//! Settings whose names are fixed and whose code is not written: refused by name, never ignored.

use qwen_tune_train::ObjectiveKind;

use super::Context;
use crate::diagnostic::Diagnostics;

pub(super) fn check(context: &Context<'_>, said: &mut Diagnostics) {
    let recipe = context.recipe;
    let mut refuse = |wanted: bool, key: &str, instead: &str| {
        if wanted {
            let written = context
                .doc
                .span_of(key)
                .map(|span| span.source.text.get(span.range).unwrap_or_default().trim_matches('"').to_owned());
            let message = match written {
                Some(value) if value != "true" && !value.starts_with('[') && value.len() < 40 => {
                    format!("`{key} = {value}` is not there yet")
                }
                _ => format!("`{key}` is not there yet"),
            };
            said.push(context.mistake("not-there-yet", key, message).hint(instead));
        }
    };

    let built = matches!(recipe.objective.kind, ObjectiveKind::Sft | ObjectiveKind::Cpt);
    refuse(!built, "objective.kind", "the objectives so far are `sft` and `cpt`");
    if let Some(lora) = &recipe.lora {
        refuse(lora.dora, "lora.dora", "`rslora = true` costs nothing and often gains more");
        refuse(lora.plus_ratio.is_some(), "lora.plus_ratio", "leave it out: A and B share one learning rate");
        refuse(lora.init == "pissa", "lora.init", "use `\"default\"`, or the directory of an adapter to go on from");
    }
    refuse(recipe.report.tensorboard, "report.tensorboard", "`metrics.jsonl` has every number of the run");
    refuse(recipe.report.html, "report.html", "`metrics.jsonl` has every number of the run");
}
