//! Files as numbered blocks of rows.
//!
//! Every file kind is read in blocks: the smallest part that can be decoded without decoding what stands before it.
//! A block number and a row in it are a position that can be seeked to at once, and one window of blocks is all that is
//! ever in memory.

pub mod files;
mod ipc;
mod jsonl;
mod parquet;

pub(crate) use jsonl::kind;
pub(crate) use parquet::guard;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use arrow::array::RecordBatch;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::DataError;

/// One `[[data]]` entry of a recipe: files, how to read them, and how often.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// Files to read: a path, a glob (`data/*.parquet`), or a list of either. Relative paths are tried from the
    /// working directory, then from the recipe's own. A directory stands for the data files in it. Files of a glob
    /// are read in the order of their names.
    #[schemars(extend("x-may-change-on-resume" = true))]
    pub path: Paths,
    /// How columns become rows; `auto` decides by the columns' names and says why.
    #[serde(default)]
    pub format: SourceFormat,
    /// How often each row appears in an epoch: 2.0 twice, 0.5 every other epoch.
    #[serde(default = "one")]
    pub weight: f64,
    /// Use only the first rows of the source, this many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Columns under another name: what the format calls it = what the file calls it, as in
    /// `columns = { messages = "chat" }`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub columns: BTreeMap<String, String>,
}

fn one() -> f64 {
    1.0
}

impl SourceConfig {
    /// Every row of the files of `path`, once an epoch, format detected.
    #[must_use]
    pub fn new(path: impl Into<String>) -> Self {
        Self {
            path: Paths::One(path.into()),
            format: SourceFormat::Auto,
            weight: 1.0,
            limit: None,
            columns: BTreeMap::new(),
        }
    }
}

/// A path or glob, or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Paths {
    /// One path or glob.
    One(String),
    /// Several, read in this order.
    Many(Vec<String>),
}

impl Paths {
    /// The paths as written.
    #[must_use]
    pub fn as_slice(&self) -> &[String] {
        match self {
            Self::One(path) => std::slice::from_ref(path),
            Self::Many(paths) => paths,
        }
    }
}

/// `format` of a `[[data]]` entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SourceFormat {
    /// By the names of the columns.
    #[default]
    Auto,
    /// `messages`: a list of role and content (`tools` beside it), or the same as JSON text.
    Messages,
    /// `conversations`: a list of `from` and `value`.
    Sharegpt,
    /// `instruction`, `input`, `output`.
    Alpaca,
    /// `prompt` and `completion`: text that is used verbatim, or messages.
    Completion,
    /// `text`: documents.
    Text,
    /// `input_ids` and, if there, `labels`.
    Tokens,
}

/// A top-level column of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type, for people: `list<struct<role: string, content: string>>`.
    pub type_name: String,
    /// What formats need to know about its type.
    pub shape: Shape,
}

/// The part of a column's type that decides whether a format can read it.
#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    /// Text.
    Text,
    /// Whole numbers.
    Integer,
    /// An object with these fields.
    Object(Vec<String>),
    /// A list.
    List(Box<Shape>),
    /// Only nulls, or empty lists, were seen (jsonl): the type shows only in later rows.
    Unknown,
    /// Anything else.
    Other,
}

/// The rows of one block.
pub(crate) enum Block {
    /// Columns.
    Arrow(RecordBatch),
    /// Lines of JSON objects.
    Lines(jsonl::Lines),
}

/// A file as blocks of rows. Reading takes `&self`: several threads may read at once.
pub(crate) trait Blocks: Send + Sync {
    fn path(&self) -> &Path;
    fn columns(&self) -> &[Column];
    fn num_blocks(&self) -> usize;
    /// Rows of a block, known without reading it.
    fn block_rows(&self, block: usize) -> usize;
    /// Decodes a block; of its columns only those that were projected.
    fn read(&self, block: usize) -> Result<Block, DataError>;
    /// From now on only these columns are needed.
    fn project(&mut self, columns: &[String]) -> Result<(), DataError>;
}

/// Opens a file by its extension: reads footers or scans for lines, never rows.
pub(crate) fn open(path: &Path) -> Result<Box<dyn Blocks>, DataError> {
    let refuse = |found: String| Err(DataError::FileType { path: path.to_owned(), found });
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    match extension.as_str() {
        "parquet" | "pq" => Ok(Box::new(parquet::Parquet::open(path)?)),
        "jsonl" | "ndjson" | "json" => Ok(Box::new(jsonl::Jsonl::open(path)?)),
        "arrow" | "feather" => Ok(Box::new(ipc::Ipc::open(path)?)),
        "" => refuse("it has no file extension".into()),
        "gz" | "zst" | "bz2" | "xz" | "zip" => {
            refuse(format!("`.{extension}` files must be unpacked first (parquet compresses by itself)"))
        }
        other => refuse(format!("`.{other}` files are not supported")),
    }
}

/// Length and both ends of a file: cheap to read, and different wherever a file was rewritten.
pub(crate) fn ends(path: &Path) -> Result<Vec<u8>, DataError> {
    const END: u64 = 64 << 10;
    let io = |e| DataError::io(path, e);
    let mut file = File::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    let mut bytes = length.to_le_bytes().to_vec();
    (&mut file).take(END).read_to_end(&mut bytes).map_err(io)?;
    file.seek(SeekFrom::Start(length.saturating_sub(END).max(END.min(length)))).map_err(io)?;
    file.take(END).read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

/// Whether a file of `length` bytes may hold so many rows. Columns of one repeated value take next to nothing, so the
/// bound is wide; it is there so that a damaged count does not become an endless loop.
fn plausible(rows: usize, length: u64) -> bool {
    rows as u64 <= (1 << 24) + 64 * length
}
