//! `data`: rows as the model sees them.

use qwen_tune_data::{Dataset, Encoder};
use serde_json::json;

use super::{DONE, Ended, failed, written};
use crate::args::DataArgs;
use crate::diagnostic::Diagnostics;
use crate::plan::{Opened, data_faults, open_model, roots};
use crate::recipe::{Parsed, Purpose, Recipe};
use crate::terminal::{Printer, Table, count};

pub(super) fn run(args: &DataArgs, printer: &Printer) -> Ended {
    let Parsed { recipe, doc, warnings } =
        Recipe::load(args.recipe.as_deref(), &args.settings.to_vec(), Purpose::Train)?;
    printer.diagnostics(&warnings);
    let Opened { encoder, .. } = open_model(&recipe, &doc)?;
    let dataset = Dataset::open(&recipe.data, encoder.clone(), &roots(&doc))
        .map_err(|errors| data_faults(&errors, &doc, "data"))?;
    if args.stats { stats(&dataset, args, printer) } else { rows(&dataset, &encoder, args, printer) }
}

fn rows(dataset: &Dataset, encoder: &Encoder, args: &DataArgs, printer: &Printer) -> Ended {
    let mut samples = dataset.samples();
    for _ in 0..args.rows {
        let Some(row) = samples.next_tokenised() else { break };
        let (origin, tokens) = row.map_err(|e| failed("data", &e))?;
        if printer.is_json() {
            let trained: Vec<u8> = tokens.trained.iter().map(|&t| u8::from(t)).collect();
            let value = json!({
                "row": origin.row,
                "source": dataset.file(origin).display().to_string(),
                "text": tokens.text,
                "token_ids": tokens.ids,
                "trained": trained,
            });
            written(printer.json(&value))?;
        } else {
            let title = format!("{} row {}", dataset.file(origin).display(), origin.row);
            written(printer.line(&printer.strong(&title)))?;
            written(printer.line(&painted(encoder, &tokens.ids, &tokens.trained, printer)?))?;
        }
    }
    Ok(DONE)
}

/// The text of a row with its trained stretches between `⟦` and `⟧`, so that it reads without colour too.
fn painted(encoder: &Encoder, ids: &[u32], trained: &[bool], printer: &Printer) -> Result<String, Diagnostics> {
    let mut out = String::new();
    let mut at = 0;
    while at < ids.len() {
        let end = (at..ids.len()).find(|&i| trained[i] != trained[at]).unwrap_or(ids.len());
        let text = encoder.decode(&ids[at..end], false).map_err(|e| failed("tokenizer", &e))?;
        if trained[at] {
            out.push_str(&printer.strong(&format!("⟦{text}⟧")));
        } else {
            out.push_str(&printer.faint(&text));
        }
        at = end;
    }
    Ok(out)
}

fn stats(dataset: &Dataset, args: &DataArgs, printer: &Printer) -> Ended {
    let audit = dataset.audit(u64::MAX).map_err(|e| failed("data", &e))?;
    if args.json {
        written(printer.json(&audit))?;
        return Ok(DONE);
    }
    let mut table =
        Table::new(["source", ">rows", ">tokens", ">trained", ">share", ">longest", ">truncated", ">without loss"]);
    for (info, source) in dataset.sources().zip(&audit.sources) {
        table.row([
            info.files.first().map(|f| f.display().to_string()).unwrap_or_default(),
            count(source.rows),
            count(source.tokens),
            count(source.trained),
            format!("{:.1}%", 100.0 * source.trained_share()),
            count(source.longest as u64),
            count(source.truncated),
            count(source.dropped),
        ]);
    }
    written(printer.data(&table.render(0)))?;
    Ok(DONE)
}
