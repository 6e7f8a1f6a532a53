//! Rows in the order of their files: for evaluation and for looking at data.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::batch::Batch;
use crate::dataset::{Candidate, Dataset};
use crate::encode::{Encoded, Tokenised};
use crate::error::DataError;
use crate::pack::lay_out;
use crate::row::{Origin, Row, Sample};
use crate::source::Block;
use crate::tokens::Packing;

/// Every row of a data set once, encoded. Ends after the first error.
pub struct Samples<'a> {
    dataset: &'a Dataset,
    source: usize,
    /// Next block of the source's index.
    block: usize,
    current: Option<Arc<Block>>,
    /// Rows of the current block, the next last.
    rows: Vec<u32>,
    failed: bool,
}

impl<'a> Samples<'a> {
    pub(crate) fn new(dataset: &'a Dataset) -> Self {
        Self { dataset, source: 0, block: 0, current: None, rows: Vec::new(), failed: false }
    }

    /// Goes on with the first row of a source.
    pub fn skip_to_source(&mut self, source: usize) {
        (self.source, self.block) = (source, 0);
        self.current = None;
        self.rows.clear();
    }

    /// The next row as its format reads it, before any template.
    pub fn next_row(&mut self) -> Option<Result<(Origin, Row), DataError>> {
        self.step(Dataset::row)
    }

    /// The next row as a whole, with its text, instead of as samples.
    pub fn next_tokenised(&mut self) -> Option<Result<(Origin, Tokenised), DataError>> {
        self.step(Dataset::tokenise)
    }

    fn step<T>(
        &mut self,
        read: impl Fn(&Dataset, &Candidate) -> Result<T, DataError>,
    ) -> Option<Result<(Origin, T), DataError>> {
        if self.failed {
            return None;
        }
        let result = self.advance()?;
        let result = result.and_then(|candidate| Ok((candidate.origin, read(self.dataset, &candidate)?)));
        self.failed = result.is_err();
        Some(result)
    }

    /// Passes over rows without encoding them; blocks that are passed over as a whole are not even read.
    pub fn skip_rows(&mut self, mut rows: u64) {
        while rows > 0 {
            let whole = self.dataset.indices().get(self.source).and_then(|index| {
                let at = index.blocks().get(self.block).filter(|_| self.rows.is_empty())?;
                Some(index.included(at).count() as u64)
            });
            match whole {
                Some(block) if block <= rows => {
                    rows -= block;
                    self.block += 1;
                }
                _ => match self.advance() {
                    Some(Ok(_)) => rows -= 1,
                    // A block that cannot be read is told of when the next row is asked for.
                    Some(Err(_)) | None => return,
                },
            }
        }
    }

    /// The place of the next row, to be read on any thread.
    pub(crate) fn advance(&mut self) -> Option<Result<Candidate, DataError>> {
        loop {
            let index = self.dataset.indices().get(self.source)?;
            if let (Some(block), Some(row)) = (&self.current, self.rows.pop()) {
                return Some(Ok(index.candidate(&index.blocks()[self.block - 1], block, row)));
            }
            // The old block goes before the new one is decoded.
            self.current = None;
            let Some(at) = index.blocks().get(self.block) else {
                (self.source, self.block) = (self.source + 1, 0);
                continue;
            };
            match self.dataset.read_block(self.source, at.file, at.block) {
                Ok(block) => self.current = Some(block),
                Err(error) => return Some(Err(error)),
            }
            self.rows = index.included(at).collect();
            self.rows.reverse();
            self.block += 1;
        }
    }
}

impl Iterator for Samples<'_> {
    type Item = Result<(Origin, Encoded), DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step(Dataset::encode)
    }
}

/// Every row of a data set once, as micro-batches. Ends after the first error.
pub struct Batches<'a> {
    samples: Samples<'a>,
    rows: usize,
    micro_batch: usize,
    packing: Packing,
    ready: VecDeque<Batch>,
}

impl<'a> Batches<'a> {
    pub(crate) fn new(samples: Samples<'a>, rows: usize, micro_batch: usize, packing: Packing) -> Self {
        Self { samples, rows: rows.max(1), micro_batch, packing, ready: VecDeque::new() }
    }

    fn fill(&mut self) -> Result<(), DataError> {
        let mut samples: Vec<Sample> = Vec::new();
        let mut rows = 0;
        while rows < self.rows {
            let Some(next) = self.samples.next() else { break };
            let (_, encoded) = next?;
            let before = samples.len();
            samples.extend(encoded.samples.into_iter().filter(|s| s.num_trained() > 0));
            rows += usize::from(samples.len() > before);
        }
        let max_length = self.samples.dataset.encoder().config().max_length;
        self.ready.extend(lay_out(&samples, self.packing, max_length, self.micro_batch));
        Ok(())
    }
}

impl Iterator for Batches<'_> {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ready.is_empty()
            && let Err(error) = self.fill()
        {
            return Some(Err(error));
        }
        self.ready.pop_front().map(Ok)
    }
}
