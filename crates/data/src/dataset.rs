//! The open sources of a recipe: files checked, formats settled, rows counted; no row read yet.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::audit::{Audit, AuditLimits};
use crate::encode::{Encoded, Encoder, Tokenised};
use crate::error::{DataError, RowError};
use crate::evaluate::{Batches, Samples};
use crate::format::{CellError, Format, Reader};
use crate::order::{Cursor, Index};
use crate::row::{Origin, Row};
use crate::source::{self, Block, Blocks, SourceConfig};
use crate::split::Split;
use crate::tokens::Packing;

/// Rows to train or evaluate on, and the encoder that turns them into tokens.
#[derive(Clone)]
pub struct Dataset {
    encoder: Arc<Encoder>,
    sources: Arc<Vec<Source>>,
    split: Split,
    indices: Vec<Arc<Index>>,
}

struct Source {
    files: Vec<Box<dyn Blocks>>,
    reader: Reader,
    weight: f64,
    limit: Option<u64>,
    info: SourceInfo,
}

/// What one `[[data]]` entry turned out to be.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceInfo {
    /// Its files, in order.
    pub files: Vec<PathBuf>,
    /// The format in use.
    pub format: Format,
    /// Why this format.
    pub reason: String,
    /// Rows in the files, after `limit`.
    pub rows: u64,
    /// Columns that nothing reads.
    pub unused: Vec<String>,
}

/// A row that can be read and encoded on any thread.
pub(crate) struct Candidate {
    pub(crate) block: Arc<Block>,
    pub(crate) row_in_block: usize,
    pub(crate) origin: Origin,
}

impl Candidate {
    /// Line of the file, from 1, where it has lines.
    pub(crate) fn line(&self) -> Option<u64> {
        match self.block.as_ref() {
            Block::Lines(lines) => Some(lines.number(self.row_in_block)),
            Block::Arrow(_) => None,
        }
    }
}

impl Dataset {
    /// Opens the files of all sources: footers are read and jsonl files scanned for lines. Relative paths are tried
    /// from each of `roots` in turn; none means the working directory. Every mistake in every file is reported.
    pub fn open(sources: &[SourceConfig], encoder: Arc<Encoder>, roots: &[PathBuf]) -> Result<Self, Vec<DataError>> {
        let sources = Arc::new(open_sources(sources, roots)?);
        let indices = indices(&sources, Split::All);
        Ok(Self { encoder, sources, split: Split::All, indices })
    }

    /// Looks at files, formats and columns as [`Dataset::open`] does, where there is no encoder to make rows of.
    pub fn check(sources: &[SourceConfig], roots: &[PathBuf]) -> Result<(), Vec<DataError>> {
        open_sources(sources, roots).map(drop)
    }

    /// The training and the held-out part: about `fraction` of the rows are held out, which ones depends only on
    /// `seed` and on the rows' places in their sources. Both parts have at least one row.
    pub fn split(&self, fraction: f64, seed: u64) -> Result<(Self, Self), DataError> {
        let rows = self.rows();
        let refuse = || DataError::Split { fraction, rows };
        if !(fraction > 0.0 && fraction < 1.0) || rows < 2 || self.split != Split::All {
            return Err(refuse());
        }
        let counts = self.sources.iter().map(|s| s.info.rows);
        let (kept, held) = Split::pair(fraction, seed, counts).ok_or_else(refuse)?;
        Ok((self.with_split(kept), self.with_split(held)))
    }

    fn with_split(&self, split: Split) -> Self {
        let indices = indices(&self.sources, split);
        Self { encoder: self.encoder.clone(), sources: self.sources.clone(), split, indices }
    }

    /// One entry for each `[[data]]`.
    pub fn sources(&self) -> impl Iterator<Item = &SourceInfo> {
        self.sources.iter().map(|s| &s.info)
    }

    /// Rows of this part, each counted once.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.indices.iter().map(|i| i.rows()).sum()
    }

    /// Rows in an epoch: each source's rows times its weight.
    #[must_use]
    pub fn epoch_rows(&self) -> u64 {
        self.quotas().into_iter().sum()
    }

    /// Rows that each source contributes to an epoch.
    pub(crate) fn quotas(&self) -> Vec<u64> {
        self.sources.iter().zip(&self.indices).map(|(source, index)| index.quota(source.weight)).collect()
    }

    /// The place after `rows` rows of the order, counted from the start. Runs keep the [`Cursor`] of their steps; this
    /// is for starting somewhere else.
    #[must_use]
    pub fn seek(&self, seed: u64, shuffle: bool, rows: u64) -> Cursor {
        Cursor::seek(&self.quotas(), seed, shuffle, rows)
    }

    pub(crate) fn indices(&self) -> &[Arc<Index>] {
        &self.indices
    }

    /// The encoder.
    #[must_use]
    pub fn encoder(&self) -> &Arc<Encoder> {
        &self.encoder
    }

    /// The file that a sample came from.
    #[must_use]
    pub fn file(&self, origin: Origin) -> &Path {
        self.sources[origin.source].files[origin.file].path()
    }

    /// A digest of what the order and the contents of rows depend on, computed from names, sizes, and the first and
    /// last bytes of files: equal digests mean that a run can be resumed.
    pub fn fingerprint(&self) -> Result<String, DataError> {
        let mut digest = Sha256::new();
        let mut add = |bytes: &[u8]| {
            digest.update((bytes.len() as u64).to_le_bytes());
            digest.update(bytes);
        };
        for (source, quota) in self.sources.iter().zip(self.quotas()) {
            add(source.reader.format().name().as_bytes());
            add(&quota.to_le_bytes());
            for file in &source.files {
                add(file.path().file_name().unwrap_or_default().as_encoded_bytes());
                add(&source::ends(file.path())?);
            }
        }
        for index in &self.indices {
            add(&index.rows().to_le_bytes());
        }
        Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Every row once, in the order of the files, encoded; one block of rows is in memory at a time.
    #[must_use]
    pub fn samples(&self) -> Samples<'_> {
        Samples::new(self)
    }

    /// Every row once, in the order of the files, laid out for evaluation: `rows` documents at a time into
    /// micro-batches of at most `micro_batch` laid-out rows. Rows without a trained token are left out.
    #[must_use]
    pub fn batches(&self, rows: usize, micro_batch: usize, packing: Packing) -> Batches<'_> {
        Batches::new(self.samples(), rows, micro_batch, packing)
    }

    /// Encodes the first rows of every source and tells what they are like. Rows that are wrong are findings too; files
    /// that cannot be read are errors.
    pub fn audit(&self, limits: AuditLimits) -> Result<Audit, DataError> {
        Audit::of(self, limits)
    }

    /// Reads one row as its format understands it.
    pub(crate) fn row(&self, candidate: &Candidate) -> Result<Row, DataError> {
        let reader = &self.sources[candidate.origin.source].reader;
        reader.read(&candidate.block, candidate.row_in_block).map_err(|CellError { column, line, error }| {
            let Origin { row, .. } = candidate.origin;
            DataError::Row { path: self.file(candidate.origin).to_owned(), row, line, column, error: Box::new(error) }
        })
    }

    pub(crate) fn encode(&self, candidate: &Candidate) -> Result<Encoded, DataError> {
        let row = self.row(candidate)?;
        self.encoder.encode(&row, candidate.origin).map_err(|error| self.row_error(candidate, error))
    }

    pub(crate) fn tokenise(&self, candidate: &Candidate) -> Result<Tokenised, DataError> {
        let row = self.row(candidate)?;
        self.encoder.tokenise(&row).map_err(|error| self.row_error(candidate, error))
    }

    /// An error that only showed when the row was rendered.
    pub(crate) fn row_error(&self, candidate: &Candidate, error: RowError) -> DataError {
        let reader = &self.sources[candidate.origin.source].reader;
        DataError::Row {
            path: self.file(candidate.origin).to_owned(),
            row: candidate.origin.row,
            line: candidate.line(),
            column: Some(reader.main_column()),
            error: Box::new(error),
        }
    }

    pub(crate) fn read_block(&self, source: usize, file: usize, block: usize) -> Result<Arc<Block>, DataError> {
        self.sources[source].files[file].read(block).map(Arc::new)
    }
}

fn open_sources(sources: &[SourceConfig], roots: &[PathBuf]) -> Result<Vec<Source>, Vec<DataError>> {
    let mut opened = Vec::new();
    let mut errors = Vec::new();
    for config in sources {
        match Source::open(config, roots) {
            Ok(source) => opened.push(source),
            Err(more) => errors.extend(more),
        }
    }
    if sources.is_empty() {
        errors.push(DataError::NoPath);
    }
    if errors.is_empty() { Ok(opened) } else { Err(errors) }
}

fn indices(sources: &[Source], split: Split) -> Vec<Arc<Index>> {
    sources
        .iter()
        .enumerate()
        .map(|(i, source)| Arc::new(Index::new(i, &source.files, source.limit.unwrap_or(u64::MAX), split)))
        .collect()
}

impl Source {
    fn open(config: &SourceConfig, roots: &[PathBuf]) -> Result<Self, Vec<DataError>> {
        let mut errors = settings(config);
        let paths = match source::files::expand(&config.path, roots) {
            Ok(paths) => paths,
            Err(more) => {
                errors.extend(more);
                return Err(errors);
            }
        };
        let mut files = Vec::with_capacity(paths.len());
        for path in &paths {
            match source::open(path) {
                Ok(file) => files.push(file),
                Err(error) => errors.push(error),
            }
        }
        let Some(first) = files.first() else { return Err(errors) };
        let reader = match Reader::resolve(config.format, &config.columns, first.path(), first.columns()) {
            Ok(reader) => reader,
            Err(error) => {
                errors.push(error);
                return Err(errors);
            }
        };
        let mut unused = BTreeSet::new();
        for file in &mut files {
            let path = file.path().to_owned();
            let checked = reader.check(&path, file.columns()).and_then(|used| {
                let idle = file.columns().iter().filter(|c| !used.contains(&c.name));
                unused.extend(idle.map(|c| c.name.clone()));
                file.project(&used).map_err(|error| vec![error])
            });
            errors.extend(checked.err().into_iter().flatten());
        }
        let rows: u64 = files.iter().map(|f| (0..f.num_blocks()).map(|b| f.block_rows(b) as u64).sum::<u64>()).sum();
        if rows == 0 && errors.is_empty() {
            errors.push(DataError::Empty { path: paths[0].clone() });
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let info = SourceInfo {
            files: paths,
            format: reader.format(),
            reason: reader.reason().to_owned(),
            rows: rows.min(config.limit.unwrap_or(u64::MAX)),
            unused: unused.into_iter().collect(),
        };
        Ok(Self { files, reader, weight: config.weight, limit: config.limit, info })
    }
}

fn settings(config: &SourceConfig) -> Vec<DataError> {
    let mut errors = Vec::new();
    if !(config.weight.is_finite() && config.weight > 0.0 && config.weight <= 1000.0) {
        let expected = "a number above 0 and at most 1000";
        errors.push(DataError::Setting { key: "data.weight", found: config.weight.to_string(), expected });
    }
    if config.limit == Some(0) {
        errors.push(DataError::Setting { key: "data.limit", found: "0".into(), expected: "at least 1" });
    }
    errors
}
