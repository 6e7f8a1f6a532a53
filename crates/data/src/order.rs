//! Which row comes when: a pure function of the seed and of how many rows each source has given so far.
//!
//! Nothing is replayed to resume. A source's rows are passed through again and again; each pass permutes the blocks,
//! groups them into windows of at least [`WINDOW`] rows, and shuffles the rows of a window. So a position leads to its
//! row by looking up its window, and only that window's blocks are in memory. Which source comes next is drawn without
//! replacement, in proportion to what each has left in the epoch.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::dataset::{Candidate, Dataset};
use crate::error::DataError;
use crate::hash::{below, hash, shuffle};
use crate::row::Origin;
use crate::source::{Block, Blocks};
use crate::split::Split;

/// Rows shuffled among one another, at least; a window is always whole blocks.
pub const WINDOW: u64 = 4096;

/// Separates the uses of the hash.
const SOURCES: u64 = 1;
const BLOCKS: u64 = 2;
const ROWS: u64 = 3;

/// A place in the endless order of rows. Saved with checkpoints; small, and the same whatever was packed how.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// Epochs finished.
    pub epoch: u64,
    /// Progress of each source; empty at the very start.
    pub sources: Vec<Progress>,
}

/// Progress of one source within the epoch.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Rows given in this epoch.
    pub taken: u64,
    /// Rows that it gives in every epoch.
    pub quota: u64,
}

impl Cursor {
    /// The place after `rows` rows, for where a cursor was not kept.
    pub(crate) fn seek(quotas: &[u64], seed: u64, shuffle: bool, rows: u64) -> Self {
        let total: u64 = quotas.iter().sum::<u64>().max(1);
        let mut cursor = Self::start(quotas);
        cursor.epoch = rows / total;
        for _ in 0..rows % total {
            cursor.draw(seed, shuffle);
        }
        cursor
    }

    fn start(quotas: &[u64]) -> Self {
        Self { epoch: 0, sources: quotas.iter().map(|&quota| Progress { taken: 0, quota }).collect() }
    }

    /// Epochs done, with the part of the current one.
    #[must_use]
    pub fn epochs(&self) -> f64 {
        let quota: u64 = self.sources.iter().map(|s| s.quota).sum();
        let taken: u64 = self.sources.iter().map(|s| s.taken).sum();
        self.epoch as f64 + taken as f64 / quota.max(1) as f64
    }

    /// Draws the source of the next row and moves on; returns the source and how many rows it gave before, over all
    /// epochs.
    fn draw(&mut self, seed: u64, shuffle: bool) -> (usize, u64) {
        let left: u64 = self.sources.iter().map(|s| s.quota - s.taken).sum();
        let taken: u64 = self.sources.iter().map(|s| s.taken).sum();
        let mut ticket = if shuffle { below(hash(&[seed, SOURCES, self.epoch, taken]), left) } else { 0 };
        let source = self
            .sources
            .iter()
            .position(|s| {
                let left = s.quota - s.taken;
                let here = ticket < left;
                ticket = ticket.saturating_sub(left);
                here
            })
            .expect("invariant: the ticket is below the sum of what is left, which is above 0");
        let progress = &mut self.sources[source];
        let position = self.epoch * progress.quota + progress.taken;
        progress.taken += 1;
        if left == 1 {
            self.epoch += 1;
            self.sources.iter_mut().for_each(|s| s.taken = 0);
        }
        (source, position)
    }

    /// A cursor that fits these sources: this one, or the start if it is new.
    fn fitted(self, quotas: &[u64]) -> Result<Self, DataError> {
        if self.sources.is_empty() {
            return Ok(Self { epoch: self.epoch, ..Self::start(quotas) });
        }
        let saved: Vec<u64> = self.sources.iter().map(|s| s.quota).collect();
        if saved != quotas {
            return Err(DataError::Cursor {
                message: format!("the saved run had sources of {saved:?} rows an epoch, the data now gives {quotas:?}"),
            });
        }
        let total: u64 = quotas.iter().sum();
        let taken: u64 = self.sources.iter().map(|s| s.taken.min(s.quota)).sum();
        if taken >= total || self.sources.iter().any(|s| s.taken > s.quota) {
            return Err(DataError::Cursor { message: "the saved place lies beyond its epoch".into() });
        }
        Ok(self)
    }
}

/// The blocks of a source and how many of their rows take part.
pub(crate) struct Index {
    source: usize,
    split: Split,
    limit: u64,
    blocks: Vec<BlockRef>,
    rows: u64,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockRef {
    pub(crate) file: usize,
    pub(crate) block: usize,
    /// Row of the file that the block starts with.
    first_in_file: u64,
    /// Row of the source that the block starts with.
    first: u64,
    rows: u32,
    included: u32,
}

impl Index {
    pub(crate) fn new(source: usize, files: &[Box<dyn Blocks>], limit: u64, split: Split) -> Self {
        let mut blocks = Vec::new();
        let (mut first, mut total) = (0u64, 0u64);
        for (file, reader) in files.iter().enumerate() {
            let mut first_in_file = 0u64;
            for block in 0..reader.num_blocks() {
                let rows = (reader.block_rows(block) as u64).min(limit.saturating_sub(first));
                let included = match split {
                    Split::All => rows,
                    _ => (0..rows).filter(|row| split.includes(source, first + row)).count() as u64,
                };
                if included > 0 {
                    let (rows, included) = (rows as u32, included as u32);
                    blocks.push(BlockRef { file, block, first_in_file, first, rows, included });
                }
                first += reader.block_rows(block) as u64;
                first_in_file += reader.block_rows(block) as u64;
                total += included;
            }
        }
        Self { source, split, limit, blocks, rows: total }
    }

    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// Rows in an epoch under a weight; a source never vanishes.
    pub(crate) fn quota(&self, weight: f64) -> u64 {
        if self.rows == 0 { 0 } else { ((self.rows as f64 * weight).round() as u64).max(1) }
    }

    pub(crate) fn blocks(&self) -> &[BlockRef] {
        &self.blocks
    }

    /// Rows of a block that take part, as offsets in the block.
    pub(crate) fn included<'a>(&'a self, block: &'a BlockRef) -> impl Iterator<Item = u32> + 'a {
        (0..block.rows).filter(move |row| {
            let row = block.first + u64::from(*row);
            row < self.limit && self.split.includes(self.source, row)
        })
    }

    pub(crate) fn candidate(&self, at: &BlockRef, block: &Arc<Block>, row: u32) -> Candidate {
        let origin = Origin { source: self.source, file: at.file, row: at.first_in_file + u64::from(row) };
        Candidate { block: block.clone(), row_in_block: row as usize, origin }
    }
}

/// The order of one pass through a source.
struct Pass {
    number: u64,
    /// Blocks in the order of this pass.
    blocks: Vec<u32>,
    /// First block, within `blocks`, and first row of each window.
    windows: Vec<(usize, u64)>,
}

impl Pass {
    fn new(index: &Index, seed: u64, shuffled: bool, number: u64) -> Self {
        let mut blocks: Vec<u32> = (0..index.blocks.len() as u32).collect();
        if shuffled {
            shuffle(&mut blocks, &[seed, BLOCKS, index.source as u64, number]);
        }
        let mut windows = Vec::new();
        let (mut rows, mut in_window) = (0u64, u64::MAX);
        for (at, &block) in blocks.iter().enumerate() {
            // In file order there is nothing to gain from a window wider than a block.
            if in_window >= WINDOW || !shuffled {
                windows.push((at, rows));
                in_window = 0;
            }
            let included = u64::from(index.blocks[block as usize].included);
            rows += included;
            in_window += included;
        }
        Self { number, blocks, windows }
    }

    /// The window of a position of the pass.
    fn window_of(&self, position: u64) -> usize {
        self.windows.partition_point(|&(_, first)| first <= position) - 1
    }

    fn window_blocks(&self, window: usize) -> &[u32] {
        let end = self.windows.get(window + 1).map_or(self.blocks.len(), |w| w.0);
        &self.blocks[self.windows[window].0..end]
    }
}

/// The rows of one window, shuffled, and its blocks, decoded.
struct Window {
    pass: u64,
    number: usize,
    first: u64,
    rows: Vec<(u32, u32)>,
    blocks: Vec<(u32, Arc<Block>)>,
}

/// Gives rows in their order, one window of each source in memory.
pub(crate) struct Walk {
    dataset: Arc<Dataset>,
    seed: u64,
    shuffle: bool,
    cursor: Cursor,
    passes: Vec<Option<Pass>>,
    windows: Vec<Option<Window>>,
}

impl Walk {
    pub(crate) fn new(dataset: Arc<Dataset>, seed: u64, shuffle: bool, cursor: Cursor) -> Result<Self, DataError> {
        let quotas = dataset.quotas();
        let cursor = cursor.fitted(&quotas)?;
        if quotas.iter().sum::<u64>() == 0 {
            return Err(DataError::NothingTrained { rows: 0 });
        }
        let sources = quotas.len();
        Ok(Self {
            dataset,
            seed,
            shuffle,
            cursor,
            passes: (0..sources).map(|_| None).collect(),
            windows: (0..sources).map(|_| None).collect(),
        })
    }

    /// The next `count` rows, each with the place after it.
    pub(crate) fn take(&mut self, count: usize) -> Result<VecDeque<(Candidate, Cursor)>, DataError> {
        (0..count).map(|_| self.next()).collect()
    }

    fn next(&mut self) -> Result<(Candidate, Cursor), DataError> {
        let (source, position) = self.cursor.draw(self.seed, self.shuffle);
        let index = self.dataset.indices()[source].clone();
        let (pass, within) = (position / index.rows, position % index.rows);
        self.load(&index, pass, within)?;
        let window = self.windows[source].as_ref().expect("invariant: loaded above");
        let (block, row) = window.rows[(within - window.first) as usize];
        let decoded = window.blocks.binary_search_by_key(&block, |(number, _)| *number);
        let decoded = &window.blocks[decoded.expect("invariant: a window holds the blocks of its rows")].1;
        Ok((index.candidate(&index.blocks[block as usize], decoded, row), self.cursor.clone()))
    }

    /// Makes the window of a position the current one of its source.
    fn load(&mut self, index: &Index, pass: u64, within: u64) -> Result<(), DataError> {
        let source = index.source;
        let current = match self.passes[source].take() {
            Some(current) if current.number == pass => current,
            _ => Pass::new(index, self.seed, self.shuffle, pass),
        };
        let current = self.passes[source].insert(current);
        let number = current.window_of(within);
        if self.windows[source].as_ref().is_some_and(|w| w.pass == pass && w.number == number) {
            return Ok(());
        }
        // The old window goes before the new one is decoded.
        self.windows[source] = None;
        let mut rows = Vec::new();
        let mut blocks = Vec::new();
        for &number in current.window_blocks(number) {
            let at = &index.blocks[number as usize];
            rows.extend(index.included(at).map(|row| (number, row)));
            blocks.push((number, self.dataset.read_block(source, at.file, at.block)?));
        }
        if self.shuffle {
            shuffle(&mut rows, &[self.seed, ROWS, source as u64, pass, number as u64]);
        }
        blocks.sort_unstable_by_key(|(number, _)| *number);
        self.windows[source] = Some(Window { pass, number, first: current.windows[number].1, rows, blocks });
        Ok(())
    }
}
