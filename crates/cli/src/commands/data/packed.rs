//! The first rows that training lays out: shuffled, packed, with what stands in each.

use std::sync::Arc;

use qwen_tune_data::{Batch, BatchPlan, Cursor, Dataset, Encoder, IGNORE, Sequence, Stream};
use serde_json::json;

use super::super::{DONE, Ended, written};
use super::tokens::painted;
use super::{Rows, fault};
use crate::diagnostic::Diagnostics;
use crate::plan::{step_size, training_rows};
use crate::terminal::Printer;

pub(super) fn show(rows: Rows, wanted: usize, printer: &Printer) -> Ended {
    let Rows { recipe, doc, encoder, dataset } = rows;
    let (dataset, _) = training_rows(dataset, &recipe, &doc)?;
    let max_length = recipe.tokens.max_length;
    let plan = BatchPlan {
        step: step_size(&recipe.run),
        // What a forward takes at a time does not change the rows; one by one they are shown in their order.
        micro_batch: 1,
        seed: recipe.run.seed,
        shuffle: recipe.run.shuffle,
        packing: recipe.tokens.packing,
        max_length,
    };
    let stream = Stream::start(Arc::new(dataset.clone()), plan, Cursor::default()).map_err(|e| fault(&e))?;
    let laid_out = stream.enumerate().flat_map(|(step, batches)| {
        let (batches, error) = match batches {
            Ok(step) => (step.micro_batches, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        batches.into_iter().map(Ok).chain(error.map(Err)).enumerate().map(move |(row, batch)| (step, row, batch))
    });
    for (step, row, batch) in laid_out.take(wanted) {
        let batch = batch.map_err(|e| fault(&e))?;
        let shown = Shown { step: step + 1, row: row + 1, batch: &batch, dataset: &dataset, max_length };
        if printer.is_json() {
            written(printer.json(&shown.json()))?;
        } else {
            written(printer.data(&shown.text(&encoder, printer)?))?;
        }
    }
    Ok(DONE)
}

/// One laid-out row.
struct Shown<'a> {
    step: usize,
    row: usize,
    batch: &'a Batch,
    dataset: &'a Dataset,
    max_length: usize,
}

impl Shown<'_> {
    fn text(&self, encoder: &Encoder, printer: &Printer) -> Result<String, Diagnostics> {
        let segments = &self.batch.sequences;
        let title = format!(
            "row {} of step {}: {} of {} tokens in {} {}, {} trained",
            self.row,
            self.step,
            self.batch.ids.len(),
            self.max_length,
            segments.len(),
            if segments.len() == 1 { "segment" } else { "segments" },
            self.batch.trained,
        );
        let mut out = printer.strong(&title) + "\n";
        for (index, segment) in segments.iter().enumerate() {
            let trained = self.trained(segment);
            let title = format!(
                "-- segment {}: {} tokens, {} trained, {} row {}",
                index + 1,
                segment.len,
                trained.iter().filter(|trained| **trained).count(),
                self.dataset.file(segment.origin).display(),
                segment.origin.row,
            );
            out.push_str(&printer.strong(&title));
            out.push('\n');
            out.push_str(&painted(encoder, self.ids(segment), &trained, printer)?);
        }
        Ok(out)
    }

    fn json(&self) -> serde_json::Value {
        let segments: Vec<_> = self
            .batch
            .sequences
            .iter()
            .map(|segment| {
                let trained: Vec<u8> = self.trained(segment).into_iter().map(u8::from).collect();
                json!({
                    "row": segment.origin.row,
                    "source": self.dataset.file(segment.origin).display().to_string(),
                    "start": segment.start,
                    "token_ids": self.ids(segment),
                    "trained": trained,
                })
            })
            .collect();
        json!({ "step": self.step, "packed_row": self.row, "tokens": self.batch.ids.len(), "segments": segments })
    }

    fn ids(&self, segment: &Sequence) -> &[u32] {
        &self.batch.ids[segment.start..segment.start + segment.len]
    }

    /// Which tokens of a segment are a target of the one before.
    fn trained(&self, segment: &Sequence) -> Vec<bool> {
        let targets = &self.batch.targets[segment.start..segment.start + segment.len];
        std::iter::once(false).chain(targets.iter().map(|target| *target != IGNORE)).take(segment.len).collect()
    }
}
