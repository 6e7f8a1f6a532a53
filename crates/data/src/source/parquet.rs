//! Parquet files: a block is a row group, or a piece of one where row groups are large.
//!
//! Many writers put a million rows into one row group. Decoding it whole would hold gigabytes, so large groups are
//! read in pieces; a piece has to decompress the pages before it, which costs little beside training on its rows.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatchReader;
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};

use super::{Block, Blocks, Column, Shape};
use crate::contain::contain;
use crate::error::DataError;

/// Rows of a piece, at most and at least.
const PIECE_ROWS: std::ops::RangeInclusive<usize> = 64..=16_384;
/// Decoded bytes of a piece, about.
const PIECE_BYTES: u64 = 32 << 20;

pub(super) struct Parquet {
    path: PathBuf,
    metadata: ArrowReaderMetadata,
    columns: Vec<Column>,
    projection: ProjectionMask,
    pieces: Vec<Piece>,
}

struct Piece {
    group: usize,
    offset: usize,
    rows: usize,
}

impl Parquet {
    pub(super) fn open(path: &Path) -> Result<Self, DataError> {
        let file = File::open(path).map_err(|e| DataError::io(path, e))?;
        let length = file.metadata().map_err(|e| DataError::io(path, e))?.len();
        if length == 0 {
            return Err(DataError::Empty { path: path.to_owned() });
        }
        let metadata = guard(path, || {
            ArrowReaderMetadata::load(&file, ArrowReaderOptions::new()).map_err(|e| {
                DataError::damaged(path, format!("no readable parquet footer in its {length} bytes: {}", brief(&e)))
            })
        })?;
        let columns = columns(metadata.schema());
        let mut opened =
            Self { path: path.to_owned(), metadata, columns, projection: ProjectionMask::all(), pieces: Vec::new() };
        opened.check_extents(length)?;
        opened.cut();
        Ok(opened)
    }

    /// Every column chunk that the footer promises must lie inside the file, or reading would find it out much later.
    fn check_extents(&self, length: u64) -> Result<(), DataError> {
        let rows = self.metadata.metadata().row_groups().iter().try_fold(0usize, |sum, group| {
            usize::try_from(group.num_rows()).ok().and_then(|rows| sum.checked_add(rows))
        });
        if !rows.is_some_and(|rows| super::plausible(rows, length)) {
            let message = "its footer claims more rows than the file can hold";
            return Err(DataError::damaged(&self.path, message));
        }
        for (group, meta) in self.metadata.metadata().row_groups().iter().enumerate() {
            for column in meta.columns() {
                let start = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
                let size = column.compressed_size();
                let end = start.checked_add(size).filter(|_| start >= 0 && size >= 0);
                if end.is_none_or(|end| end as u64 > length) {
                    let name = column.column_path().string();
                    return Err(DataError::damaged(
                        &self.path,
                        format!(
                            "row group {group}, column `{name}` should be {size} bytes at {start}, but the file has {length} bytes"
                        ),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Cuts row groups into pieces by the decoded size of the projected columns.
    fn cut(&mut self) {
        self.pieces.clear();
        for (group, meta) in self.metadata.metadata().row_groups().iter().enumerate() {
            let rows = usize::try_from(meta.num_rows()).expect("invariant: `check_extents` has seen the counts");
            let bytes: u64 = (0..meta.num_columns())
                .filter(|&leaf| self.projection.leaf_included(leaf))
                .map(|leaf| u64::try_from(meta.column(leaf).uncompressed_size()).unwrap_or(0))
                .sum();
            let per_row = (bytes / (rows as u64).max(1)).max(1);
            let piece = usize::try_from(PIECE_BYTES / per_row)
                .unwrap_or(usize::MAX)
                .clamp(*PIECE_ROWS.start(), *PIECE_ROWS.end());
            let mut offset = 0;
            while offset < rows {
                let rows = piece.min(rows - offset);
                self.pieces.push(Piece { group, offset, rows });
                offset += rows;
            }
        }
    }
}

impl Blocks for Parquet {
    fn path(&self) -> &Path {
        &self.path
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn num_blocks(&self) -> usize {
        self.pieces.len()
    }

    fn block_rows(&self, block: usize) -> usize {
        self.pieces[block].rows
    }

    fn read(&self, block: usize) -> Result<Block, DataError> {
        let piece = &self.pieces[block];
        let file = File::open(&self.path).map_err(|e| DataError::io(&self.path, e))?;
        let place = || format!("row group {}, rows {}..{}", piece.group, piece.offset, piece.offset + piece.rows);
        let batch = guard(&self.path, || {
            let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(file, self.metadata.clone())
                .with_row_groups(vec![piece.group])
                .with_projection(self.projection.clone())
                .with_offset(piece.offset)
                .with_limit(piece.rows)
                .with_batch_size(piece.rows)
                .build()
                .map_err(|e| DataError::damaged(&self.path, format!("{}: {}", place(), brief(&e))))?;
            let schema = reader.schema();
            let batches = reader
                .collect::<Result<Vec<_>, _>>()
                .map_err(|e| DataError::damaged(&self.path, format!("{}: {}", place(), brief(&e))))?;
            match <[_; 1]>::try_from(batches) {
                Ok([batch]) => Ok(batch),
                Err(batches) => concat_batches(&schema, &batches)
                    .map_err(|e| DataError::damaged(&self.path, format!("{}: {}", place(), brief(&e)))),
            }
        })?;
        if batch.num_rows() != piece.rows {
            return Err(DataError::damaged(&self.path, format!("{} hold only {} rows", place(), batch.num_rows())));
        }
        Ok(Block::Arrow(batch))
    }

    fn project(&mut self, columns: &[String]) -> Result<(), DataError> {
        let roots = self.columns.iter().enumerate().filter(|(_, c)| columns.contains(&c.name)).map(|(i, _)| i);
        self.projection = ProjectionMask::roots(self.metadata.parquet_schema(), roots);
        self.cut();
        Ok(())
    }
}

/// The readers of damaged files may panic; to a user that is a damaged file like any other.
pub(crate) fn guard<T>(path: &Path, read: impl FnOnce() -> Result<T, DataError>) -> Result<T, DataError> {
    contain(read).unwrap_or_else(|message| Err(DataError::damaged(path, message)))
}

pub(super) fn brief(error: &impl std::fmt::Display) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().trim_end_matches('.').to_owned()
}

/// The columns of an Arrow schema.
pub(super) fn columns(schema: &Schema) -> Vec<Column> {
    let column = |field: &Arc<Field>| Column {
        name: field.name().clone(),
        type_name: type_name(field.data_type()),
        shape: shape(field.data_type()),
    };
    schema.fields().iter().map(column).collect()
}

/// An Arrow type as people write it.
fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "string".into(),
        DataType::List(f)
        | DataType::LargeList(f)
        | DataType::FixedSizeList(f, _)
        | DataType::ListView(f)
        | DataType::LargeListView(f) => format!("list<{}>", type_name(f.data_type())),
        DataType::Struct(fields) => {
            let fields: Vec<String> =
                fields.iter().map(|f| format!("{}: {}", f.name(), type_name(f.data_type()))).collect();
            format!("struct<{}>", fields.join(", "))
        }
        DataType::Dictionary(_, values) => type_name(values),
        other => other.to_string().to_lowercase(),
    }
}

/// What formats need to know of an Arrow type.
fn shape(data_type: &DataType) -> Shape {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Shape::Text,
        DataType::Dictionary(_, values) => shape(values),
        DataType::List(f) | DataType::LargeList(f) | DataType::FixedSizeList(f, _) => {
            Shape::List(Box::new(shape(f.data_type())))
        }
        DataType::Struct(fields) => Shape::Object(fields.iter().map(|f| f.name().clone()).collect()),
        DataType::Null => Shape::Unknown,
        t if t.is_integer() => Shape::Integer,
        _ => Shape::Other,
    }
}
