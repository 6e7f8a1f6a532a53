//! Checkpoints that would never be written, or never stay.

use super::Context;
use crate::diagnostic::Diagnostics;

pub(super) fn check(context: &Context<'_>, said: &mut Diagnostics) {
    let checkpoint = &context.recipe.checkpoint;
    if checkpoint.every == Some(0) {
        said.push(context.out_of_range(
            "checkpoint.every",
            0,
            "a number of steps from 1; left out, there is one at the end",
        ));
    }
    if checkpoint.keep == 0 {
        said.push(context.out_of_range(
            "checkpoint.keep",
            0,
            "a whole number from 1: without the last checkpoint a run cannot go on",
        ));
    }
}
