//! Columns to [`Row`]s: which columns a format reads, which format fits a file, and the reading itself.

mod alpaca;
mod cell;
mod completion;
mod messages;
mod sharegpt;
mod text;
mod tokens;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{DataError, RowError, near};
use crate::row::Row;
use crate::source::{Block, Column, Shape, SourceFormat};

/// How the columns of a source become rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Lists of role and content.
    Messages,
    /// Lists of `from` and `value`.
    Sharegpt,
    /// Instruction, input, output.
    Alpaca,
    /// Prompt and completion.
    Completion,
    /// Documents.
    Text,
    /// Token ids.
    Tokens,
}

/// A column that a format reads.
struct Reads {
    /// The format's name for it; `columns` may say that the file calls it otherwise.
    key: &'static str,
    required: bool,
    expected: &'static str,
    accepts: fn(&Shape) -> bool,
}

const fn needs(key: &'static str, expected: &'static str, accepts: fn(&Shape) -> bool) -> Reads {
    Reads { key, required: true, expected, accepts }
}

const fn may(key: &'static str, expected: &'static str, accepts: fn(&Shape) -> bool) -> Reads {
    Reads { key, required: false, expected, accepts }
}

/// In the order in which `auto` prefers them where several fit.
const FORMATS: [Format; 6] =
    [Format::Tokens, Format::Messages, Format::Sharegpt, Format::Completion, Format::Alpaca, Format::Text];

impl Format {
    /// The name in recipes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::Sharegpt => "sharegpt",
            Self::Alpaca => "alpaca",
            Self::Completion => "completion",
            Self::Text => "text",
            Self::Tokens => "tokens",
        }
    }

    fn reads(self) -> &'static [Reads] {
        match self {
            Self::Messages => &messages::READS,
            Self::Sharegpt => &sharegpt::READS,
            Self::Alpaca => &alpaca::READS,
            Self::Completion => &completion::READS,
            Self::Text => &text::READS,
            Self::Tokens => &tokens::READS,
        }
    }
}

fn text_shape(shape: &Shape) -> bool {
    matches!(shape, Shape::Text | Shape::Unknown)
}

/// Text, or a list of objects: what may hold JSON.
fn text_or_objects(shape: &Shape) -> bool {
    match shape {
        Shape::Text | Shape::Unknown => true,
        Shape::List(inner) => matches!(**inner, Shape::Object(_) | Shape::Unknown),
        _ => false,
    }
}

fn integers(shape: &Shape) -> bool {
    match shape {
        Shape::Unknown => true,
        Shape::List(inner) => matches!(**inner, Shape::Integer | Shape::Unknown),
        _ => false,
    }
}

/// What to read where in the rows of one source.
#[derive(Debug, Clone)]
pub struct Reader {
    format: Format,
    renames: BTreeMap<String, String>,
    reason: String,
}

/// A mistake in a row and the column it is in.
pub(crate) struct CellError {
    pub(crate) column: Option<String>,
    pub(crate) line: Option<u64>,
    pub(crate) error: RowError,
}

impl Reader {
    /// The format that the recipe names, or the one that fits the first file's columns.
    pub fn resolve(
        asked: SourceFormat,
        renames: &BTreeMap<String, String>,
        path: &Path,
        columns: &[Column],
    ) -> Result<Self, DataError> {
        let (format, reason) = match asked {
            SourceFormat::Auto => detect(path, columns, renames)?,
            SourceFormat::Messages => (Format::Messages, "as the recipe says".into()),
            SourceFormat::Sharegpt => (Format::Sharegpt, "as the recipe says".into()),
            SourceFormat::Alpaca => (Format::Alpaca, "as the recipe says".into()),
            SourceFormat::Completion => (Format::Completion, "as the recipe says".into()),
            SourceFormat::Text => (Format::Text, "as the recipe says".into()),
            SourceFormat::Tokens => (Format::Tokens, "as the recipe says".into()),
        };
        let mut renames = renames.clone();
        for key in renames.keys() {
            if !format.reads().iter().any(|r| r.key == key) {
                return Err(DataError::UnknownRename {
                    key: key.clone(),
                    format: format.name(),
                    known: format.reads().iter().map(|r| r.key.to_owned()).collect(),
                });
            }
        }
        if asked == SourceFormat::Auto
            && format == Format::Messages
            && !renames.contains_key("messages")
            && let Some(column) = messages_column(columns)
        {
            renames.insert("messages".into(), column.to_owned());
        }
        Ok(Self { format, renames, reason })
    }

    /// The format.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Why this format.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// The file's name of one of the format's columns.
    pub(crate) fn column<'a>(&'a self, key: &'a str) -> &'a str {
        self.renames.get(key).map_or(key, String::as_str)
    }

    /// The column to blame where a row as a whole is wrong.
    pub(crate) fn main_column(&self) -> String {
        self.column(self.format.reads()[0].key).to_owned()
    }

    /// Columns of a file that are read, or every reason why the file does not fit.
    pub fn check(&self, path: &Path, columns: &[Column]) -> Result<Vec<String>, Vec<DataError>> {
        let mut used = Vec::new();
        let mut errors = Vec::new();
        for reads in self.format.reads() {
            let name = self.column(reads.key);
            match columns.iter().find(|c| c.name == name) {
                Some(column) if (reads.accepts)(&column.shape) => used.push(name.to_owned()),
                Some(column) => errors.push(DataError::ColumnType {
                    path: path.to_owned(),
                    column: name.to_owned(),
                    found: column.type_name.clone(),
                    expected: reads.expected,
                }),
                None if reads.required || self.renames.contains_key(reads.key) => {
                    errors.push(DataError::MissingColumn {
                        path: path.to_owned(),
                        column: name.to_owned(),
                        format: self.format.name(),
                        near: near(name, columns.iter().map(|c| c.name.as_str())),
                        found: described(columns),
                    });
                }
                // Optional, and in jsonl it may still come in a later row.
                None => {}
            }
        }
        if errors.is_empty() { Ok(used) } else { Err(errors) }
    }

    /// Reads one row of a block.
    pub(crate) fn read(&self, block: &Block, row: usize) -> Result<Row, CellError> {
        let line = match block {
            Block::Lines(lines) => Some(lines.number(row)),
            Block::Arrow(_) => None,
        };
        let at = |column: Option<String>| move |error| CellError { column, line, error };
        let object = match block {
            Block::Lines(lines) => Some(lines.parse(row).map_err(at(None))?),
            Block::Arrow(_) => None,
        };
        let cells = Cells { reader: self, block, row, object };
        let result = match self.format {
            Format::Messages => messages::read(&cells),
            Format::Sharegpt => sharegpt::read(&cells),
            Format::Alpaca => alpaca::read(&cells),
            Format::Completion => completion::read(&cells),
            Format::Text => text::read(&cells),
            Format::Tokens => tokens::read(&cells),
        };
        result.map_err(|(key, error)| at(Some(self.column(key).to_owned()))(error))
    }
}

/// The cells of one row, by the format's names.
struct Cells<'a> {
    reader: &'a Reader,
    block: &'a Block,
    row: usize,
    object: Option<Map<String, Value>>,
}

/// What is wrong with which of the format's columns.
type ReadError = (&'static str, RowError);

impl Cells<'_> {
    /// The cell, null where the row or the file has none.
    fn optional(&self, key: &'static str) -> Result<Value, ReadError> {
        let name = self.reader.column(key);
        if let Some(object) = &self.object {
            return Ok(object.get(name).cloned().unwrap_or(Value::Null));
        }
        match self.block {
            Block::Arrow(batch) => match batch.column_by_name(name) {
                Some(array) => cell::value(array.as_ref(), self.row).map_err(|error| (key, error)),
                None => Ok(Value::Null),
            },
            Block::Lines(_) => Ok(Value::Null),
        }
    }

    /// The cell, which must hold something.
    fn required(&self, key: &'static str, expected: &'static str) -> Result<Value, ReadError> {
        let value = self.optional(key)?;
        if !value.is_null() {
            return Ok(value);
        }
        match &self.object {
            Some(object) if !object.contains_key(self.reader.column(key)) => {
                Err((key, RowError::MissingKey { expected, found: object.keys().cloned().collect() }))
            }
            _ => Err((key, RowError::Null { expected })),
        }
    }

    fn required_text(&self, key: &'static str) -> Result<String, ReadError> {
        text_of(self.required(key, "text")?, "the cell").map_err(|error| (key, error))
    }

    /// Text, null read as none.
    fn optional_text(&self, key: &'static str) -> Result<Option<String>, ReadError> {
        match self.optional(key)? {
            Value::Null => Ok(None),
            value => text_of(value, "the cell").map(Some).map_err(|error| (key, error)),
        }
    }
}

fn text_of(value: Value, what: &str) -> Result<String, RowError> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(RowError::WrongType {
            what: what.to_owned(),
            found: crate::source::kind(&other).into(),
            expected: "text",
        }),
    }
}

fn described(columns: &[Column]) -> Vec<String> {
    columns.iter().map(|c| format!("{}: {}", c.name, c.type_name)).collect()
}

/// The column that holds lists of role and content: `messages`, or `conversations` with those fields.
fn messages_column(columns: &[Column]) -> Option<&str> {
    ["messages", "conversations", "conversation"].into_iter().find(|name| {
        columns.iter().any(|c| {
            c.name == *name
                && match &c.shape {
                    Shape::List(inner) => match inner.as_ref() {
                        Shape::Object(fields) => fields.iter().any(|f| f == "role"),
                        _ => *name == "messages",
                    },
                    _ => *name == "messages",
                }
        })
    })
}

/// The first format, in order of preference, all of whose columns are there.
fn detect(path: &Path, columns: &[Column], renames: &BTreeMap<String, String>) -> Result<(Format, String), DataError> {
    let has = |key: &str| {
        let name = renames.get(key).map_or(key, String::as_str);
        columns.iter().find(|c| c.name == name)
    };
    let fits = |format: Format| match format {
        Format::Messages if !renames.contains_key("messages") => messages_column(columns).is_some(),
        // A rename that the format does not read speaks for another one.
        _ => {
            renames.keys().all(|key| format.reads().iter().any(|r| r.key == key))
                && format.reads().iter().filter(|r| r.required).all(|r| has(r.key).is_some())
        }
    };
    let fitting: Vec<Format> = FORMATS.into_iter().filter(|f| fits(*f)).collect();
    let preference = has("chosen").is_some() && has("rejected").is_some();
    let Some(&format) = fitting.first().filter(|_| !(preference && fitting != [Format::Messages])) else {
        let expected = if preference {
            "`chosen` and `rejected` are preference pairs, which cannot be trained on yet".to_owned()
        } else {
            let needs: Vec<String> = FORMATS
                .iter()
                .map(|f| {
                    let keys: Vec<&str> = f.reads().iter().filter(|r| r.required).map(|r| r.key).collect();
                    format!("{} needs `{}`", f.name(), keys.join("`, `"))
                })
                .collect();
            format!("{}; give `format`, or `columns` if they have other names", needs.join(", "))
        };
        return Err(DataError::UnknownFormat { path: path.to_owned(), found: described(columns), expected });
    };
    let named: Vec<String> = match format {
        Format::Messages if !renames.contains_key("messages") => {
            vec![format!("`{}`", messages_column(columns).unwrap_or("messages"))]
        }
        _ => format
            .reads()
            .iter()
            .filter(|r| r.required)
            .filter_map(|r| has(r.key).map(|c| format!("`{}`", c.name)))
            .collect(),
    };
    let mut reason = format!("the columns include {}", named.join(" and "));
    if fitting.len() > 1 {
        let others: Vec<&str> = fitting[1..].iter().map(|f| f.name()).collect();
        reason.push_str(&format!(" (preferred to {})", others.join(", ")));
    }
    Ok((format, reason))
}
/// Messages from JSON, a list or its text, checked as those of a data file are.
pub fn read_messages(value: serde_json::Value) -> Result<Vec<crate::Message>, crate::RowError> {
    messages::messages(value)
}
