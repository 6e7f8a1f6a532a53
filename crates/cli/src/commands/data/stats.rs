//! All rows in numbers, and what the audit finds in them.

use qwen_tune_data::{AuditLimits, SourceAudit};

use super::super::{DONE, Ended, written};
use super::{Rows, fault};
use crate::plan::{Part, audit_report};
use crate::terminal::{Printer, Table, count, percent};

/// Characters of the longest bar.
const BAR: u64 = 40;

pub(super) fn show(rows: &Rows, printer: &Printer) -> Ended {
    let Rows { recipe, doc, dataset, .. } = rows;
    let audit = dataset.audit(AuditLimits::ALL).map_err(|e| fault(&e))?;
    if printer.is_json() {
        written(printer.json(&audit))?;
        return Ok(DONE);
    }
    let mut table =
        Table::new(["source", ">rows", ">tokens", ">trained", ">share", ">truncated", ">without loss", ">duplicates"]);
    for source in &audit.sources {
        table.row([
            source.file.display().to_string(),
            count(source.rows),
            count(source.tokens),
            count(source.trained),
            percent(source.trained_share()),
            count(source.truncated),
            count(source.dropped),
            // A lower bound where there were too many rows to remember.
            format!("{}{}", count(source.duplicates), if source.duplicates_missed { "+" } else { "" }),
        ]);
    }
    written(printer.data(&table.render(0)))?;
    for source in &audit.sources {
        written(printer.data(&lengths(source, recipe.tokens.max_length)))?;
    }
    let found = audit_report(&audit, Part::Train, &recipe.tokens, doc);
    if !found.is_empty() {
        written(printer.data(&format!("\n{}", found.render(printer.look()))))?;
    }
    Ok(DONE)
}

/// How long the rows of a source are.
fn lengths(source: &SourceAudit, max_length: usize) -> String {
    let [half, most, nearly_all] = [0.5, 0.9, 0.99].map(|share| count(source.row_lengths.quantile(share) as u64));
    let share = source.overlong as f64 / source.rows.max(1) as f64;
    let mut out = format!(
        "\n{}: tokens of a row\n  p50 {half}, p90 {most}, p99 {nearly_all}, longest {}\n  `tokens.max_length` = {} is \
         shorter than {} rows ({}) by {} tokens in all\n",
        source.file.display(),
        count(source.longest as u64),
        count(max_length as u64),
        count(source.overlong),
        percent(share),
        count(source.cut_tokens),
    );
    let bars = source.row_lengths.bars();
    let highest = bars.iter().map(|bar| bar.rows).max().unwrap_or(0).max(1);
    let mut table = Table::new([">", "", ">", ""]);
    for bar in bars {
        let length = if bar.rows == 0 { 0 } else { (bar.rows * BAR / highest).max(1) };
        let bar_text = "#".repeat(length as usize);
        table.row([count(bar.from as u64), format!("to {}", count(bar.to as u64)), count(bar.rows), bar_text]);
    }
    out.push_str(&table.render(2));
    out
}
