//! Shares and step counts of `[schedule]` that do not fit a run.

use super::Context;
use crate::diagnostic::Diagnostics;

pub(super) fn check(context: &Context<'_>, said: &mut Diagnostics) {
    let schedule = &context.recipe.schedule;
    let warmup = schedule.warmup;
    if !(warmup >= 0.0 && warmup.is_finite()) || (warmup >= 1.0 && warmup.fract() != 0.0) {
        said.push(context.out_of_range(
            "schedule.warmup",
            warmup,
            "a share of the run below 1, or a whole number of steps",
        ));
    } else if let Some(steps) = context.recipe.run.steps
        && warmup >= 1.0
        && warmup >= steps as f64
    {
        said.push(
            context
                .warning(
                    "warmup-never-ends",
                    "schedule.warmup",
                    "the warmup is as long as the run, so the learning rate never reaches its height",
                )
                .label(format!("{warmup} steps of warmup"))
                .also(context.doc.span_of("run.steps"), format!("{steps} steps in all")),
        );
    }
    for (key, share) in [("schedule.min_ratio", schedule.min_ratio), ("schedule.decay", schedule.decay)] {
        if !(0.0..=1.0).contains(&share) {
            said.push(context.out_of_range(key, share, "a share from 0 to 1"));
        }
    }
}
