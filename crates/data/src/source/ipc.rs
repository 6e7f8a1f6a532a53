//! Arrow IPC files, in the file and in the stream form: a block is a record batch.
//!
//! Both forms are the same run of messages (the file form adds a footer), so one scan over the messages' headers finds
//! the batches of either; bodies are skipped. Hugging Face's `save_to_disk` writes the stream form.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;
use arrow::ipc::convert::try_schema_from_flatbuffer_bytes;
use arrow::ipc::reader::FileDecoder;
use arrow::ipc::{Block as Place, MessageHeader, MetadataVersion, root_as_message};

use super::parquet::{brief, columns, guard};
use super::{Block, Blocks, Column};
use crate::error::DataError;

const MAGIC: &[u8] = b"ARROW1";
const CONTINUATION: u32 = u32::MAX;

pub(super) struct Ipc {
    path: PathBuf,
    columns: Vec<Column>,
    schema: SchemaRef,
    version: MetadataVersion,
    projection: Vec<usize>,
    dictionaries: Vec<Place>,
    batches: Vec<(Place, usize)>,
}

impl Ipc {
    pub(super) fn open(path: &Path) -> Result<Self, DataError> {
        let mut file = File::open(path).map_err(|e| DataError::io(path, e))?;
        let length = file.metadata().map_err(|e| DataError::io(path, e))?.len();
        if length == 0 {
            return Err(DataError::Empty { path: path.to_owned() });
        }
        let mut scan = Scan { path, file: &mut file, length, at: 0 };
        guard(path, || scan.run())
    }

    fn decoder(&self, file: &mut File) -> Result<FileDecoder, DataError> {
        let mut decoder = FileDecoder::new(self.schema.clone(), self.version).with_projection(self.projection.clone());
        for place in &self.dictionaries {
            let bytes = self.bytes(file, place)?;
            decoder.read_dictionary(place, &bytes).map_err(|e| DataError::damaged(&self.path, brief(&e)))?;
        }
        Ok(decoder)
    }

    fn bytes(&self, file: &mut File, place: &Place) -> Result<Buffer, DataError> {
        // The scan has checked that all of this lies inside the file.
        let length = place.metaDataLength() as u64 + place.bodyLength() as u64;
        let mut bytes = vec![0; usize::try_from(length).expect("invariant: lengths were checked by the scan")];
        file.seek(SeekFrom::Start(place.offset() as u64))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|e| DataError::io(&self.path, e))?;
        Ok(Buffer::from_vec(bytes))
    }
}

impl Blocks for Ipc {
    fn path(&self) -> &Path {
        &self.path
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn num_blocks(&self) -> usize {
        self.batches.len()
    }

    fn block_rows(&self, block: usize) -> usize {
        self.batches[block].1
    }

    fn read(&self, block: usize) -> Result<Block, DataError> {
        let (place, rows) = &self.batches[block];
        let damaged = |message: String| DataError::damaged(&self.path, format!("record batch {block}: {message}"));
        guard(&self.path, || {
            let mut file = File::open(&self.path).map_err(|e| DataError::io(&self.path, e))?;
            let decoder = self.decoder(&mut file)?;
            let bytes = self.bytes(&mut file, place)?;
            match decoder.read_record_batch(place, &bytes).map_err(|e| damaged(brief(&e)))? {
                Some(batch) if batch.num_rows() == *rows => Ok(Block::Arrow(batch)),
                _ => Err(damaged(format!("it does not hold its {rows} rows"))),
            }
        })
    }

    fn project(&mut self, names: &[String]) -> Result<(), DataError> {
        self.projection = (0..self.columns.len()).filter(|&i| names.contains(&self.columns[i].name)).collect();
        Ok(())
    }
}

struct Scan<'a> {
    path: &'a Path,
    file: &'a mut File,
    length: u64,
    at: u64,
}

impl Scan<'_> {
    fn run(&mut self) -> Result<Ipc, DataError> {
        let mut start = [0; 8];
        let is_file = self.length >= 8 && self.read_at(0, &mut start).is_ok() && start.starts_with(MAGIC);
        if is_file {
            let mut end = [0; 6];
            self.read_at(self.length - 6, &mut end)?;
            if end != MAGIC {
                return Err(self.damaged("its end is missing (no closing `ARROW1`)"));
            }
            // Writers pad the magic to their own alignment, of 8 to 64 bytes.
            let mut padding = [0; 64];
            let length = padding.len().min(usize::try_from(self.length).unwrap_or(usize::MAX));
            self.read_at(0, &mut padding[..length])?;
            self.at = padding.iter().skip(8).position(|b| *b != 0).map_or(64, |n| (n as u64 + 8) & !7);
        }
        let Some((schema, _, version)) = self.message(|_, bytes| try_schema_from_flatbuffer_bytes(bytes).ok())? else {
            return Err(self.damaged("it holds no messages"));
        };
        let schema = schema.ok_or_else(|| self.damaged("it does not begin with a schema"))?;
        let mut found = Ipc {
            path: self.path.to_owned(),
            columns: columns(&schema),
            projection: (0..schema.fields().len()).collect(),
            schema: Arc::new(schema),
            version,
            dictionaries: Vec::new(),
            batches: Vec::new(),
        };
        let header = |message: arrow::ipc::Message<'_>, _: &[u8]| {
            (message.header_type(), message.header_as_record_batch().map_or(0, |b| b.length()))
        };
        while let Some(((kind, rows), place, _)) = self.message(header)? {
            match kind {
                MessageHeader::DictionaryBatch => found.dictionaries.push(place),
                MessageHeader::RecordBatch => {
                    let rows = usize::try_from(rows).ok().filter(|&rows| super::plausible(rows, self.length));
                    let rows =
                        rows.ok_or_else(|| self.damaged("a record batch claims more rows than the file can hold"))?;
                    found.batches.push((place, rows));
                }
                _ => return Err(self.damaged(format!("an unknown message at byte {}", place.offset()))),
            }
        }
        if found.batches.is_empty() {
            return Err(DataError::Empty { path: self.path.to_owned() });
        }
        Ok(found)
    }

    /// The next message's header, none at the end; moves behind its body.
    fn message<T>(
        &mut self,
        read: impl Fn(arrow::ipc::Message<'_>, &[u8]) -> T,
    ) -> Result<Option<(T, Place, MetadataVersion)>, DataError> {
        let offset = self.at;
        if offset + 4 > self.length {
            return Ok(None);
        }
        let mut word = [0; 4];
        self.read_at(offset, &mut word)?;
        let mut prefix = 4;
        if u32::from_le_bytes(word) == CONTINUATION {
            self.read_at(offset + 4, &mut word)?;
            prefix = 8;
        }
        let size = u64::from(u32::from_le_bytes(word));
        if size == 0 {
            return Ok(None);
        }
        if size > self.length - offset - prefix.min(self.length - offset) {
            return Err(
                self.damaged(format!("a message of {size} bytes at byte {offset}, but the file has {}", self.length))
            );
        }
        let mut bytes = vec![0; size as usize];
        self.read_at(offset + prefix, &mut bytes)?;
        let message = root_as_message(&bytes).map_err(|e| self.damaged(format!("at byte {offset}: {}", brief(&e))))?;
        let body =
            u64::try_from(message.bodyLength()).ok().filter(|body| *body <= self.length - offset - prefix - size);
        let Some(body) = body else {
            return Err(self.damaged(format!(
                "a message at byte {offset} should be followed by {} bytes, but the file has {}",
                message.bodyLength(),
                self.length
            )));
        };
        self.at = offset + prefix + size + body;
        let length = i32::try_from(prefix + size).map_err(|_| self.damaged("a message header of over 2 GiB"))?;
        let place = Place::new(offset as i64, length, body as i64);
        Ok(Some((read(message, &bytes), place, message.version())))
    }

    fn read_at(&mut self, at: u64, bytes: &mut [u8]) -> Result<(), DataError> {
        self.file
            .seek(SeekFrom::Start(at))
            .and_then(|_| self.file.read_exact(bytes))
            .map_err(|e| self.damaged(format!("it ends at byte {}: {e}", self.length)))
    }

    fn damaged(&self, message: impl Into<String>) -> DataError {
        DataError::damaged(self.path, message)
    }
}
