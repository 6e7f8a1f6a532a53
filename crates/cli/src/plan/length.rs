//! From epochs, steps or tokens to a number of steps: known before the first one, because the schedule needs it.

use qwen_tune_data::{Dataset, StepSize};
use qwen_tune_qwen::ModelDir;
use qwen_tune_train::RunConfig;

use crate::diagnostic::Diagnostic;
use crate::recipe::{Choice, Recipe, RecipeDoc};

/// Rows of a step when the recipe says nothing.
const GLOBAL_BATCH: usize = 16;

/// The run's length.
pub(super) struct Length {
    pub(super) step_size: StepSize,
    pub(super) total_steps: u64,
    pub(super) choices: Vec<Choice>,
}

/// How much data a step takes.
pub fn step_size(run: &RunConfig) -> StepSize {
    match (run.global_batch, run.global_tokens) {
        (_, Some(tokens)) => StepSize::Tokens(tokens),
        (rows, None) => StepSize::Rows(rows.unwrap_or(GLOBAL_BATCH)),
    }
}

pub(super) fn resolve(run: &RunConfig, data: &Dataset, row_tokens: f64) -> Length {
    let mut choices = Vec::new();
    let step_size = step_size(run);
    if (run.global_batch, run.global_tokens) == (None, None) {
        choices.push(Choice::new("run.global_batch", GLOBAL_BATCH as i64, "the usual number of rows"));
    }
    let (step_rows, step_tokens) = match step_size {
        StepSize::Rows(rows) => (rows as f64, rows as f64 * row_tokens),
        StepSize::Tokens(tokens) => (tokens as f64 / row_tokens, tokens as f64),
    };
    let total_steps = match (run.steps, run.tokens) {
        (Some(steps), _) => steps,
        (None, Some(tokens)) => {
            let steps = (tokens as f64 / step_tokens).ceil().max(1.0) as u64;
            let reason = format!("{tokens} tokens at about {step_tokens:.0} a step");
            choices.push(Choice::new("run.steps", steps as i64, reason));
            steps
        }
        (None, None) => {
            let epochs = run.epochs.unwrap_or(1.0);
            let rows = data.epoch_rows() as f64;
            let steps = (epochs * rows / step_rows).ceil().max(1.0) as u64;
            let written = if run.epochs.is_some() { "" } else { ", the default" };
            let reason = format!("{epochs} epoch(s){written} of {rows} rows at {step_rows:.0} a step");
            choices.push(Choice::new("run.steps", steps as i64, reason));
            steps
        }
    };
    Length { step_size, total_steps, choices }
}

/// Rows longer than the model has positions: beyond them a rotary embedding that scales with the length is another one,
/// and any other was never trained.
pub(super) fn beyond_positions(recipe: &Recipe, model: &ModelDir, doc: &RecipeDoc) -> Option<Diagnostic> {
    let (length, positions) = (recipe.tokens.max_length, model.spec.max_positions);
    let message = format!("`tokens.max_length` is {length}, the model has {positions} positions");
    let at = doc.span_of("tokens.max_length").or_else(|| doc.span_of("model.base"));
    match (length > positions, model.spec.rope.scaling.as_str()) {
        (false, _) => None,
        (true, "dynamic") => Some(Diagnostic::mistake("too-long", message).at(at).hint(format!(
            "dynamic rope scaling cannot be trained beyond them: `--set tokens.max_length={positions}`"
        ))),
        (true, _) => Some(Diagnostic::warning("too-long", message).at(at)),
    }
}
