//! Numbers of `[lora]` that no adapter can have.

use super::Context;
use crate::diagnostic::Diagnostics;

pub(super) fn check(context: &Context<'_>, said: &mut Diagnostics) {
    let Some(lora) = &context.recipe.lora else { return };
    if lora.rank == 0 {
        said.push(context.out_of_range("lora.rank", lora.rank, "a whole number from 1; 8 to 64 are usual"));
    }
    if !(lora.alpha > 0.0 && lora.alpha.is_finite()) {
        said.push(context.out_of_range("lora.alpha", lora.alpha, "a number above 0; `2 * rank` is usual"));
    }
    if !(0.0..1.0).contains(&lora.dropout) {
        said.push(context.out_of_range("lora.dropout", lora.dropout, "a probability from 0 up to, not including, 1"));
    }
}
