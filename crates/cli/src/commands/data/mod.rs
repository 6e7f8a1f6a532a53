//! `data`: rows as the model sees them, as training lays them out, or in numbers.

mod packed;
mod rows;
mod stats;
mod tokens;

use std::sync::Arc;

use qwen_tune_data::{DataError, Dataset, Encoder};

use super::Ended;
use crate::args::DataArgs;
use crate::diagnostic::Diagnostics;
use crate::plan::{Opened, data_fault, data_faults, open_model, roots};
use crate::recipe::{Parsed, Purpose, Recipe, RecipeDoc};
use crate::terminal::Printer;

/// A recipe with its rows.
struct Rows {
    recipe: Recipe,
    doc: RecipeDoc,
    encoder: Arc<Encoder>,
    dataset: Dataset,
}

pub(super) fn run(args: &DataArgs, printer: &Printer) -> Ended {
    let Parsed { recipe, doc, warnings } =
        Recipe::load(args.recipe.as_deref(), &args.settings.to_vec(), Purpose::Train)?;
    printer.diagnostics(&warnings);
    let Opened { encoder, .. } = open_model(&recipe, &doc)?;
    let dataset = Dataset::open(&recipe.data, encoder.clone(), &roots(&doc))
        .map_err(|errors| data_faults(&errors, &doc, "data"))?;
    let rows = Rows { recipe, doc, encoder, dataset };
    match args {
        DataArgs { stats: true, .. } => stats::show(&rows, printer),
        DataArgs { packed: true, .. } => packed::show(rows, args.rows, printer),
        _ => rows::show(&rows, args, printer),
    }
}

/// A row that cannot be shown.
fn fault(error: &DataError) -> Diagnostics {
    data_fault(error).into()
}
