//! Rows in file order, each whole.

use qwen_tune_data::Overlong;
use serde_json::json;

use super::super::{DONE, Ended, written};
use super::tokens::painted;
use super::{Rows, fault};
use crate::args::DataArgs;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::terminal::Printer;

pub(super) fn show(rows: &Rows, args: &DataArgs, printer: &Printer) -> Ended {
    let Rows { encoder, dataset, .. } = rows;
    let mut samples = dataset.samples();
    if let Some(source) = args.source {
        refuse_unknown(source, dataset.sources().count())?;
        samples.skip_to_source(source);
    }
    samples.skip_rows(args.from);
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
        let title = format!("{file} row {}: {} tokens, {trained} trained", origin.row, tokens.ids.len());
        written(printer.line(&printer.strong(&title)))?;
        let (max, overlong) = (encoder.config().max_length, encoder.config().overlong);
        let pieces = tokens.ids.chunks(max).zip(tokens.trained.chunks(max)).enumerate();
        for (index, (ids, trained)) in pieces {
            if let Some(title) = piece_title(index, overlong, max) {
                written(printer.line(&printer.strong(&title)))?;
            }
            written(printer.data(&painted(encoder, ids, trained, printer)?))?;
        }
    }
    Ok(DONE)
}

/// What becomes of the tokens of a row behind each `max_length` of them.
fn piece_title(index: usize, overlong: Overlong, max: usize) -> Option<String> {
    let key = format!("`tokens.max_length` = {max}");
    match (overlong, index) {
        (_, 0) => None,
        (Overlong::Split, _) => Some(format!("-- cut at {key}: piece {}", index + 1)),
        (Overlong::Truncate, 1) => Some(format!("-- cut at {key}: the model does not see what follows")),
        (Overlong::Drop, 1) => Some(format!("-- longer than {key}: the row is left out")),
        (Overlong::Error, 1) => Some(format!("-- longer than {key}: the run stops here")),
        (Overlong::Truncate | Overlong::Drop | Overlong::Error, _) => None,
    }
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
