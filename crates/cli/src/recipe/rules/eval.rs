//! Evaluation needs rows that are not trained on.

use qwen_tune_train::EvalData;

use super::Context;
use crate::diagnostic::{Diagnostic, Diagnostics};

pub(super) fn check(context: &Context<'_>, said: &mut Diagnostics) {
    let Some(eval) = &context.recipe.eval else { return };
    let written = |key: &str| context.doc.contains(&format!("eval.{key}"));
    match (written("data"), written("fraction")) {
        (false, false) => said.push(
            Diagnostic::mistake("eval-without-data", "`[eval]` has no rows to evaluate on")
                .at(context.doc.key_span_of("eval"))
                .expected(
                    "`data = \"held-out.parquet\"`, or `fraction = 0.02` to hold out a share of the training rows",
                ),
        ),
        (true, true) => said.push(
            Diagnostic::mistake(
                "eval-data-twice",
                "`[eval]` takes rows of its own or a share of the training rows, not both",
            )
            .at(context.doc.key_span_of("eval.fraction"))
            .label("a share of the training rows")
            .also(context.doc.key_span_of("eval.data"), "rows of its own"),
        ),
        _ => {}
    }
    if let Some(fraction) = eval.fraction
        && !(fraction > 0.0 && fraction < 1.0)
    {
        said.push(context.out_of_range("eval.fraction", fraction, "a share above 0 and below 1, such as 0.02"));
    }
    if matches!(&eval.data, Some(EvalData::Sources(sources)) if sources.is_empty()) {
        said.push(context.mistake("no-data", "eval.data", "`eval.data` is empty").expected("at least one path"));
    }
    let counts = [
        ("eval.every", eval.every == Some(0)),
        ("eval.limit", eval.limit == Some(0)),
        ("eval.early_stop", eval.early_stop == Some(0)),
    ];
    for (key, zero) in counts {
        if zero {
            said.push(context.out_of_range(key, 0, "a whole number from 1"));
        }
    }
    if eval.early_stop.is_some() && !written("every") {
        said.push(
            context
                .mistake(
                    "early-stop-without-every",
                    "eval.early_stop",
                    "`eval.early_stop` counts evaluations, and there is only one during training",
                )
                .hint("add `every = 50`, the steps between evaluations"),
        );
    }
}
