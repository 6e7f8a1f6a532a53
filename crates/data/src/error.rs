//! Every way in which data, tokenizer or chat template can be wrong, with where and what was found.

use std::fmt;
use std::path::{Path, PathBuf};

/// What went wrong with a data file, a tokenizer or a template.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A path or glob of a source leads to no file.
    #[error("no file matches `{pattern}`{}", hint(.near))]
    NoMatch {
        /// As written.
        pattern: String,
        /// A file of a similar name.
        near: Option<String>,
    },
    /// A glob that cannot be read.
    #[error("`{pattern}` is not a glob: {message}")]
    BadPattern {
        /// As written.
        pattern: String,
        /// From the glob parser.
        message: String,
    },
    /// A source without any path.
    #[error("a data source has an empty `path`")]
    NoPath,
    /// A setting of a source or of `[tokens]` that is out of range.
    #[error("`{key}` is {found}, expected {expected}")]
    Setting {
        /// The recipe key.
        key: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// The file system refused.
    #[error("cannot read `{}`: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file of a kind that cannot be read.
    #[error("cannot read `{}`: {found}; expected `.parquet`, `.jsonl` or `.arrow`", path.display())]
    FileType {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: String,
    },
    /// A file whose bytes are not what its name promises: truncated, overwritten or damaged.
    #[error("`{}` is damaged: {message}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found where.
        message: String,
    },
    /// A file without rows.
    #[error("`{}` has no rows", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// No format fits the columns.
    #[error("`{}`: no known format has these columns: {}; {expected}", path.display(), list(.found))]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// Its columns.
        found: Vec<String>,
        /// What formats would need.
        expected: String,
    },
    /// A column that the format needs is not there.
    #[error("`{}` has no column `{column}`, which format `{format}` needs{}; found {}", path.display(), hint(.near), list(.found))]
    MissingColumn {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// Who needs it.
        format: &'static str,
        /// A column of a similar name.
        near: Option<String>,
        /// All columns, with their types.
        found: Vec<String>,
    },
    /// A column is there but of a type that the format cannot read.
    #[error("`{}`, column `{column}`: found {found}, expected {expected}", path.display())]
    ColumnType {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// Its type.
        found: String,
        /// Types that would do.
        expected: &'static str,
    },
    /// `columns` renames something that the format does not have.
    #[error("`columns` names `{key}`, which format `{format}` does not read; it reads {}", list(.known))]
    UnknownRename {
        /// As written.
        key: String,
        /// The format.
        format: &'static str,
        /// What may be renamed.
        known: Vec<String>,
    },
    /// The contents of one row.
    #[error("{}: {error}", Place { path, row: *row, line: *line, column: column.as_deref() })]
    Row {
        /// The file.
        path: PathBuf,
        /// Row of the file, from 0.
        row: u64,
        /// Line of the file, from 1, where it has lines.
        line: Option<u64>,
        /// The column, where one is to blame.
        column: Option<String>,
        /// What is wrong.
        error: Box<RowError>,
    },
    /// A whole epoch went by without a row that could be trained on.
    #[error(
        "none of {rows} rows has a token that carries loss (all were masked, or dropped as longer than `max_length`)"
    )]
    NothingTrained {
        /// Rows looked at.
        rows: u64,
    },
    /// A cursor that was saved for other data.
    #[error("cannot resume: {message}")]
    Cursor {
        /// What differs.
        message: String,
    },
    /// The held-out part, or what remains after it, would have no row.
    #[error("cannot hold out {fraction} of {rows} rows: both parts need a row")]
    Split {
        /// As asked.
        fraction: f64,
        /// All rows.
        rows: u64,
    },
    /// The tokenizer file.
    #[error("cannot use tokenizer `{}`: {message}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// A chat template that does not compile.
    #[error("chat template {origin}: {message}")]
    Template {
        /// Where it came from.
        origin: String,
        /// From the template engine, with the line.
        message: String,
    },
    /// The thread that prepares batches.
    #[error("the thread that prepares batches failed: {message}")]
    Thread {
        /// Why.
        message: String,
    },
}

/// What is wrong inside one row.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RowError {
    /// A null where a value is needed.
    #[error("the cell is null, expected {expected}")]
    Null {
        /// What it should hold.
        expected: &'static str,
    },
    /// The row lacks the key altogether (jsonl).
    #[error("no such key in this row, expected {expected}; found {}", list(.found))]
    MissingKey {
        /// What it should hold.
        expected: &'static str,
        /// Keys of the row.
        found: Vec<String>,
    },
    /// A value of another type.
    #[error("{what} is {found}, expected {expected}")]
    WrongType {
        /// Which value.
        what: String,
        /// What it is.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A conversation, text or id list without anything in it.
    #[error("{what} is empty")]
    Empty {
        /// Which value.
        what: &'static str,
    },
    /// Text that should be JSON.
    #[error("not valid JSON: {message}")]
    Json {
        /// From the parser.
        message: String,
    },
    /// A message without a field that every message has.
    #[error("message {index} has no `{field}`; it has {}", list(.found))]
    MissingField {
        /// Which message, from 0.
        index: usize,
        /// What is missing.
        field: &'static str,
        /// What is there.
        found: Vec<String>,
    },
    /// A role that neither we nor the template know.
    #[error("message {index} has the unknown role `{role}`; expected {expected}")]
    UnknownRole {
        /// Which message, from 0.
        index: usize,
        /// As found.
        role: String,
        /// What it may be.
        expected: &'static str,
    },
    /// The template failed, or refused with `raise_exception`.
    #[error("the chat template failed: {message}")]
    Template {
        /// From the template engine.
        message: String,
    },
    /// Text that spells a special token.
    #[error(
        "{what} spells the special token `{token}`; set `tokens.special_tokens` to \"escape\" to encode it as text, or to \"allow\" to keep it as a token"
    )]
    SpecialToken {
        /// The token.
        token: String,
        /// Where.
        what: String,
        /// The text around it.
        around: String,
    },
    /// Text that holds a character reserved for internal marks.
    #[error("{what} holds the noncharacter U+{code:04X}, which is reserved")]
    Reserved {
        /// Where.
        what: String,
        /// The code point.
        code: u32,
    },
    /// A token id outside of the model's vocabulary.
    #[error("token {position} is {id}, outside of the model's vocabulary of {limit}")]
    TokenId {
        /// Index in `input_ids`.
        position: usize,
        /// As found.
        id: i64,
        /// The vocabulary's size.
        limit: usize,
    },
    /// `labels` does not fit `input_ids`.
    #[error("`labels` has {labels} entries, `input_ids` has {ids}")]
    LabelCount {
        /// How many labels.
        labels: usize,
        /// How many ids.
        ids: usize,
    },
    /// A label that is neither the token itself nor the mask.
    #[error("label {position} is {label}, expected -100 or the token itself ({id})")]
    Label {
        /// Index in `labels`.
        position: usize,
        /// As found.
        label: i64,
        /// The token there.
        id: u32,
    },
    /// No rule says which tokens the assistant wrote.
    #[error(
        "the chat template is not ChatML and has no `{{% generation %}}` tag, so the assistant's tokens cannot be told apart; give a template with the tag in `tokens.template`, or set `tokens.loss_on` to \"all\""
    )]
    NoMaskRule,
    /// A conversation for a model that cannot be spoken to.
    #[error(
        "the model has no chat template, and its tokenizer lacks `<|im_start|>` for plain ChatML; give a template in `tokens.template`"
    )]
    NoTemplate,
    /// The rendered prompt is not how the rendered conversation begins.
    #[error(
        "the template renders the prompt differently once the completion follows (they agree for {agree} of {prompt} bytes); use `messages` rows instead"
    )]
    PromptChanged {
        /// Bytes in common.
        agree: usize,
        /// Bytes of the rendered prompt.
        prompt: usize,
    },
    /// Longer than allowed, with `overlong = "error"`.
    #[error("the row has {tokens} tokens, `tokens.max_length` is {max}")]
    Overlong {
        /// Its tokens.
        tokens: usize,
        /// The limit.
        max: usize,
    },
    /// The tokenizer failed on this text.
    #[error("the tokenizer failed: {message}")]
    Tokenizer {
        /// From the tokenizer.
        message: String,
    },
}

impl DataError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn damaged(path: &Path, message: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), message: message.into() }
    }
}

/// "`file` row 3 (line 4), column `messages`".
struct Place<'a> {
    path: &'a Path,
    row: u64,
    line: Option<u64>,
    column: Option<&'a str>,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` row {}", self.path.display(), self.row)?;
        if let Some(line) = self.line {
            write!(f, " (line {line})")?;
        }
        if let Some(column) = self.column {
            write!(f, ", column `{column}`")?;
        }
        Ok(())
    }
}

fn hint(near: &Option<String>) -> String {
    near.as_ref().map(|near| format!("; did you mean `{near}`?")).unwrap_or_default()
}

/// Names in backticks; long lists are cut, since a file may have thousands of columns.
pub(crate) fn list(names: &[String]) -> String {
    const SHOWN: usize = 20;
    if names.is_empty() {
        return "nothing".into();
    }
    let mut text = names.iter().take(SHOWN).map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}

/// The candidate most like `name`, if any is like it at all.
pub(crate) fn near<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<String> {
    candidates
        .map(|c| (strsim::jaro_winkler(&name.to_lowercase(), &c.to_lowercase()), c))
        .filter(|(score, _)| *score > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, c)| c.to_owned())
}
