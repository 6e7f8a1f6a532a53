//! The parquet file of `eval --logprobs`: one row a token that has a past, in file order.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Float32Array, UInt32Array, UInt64Array};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use qwen_tune_weights::atomic::PartialFile;

type Fault = Box<dyn std::error::Error>;

/// Rows collected before they are handed to the writer.
const BUFFERED: usize = 1 << 16;

/// Columns row, position, token_id, logprob, trained.
pub(super) struct Logprobs {
    partial: PartialFile,
    writer: ArrowWriter<File>,
    row: Vec<u64>,
    position: Vec<u32>,
    token_id: Vec<u32>,
    logprob: Vec<f32>,
    trained: Vec<bool>,
}

impl Logprobs {
    pub(super) fn create(path: &Path) -> Result<Self, Fault> {
        let partial = PartialFile::create(path)?;
        let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?)).build();
        let empty = batch(&mut Vec::new(), &mut Vec::new(), &mut Vec::new(), &mut Vec::new(), &mut Vec::new())?;
        let writer = ArrowWriter::try_new(partial.file.try_clone()?, empty.schema(), Some(properties))?;
        Ok(Self {
            partial,
            writer,
            row: Vec::new(),
            position: Vec::new(),
            token_id: Vec::new(),
            logprob: Vec::new(),
            trained: Vec::new(),
        })
    }

    pub(super) fn push(&mut self, row: u64, position: u32, token_id: u32, logprob: f32, trained: bool) {
        self.row.push(row);
        self.position.push(position);
        self.token_id.push(token_id);
        self.logprob.push(logprob);
        self.trained.push(trained);
    }

    pub(super) fn flush_if_full(&mut self) -> Result<(), Fault> {
        if self.row.len() >= BUFFERED { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Fault> {
        let columns =
            batch(&mut self.row, &mut self.position, &mut self.token_id, &mut self.logprob, &mut self.trained)?;
        self.writer.write(&columns)?;
        Ok(())
    }

    /// The file appears under its name only now.
    pub(super) fn finish(mut self) -> Result<(), Fault> {
        self.flush()?;
        self.writer.close()?;
        self.partial.commit()?;
        Ok(())
    }
}

fn batch(
    row: &mut Vec<u64>,
    position: &mut Vec<u32>,
    token_id: &mut Vec<u32>,
    logprob: &mut Vec<f32>,
    trained: &mut Vec<bool>,
) -> Result<RecordBatch, Fault> {
    use std::mem::take;
    let columns: [(&str, ArrayRef); 5] = [
        ("row", Arc::new(UInt64Array::from(take(row)))),
        ("position", Arc::new(UInt32Array::from(take(position)))),
        ("token_id", Arc::new(UInt32Array::from(take(token_id)))),
        ("logprob", Arc::new(Float32Array::from(take(logprob)))),
        ("trained", Arc::new(BooleanArray::from(take(trained)))),
    ];
    Ok(RecordBatch::try_from_iter(columns)?)
}
