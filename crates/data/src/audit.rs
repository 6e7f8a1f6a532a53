//! What the first rows of each source become, counted, before anything is trained on them.

use serde::Serialize;

use crate::dataset::Dataset;
use crate::error::DataError;
use crate::evaluate::Samples;

/// Counts over the first rows of a data set.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Audit {
    /// One entry a source.
    pub sources: Vec<SourceAudit>,
}

/// Counts over the first rows of a source.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct SourceAudit {
    /// Rows looked at.
    pub rows: u64,
    /// Sequences made from them.
    pub samples: u64,
    /// Tokens of those sequences.
    pub tokens: u64,
    /// Tokens that carry loss.
    pub trained: u64,
    /// Rows that lost their end to `max_length`.
    pub truncated: u64,
    /// Rows with nothing to train on: too long, or all masked.
    pub dropped: u64,
    /// Tokens of the longest row, before `max_length`.
    pub longest: usize,
    /// Tokens of each sequence that has any with loss.
    #[serde(skip)]
    pub lengths: Vec<usize>,
}

impl SourceAudit {
    /// Trained tokens as a share of all.
    #[must_use]
    pub fn trained_share(&self) -> f64 {
        if self.tokens == 0 { 0.0 } else { self.trained as f64 / self.tokens as f64 }
    }
}

impl Audit {
    pub(crate) fn of(dataset: &Dataset, rows: u64) -> Result<Self, DataError> {
        let mut sources = Vec::new();
        let mut samples = Samples::new(dataset);
        for source in 0..dataset.indices().len() {
            samples.skip_to_source(source);
            let mut audit = SourceAudit::default();
            for row in samples.by_ref().take(usize::try_from(rows).unwrap_or(usize::MAX)) {
                let (origin, encoded) = row?;
                if origin.source != source {
                    break;
                }
                audit.rows += 1;
                audit.truncated += u64::from(encoded.truncated);
                audit.longest = audit.longest.max(encoded.tokens);
                let mut trained = 0;
                for sample in &encoded.samples {
                    if sample.num_trained() > 0 {
                        audit.lengths.push(sample.ids.len());
                    }
                    audit.samples += 1;
                    audit.tokens += sample.ids.len() as u64;
                    trained += sample.num_trained() as u64;
                }
                audit.trained += trained;
                audit.dropped += u64::from(trained == 0);
            }
            sources.push(audit);
        }
        Ok(Self { sources })
    }

    /// An error for every source of which no row looked at could be trained on.
    #[must_use]
    pub fn refusals(&self, dataset: &Dataset) -> Vec<DataError> {
        let masked = |audit: &SourceAudit| audit.rows > 0 && audit.trained == 0;
        self.sources
            .iter()
            .zip(dataset.sources())
            .enumerate()
            .filter(|(_, (audit, _))| masked(audit))
            .map(|(source_index, (audit, info))| DataError::AllMasked {
                source_index,
                path: info.files[0].clone(),
                rows: audit.rows,
            })
            .collect()
    }
}
