//! `eval`: loss of a model on rows, and log-probabilities token by token.

use std::path::{Path, PathBuf};

use qwen_tune_data::{Batch, Dataset, IGNORE, Packing};
use qwen_tune_model::Pass;
use qwen_tune_train::{EvalSet, StopFlag, batch_logps};
use serde_json::json;

use super::loaded::{LoadedModel, final_adapter, load};
use super::logprobs::Logprobs;
use super::{DONE, Ended, failed, written};
use crate::args::EvalArgs;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::plan::{held_out, roots};
use crate::recipe::{Parsed, Purpose, Recipe, RecipeDoc};
use crate::terminal::{Printer, count};

/// Documents in one forward.
const MICRO_BATCH: usize = 4;

pub(super) fn run(args: &EvalArgs, printer: &Printer) -> Ended {
    let Parsed { recipe, doc, warnings } = Recipe::load(args.recipe.as_deref(), &args.settings(), Purpose::Use)?;
    printer.diagnostics(&warnings);
    let adapter = args.adapter.clone().or_else(|| adapter_of_run(args, &recipe, &doc));
    if let Some(path) = &adapter {
        printer.note(&format!("with the adapter in {}", path.display()));
    }
    let loaded = load(&recipe, &doc, adapter.as_deref())?;
    let dataset = rows(&recipe, &doc, &loaded)?;
    let limit = recipe.eval.as_ref().and_then(|e| e.limit).unwrap_or(usize::MAX);
    let pass = Pass::plain(&loaded.parameters);
    let evaluation = match &args.logprobs {
        None => {
            let set = EvalSet { dataset, limit, micro_batch: MICRO_BATCH, packing: Packing::None };
            let sum = set.loss(&loaded.decoder, &pass, &StopFlag::default()).map_err(|e| failed("data", &e))?;
            sum.expect("invariant: nobody raises this flag").evaluation(0)
        }
        Some(path) => token_by_token(&loaded, &pass, &dataset, limit, path)?,
    };
    if printer.is_json() {
        let value = json!({
            "loss": evaluation.loss,
            "perplexity": evaluation.perplexity,
            "tokens": evaluation.tokens,
            "rows": evaluation.rows,
        });
        written(printer.json(&value))?;
    } else {
        written(printer.line(&format!(
            "loss {:.4}  perplexity {:.3}  {} tokens in {} rows",
            evaluation.loss,
            evaluation.perplexity,
            count(evaluation.tokens as u64),
            count(evaluation.rows as u64),
        )))?;
    }
    Ok(DONE)
}

/// A recipe that was run is evaluated as it was trained.
fn adapter_of_run(args: &EvalArgs, recipe: &Recipe, doc: &RecipeDoc) -> Option<PathBuf> {
    args.recipe.as_ref()?;
    let dir = match recipe.run.dir.as_ref() {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from("runs").join(doc.path.as_deref()?.file_stem()?),
    };
    final_adapter(&dir)
}

fn rows(recipe: &Recipe, doc: &RecipeDoc, loaded: &LoadedModel) -> Result<Dataset, Diagnostics> {
    let eval = recipe.eval.clone().unwrap_or_default();
    if let Some(dataset) = held_out(&eval, Some(&loaded.encoder), doc)? {
        return Ok(dataset);
    }
    match eval.fraction {
        Some(fraction) => {
            let whole = Dataset::open(&recipe.data, loaded.encoder.clone(), &roots(doc))
                .map_err(|errors| crate::plan::data_faults(&errors, doc, "data"))?;
            let split = whole.split(fraction, recipe.run.seed);
            Ok(split.map_err(|e| Diagnostics::from(crate::plan::data_fault(&e).at(doc.span_of("eval.fraction"))))?.1)
        }
        None => Err(Diagnostic::mistake("no-eval-data", "the recipe names no held-out rows")
            .hint("add `[eval]` with `data = \"...\"` or `fraction = 0.05`, or give `--set eval.data=FILE`")
            .into()),
    }
}

/// Every token's log-probability, trained or not; the loss is over the trained ones.
fn token_by_token(
    loaded: &LoadedModel,
    pass: &Pass<'_>,
    dataset: &Dataset,
    limit: usize,
    path: &Path,
) -> Result<qwen_tune_train::Evaluation, Diagnostics> {
    let mut file = Logprobs::create(path).map_err(|e| failed("logprobs", &*e))?;
    let mut sum = qwen_tune_train::LossSum::default();
    for row in dataset.samples().take(limit) {
        let (origin, encoded) = row.map_err(|e| failed("data", &e))?;
        let mut position = 0;
        for sample in &encoded.samples {
            let batch = Batch::from_rows(&[vec![sample]]);
            let mut targets: Vec<i32> = sample.ids[1..].iter().map(|&id| id as i32).collect();
            targets.push(IGNORE);
            let logps = batch_logps(&loaded.decoder, pass, &batch, &targets);
            for (p, logp) in logps[..sample.ids.len() - 1].iter().enumerate() {
                let (id, trained) = (sample.ids[p + 1], sample.trained[p + 1]);
                file.push(origin.row, (position + p + 1) as u32, id, *logp, trained);
                if trained {
                    sum.nats -= f64::from(*logp);
                    sum.tokens += 1;
                }
            }
            position += sample.ids.len();
        }
        sum.rows += 1;
        file.flush_if_full().map_err(|e| failed("logprobs", &*e))?;
    }
    file.finish().map_err(|e| failed("logprobs", &*e))?;
    Ok(sum.evaluation(0))
}
