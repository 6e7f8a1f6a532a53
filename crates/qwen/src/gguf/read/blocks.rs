//! [`GgufBlocks`]: a matrix of the model in the blocks in which a file holds it, read row by row without being put in order
//! first.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use qwen_tune_weights::gguf::blocks::{Decode, decoder, encode_into};
use qwen_tune_weights::gguf::{GgufFile, TensorType};
use qwen_tune_weights::{MappedBytes, WeightError};

use super::places::Place;

/// The longest block of any type that is read.
const LONGEST: usize = 256;

/// Numbers that are read at a time to be encoded, if rows are shorter.
const PIECE: usize = 1 << 20;

/// A tensor in GGUF's blocks: of a mapped file, where its rows may lie in another order, in several tensors, with columns in
/// another order; or made here.
#[derive(Clone)]
pub struct GgufBlocks {
    /// Numbers of a row.
    width: usize,
    rows: usize,
    /// Rows that lie one after another in the file, by their first row in the model.
    runs: Vec<RowRun>,
    /// The same of columns; the same for every row.
    columns: Vec<ColumnRun>,
    /// What of mapped files they lie in.
    pages: Vec<MappedBytes>,
}

#[derive(Clone)]
struct RowRun {
    /// First row of the model's tensor.
    at: usize,
    rows: usize,
    kind: Kind,
    bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
    /// First row of the file's.
    from: usize,
}

/// A type, and what it makes of a row.
#[derive(Clone, Copy)]
struct Kind {
    ty: TensorType,
    decode: Decode,
    row_bytes: usize,
}

impl Kind {
    fn of(ty: TensorType, width: usize) -> Option<Self> {
        Some(Self { ty, decode: decoder(ty)?, row_bytes: ty.row_bytes(width)? })
    }
}

#[derive(Debug, Clone, Copy)]
struct ColumnRun {
    at: usize,
    from: usize,
    len: usize,
}

impl GgufBlocks {
    /// `None` unless all parts are of types that are read, not all of them f32, and their numbers are the model's own.
    pub(super) fn of(file: &GgufFile, places: &[Place], width: usize) -> Option<Self> {
        let columns = columns(places.first()?.columns(), width);
        let (mut runs, mut pages, mut rows) = (Vec::new(), Vec::new(), 0);
        for place in places {
            let tensor = file.tensor(&place.tensor)?;
            let kind = Kind::of(tensor.ty, width)?;
            let same = tensor.row() == width && place.columns() == places[0].columns();
            if !same || !place.is_matrix_as_it_is() {
                return None;
            }
            let mapped = file.mapped(&place.tensor)?;
            pages.push(mapped.clone());
            let bytes: Arc<dyn AsRef<[u8]> + Send + Sync> = Arc::new(mapped);
            for (from, model) in place.rows() {
                rows += model.len();
                runs.push(RowRun { at: model.start, rows: model.len(), kind, bytes: bytes.clone(), from });
            }
        }
        runs.sort_by_key(|run: &RowRun| run.at);
        let is_packed = runs.iter().any(|run| run.kind.ty != TensorType::F32);
        is_packed.then_some(Self { width, rows, runs, columns, pages })
    }

    /// Makes blocks of rows of `width` that `read(first, values)` gives some at a time.
    ///
    /// # Errors
    /// Those of `read`; if a row is no whole number of blocks, or numbers do not become this type.
    pub fn encode(
        ty: TensorType,
        rows: usize,
        width: usize,
        mut read: impl FnMut(usize, &mut [f32]) -> Result<(), WeightError>,
    ) -> Result<Self, WeightError> {
        let kind = Kind::of(ty, width).ok_or(WeightError::WrongBlocks { ty, values: width, row: width, bytes: 0 })?;
        let row_bytes = kind.row_bytes;
        let at_once = (PIECE / width.max(1)).max(1);
        let mut bytes = vec![0; rows * row_bytes];
        let mut values = vec![0.0; at_once.min(rows) * width];
        for (index, bytes) in bytes.chunks_mut((at_once * row_bytes).max(1)).enumerate() {
            let values = &mut values[..bytes.len() / row_bytes * width];
            read(index * at_once * width, values)?;
            encode_into(ty, values, width, bytes)?;
        }
        let runs = vec![RowRun { at: 0, rows, kind, bytes: Arc::new(bytes), from: 0 }];
        Ok(Self { width, rows, runs, columns: columns(None, width), pages: Vec::new() })
    }

    /// Numbers of all rows.
    pub fn numbers(&self) -> usize {
        self.rows * self.width
    }

    /// Bytes that hold them.
    pub fn bytes(&self) -> usize {
        self.runs.iter().map(|run| run.rows * run.kind.row_bytes).sum()
    }

    /// What of mapped files they lie in; nothing where they were made here.
    pub fn pages(&self) -> &[MappedBytes] {
        &self.pages
    }

    /// The blocks' type, of several the one with the longest blocks.
    pub fn ty(&self) -> TensorType {
        let types = self.runs.iter().map(|run| run.kind.ty);
        types.max_by_key(|ty| ty.block()).unwrap_or(TensorType::F32)
    }

    /// The type, where all rows are whole blocks of one in the file's own order of columns: what [`GgufBlocks::raw`] gives
    /// can be decoded without this.
    pub fn one_type(&self) -> Option<TensorType> {
        let ty = self.runs.first()?.kind.ty;
        let in_order = matches!(self.columns[..], [ColumnRun { at: 0, from: 0, .. }]);
        (in_order && self.runs.iter().all(|run| run.kind.ty == ty)).then_some(ty)
    }

    /// The bytes of these rows' blocks, one row after another, of blocks of [`GgufBlocks::one_type`].
    ///
    /// # Panics
    /// If there are not so many rows.
    pub fn raw(&self, rows: Range<usize>) -> Vec<u8> {
        assert!(rows.end <= self.rows, "invariant: rows of the tensor");
        let mut bytes = Vec::new();
        for run in &self.runs {
            let (start, end) = (rows.start.max(run.at), rows.end.min(run.at + run.rows));
            if start < end {
                let size = run.kind.row_bytes;
                let of_file = (run.from + start - run.at) * size..(run.from + end - run.at) * size;
                bytes.extend_from_slice(&(*run.bytes).as_ref()[of_file]);
            }
        }
        bytes
    }

    /// Numbers of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The numbers from `first` on, on the calling thread.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn decode(&self, first: usize, values: &mut [f32]) {
        let (mut row, mut column, mut rest) = (first / self.width, first % self.width, values);
        while !rest.is_empty() {
            let (here, behind) = rest.split_at_mut(rest.len().min(self.width - column));
            self.decode_row(row, column, here);
            (row, column, rest) = (row + 1, 0, behind);
        }
    }

    fn decode_row(&self, row: usize, first: usize, values: &mut [f32]) {
        assert!(row < self.rows, "invariant: rows of the tensor");
        let run = &self.runs[self.runs.partition_point(|run| run.at <= row) - 1];
        let kind = run.kind;
        let bytes = &(*run.bytes).as_ref()[(run.from + row - run.at) * kind.row_bytes..][..kind.row_bytes];
        let (end, mut rest) = (first + values.len(), values);
        for run in &self.columns[self.columns.partition_point(|run| run.at + run.len <= first)..] {
            if rest.is_empty() {
                break;
            }
            let (start, stop) = (run.at.max(first), (run.at + run.len).min(end));
            let (here, behind) = rest.split_at_mut(stop - start);
            kind.decode_columns(bytes, run.from + start - run.at, here);
            rest = behind;
        }
    }
}

impl Kind {
    /// Neighbouring columns of the file: whole blocks go where they belong, others by way of a buffer.
    fn decode_columns(&self, row: &[u8], first: usize, values: &mut [f32]) {
        let (block, size) = (self.ty.block(), self.ty.block_bytes());
        let (mut at, mut rest) = (first, values);
        while !rest.is_empty() {
            let bytes = &row[at / block * size..];
            let skipped = at % block;
            let whole = rest.len() / block * block;
            let take = if skipped == 0 && whole > 0 { whole } else { rest.len().min(block - skipped) };
            let (here, behind) = rest.split_at_mut(take);
            if skipped == 0 && whole > 0 {
                (self.decode)(&bytes[..take / block * size], here);
            } else {
                let mut buffer = [0.0; LONGEST];
                (self.decode)(&bytes[..size], &mut buffer[..block]);
                here.copy_from_slice(&buffer[skipped..][..take]);
            }
            at += take;
            rest = behind;
        }
    }
}

impl fmt::Debug for GgufBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {}] in {}", self.rows, self.width, self.ty())
    }
}

/// Where the model's columns lie in the file: `order` says of each of the file's which of the model's it is.
fn columns(order: Option<&[usize]>, width: usize) -> Vec<ColumnRun> {
    let Some(order) = order else { return vec![ColumnRun { at: 0, from: 0, len: width }] };
    let mut runs: Vec<ColumnRun> = Vec::new();
    for (from, &at) in order.iter().enumerate() {
        match runs.last_mut() {
            Some(run) if run.at + run.len == at => run.len += 1,
            _ => runs.push(ColumnRun { at, from, len: 1 }),
        }
    }
    runs.sort_by_key(|run| run.at);
    runs
}
