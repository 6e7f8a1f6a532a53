//! How long a run is: at most one of epochs, steps and tokens, and more than nothing. And which of its steps count as bad.

use super::Context;
use crate::diagnostic::{Diagnostic, Diagnostics};

const LENGTHS: [&str; 3] = ["epochs", "steps", "tokens"];

pub(super) fn check(context: &Context<'_>, said: &mut Diagnostics) {
    let run = &context.recipe.run;
    let written: Vec<&str> = LENGTHS.into_iter().filter(|name| context.doc.contains(&format!("run.{name}"))).collect();
    if let [first, second, rest @ ..] = written.as_slice() {
        let span = |name: &str| context.doc.key_span_of(&format!("run.{name}"));
        let mut mistake = Diagnostic::mistake("run-length", "a run has one length")
            .at(span(second))
            .label("a second length")
            .also(span(first), "a first length")
            .expected("one of `epochs`, `steps` and `tokens`; none means one epoch");
        for name in rest {
            mistake = mistake.also(span(name), "a third length");
        }
        said.push(mistake);
    }
    if let Some(epochs) = run.epochs
        && !(epochs > 0.0 && epochs.is_finite())
    {
        said.push(context.out_of_range("run.epochs", epochs, "a number above 0; fractions are allowed"));
    }
    for (key, count) in [("run.steps", run.steps), ("run.tokens", run.tokens)] {
        if count == Some(0) {
            said.push(context.out_of_range(key, 0, "a whole number from 1"));
        }
    }
    if let Some(spike) = run.spike
        && !(spike > 0.0 && spike.is_finite())
    {
        said.push(context.out_of_range("run.spike", spike, "a number of standard deviations above 0, such as 6"));
    }
}
