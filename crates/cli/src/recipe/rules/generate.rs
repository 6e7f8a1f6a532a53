//! Sampling that could choose no token.

use super::Context;
use crate::diagnostic::Diagnostics;

pub(super) fn check(context: &Context<'_>, said: &mut Diagnostics) {
    let sampling = &context.recipe.generate;
    if sampling.max_tokens == 0 {
        said.push(context.out_of_range("generate.max_tokens", 0, "a number of tokens from 1"));
    }
    if !(sampling.temperature >= 0.0 && sampling.temperature.is_finite()) {
        said.push(context.out_of_range(
            "generate.temperature",
            sampling.temperature,
            "a number from 0; 0 always takes the likeliest token",
        ));
    }
    if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
        said.push(context.out_of_range("generate.top_p", sampling.top_p, "a share above 0 and up to 1"));
    }
}
