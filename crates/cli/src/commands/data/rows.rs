//! Rows in file order, each whole.

use serde_json::json;

use super::super::{DONE, Ended, written};
use super::tokens::painted;
use super::{Rows, fault};
use crate::args::DataArgs;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::terminal::{Printer, count};

pub(super) fn show(rows: &Rows, args: &DataArgs, printer: &Printer) -> Ended {
    let Rows { encoder, dataset, .. } = rows;
    let mut samples = dataset.samples();
    if let Some(source) = args.source {
        refuse_unknown(source, dataset.sources().count())?;
        samples.skip_to_source(source);
    }
    samples.skip_rows(args.from);
    let max = encoder.config().max_length;
    for _ in 0..args.rows {
        let Some(row) = samples.next_tokenised() else { break };
        let (origin, tokens) = row.map_err(|e| fault(&e))?;
        if args.source.is_some_and(|source| source != origin.source) {
            break;
        }
        let file = dataset.file(origin).display();
        if printer.is_json() {
            let trained: Vec<u8> = tokens.trained.iter().map(|&t| u8::from(t)).collect();
            let value = json!({
                "row": origin.row,
                "source": file.to_string(),
                "text": tokens.text,
                "token_ids": tokens.ids,
                "trained": trained,
            });
            written(printer.json(&value))?;
            continue;
        }
        let trained = tokens.trained.iter().filter(|trained| **trained).count();
        let mut title = format!("{file} row {}: {} tokens, {trained} trained", origin.row, tokens.ids.len());
        if tokens.ids.len() > max {
            title.push_str(&format!("; `tokens.max_length` is {}", count(max as u64)));
        }
        written(printer.line(&printer.strong(&title)))?;
        written(printer.data(&painted(encoder, &tokens.ids, &tokens.trained, printer)?))?;
    }
    Ok(DONE)
}

fn refuse_unknown(source: usize, sources: usize) -> Result<(), Diagnostics> {
    if source < sources {
        return Ok(());
    }
    Err(Diagnostic::mistake("no-such-source", format!("there is no source {source}"))
        .found(format!("{sources} `[[data]]` entries"))
        .expected(format!("`--source 0` to `--source {}`", sources.saturating_sub(1)))
        .into())
}
