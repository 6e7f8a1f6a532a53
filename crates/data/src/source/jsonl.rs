//! Files of one JSON object a line: a block is a stretch of 1024 lines.
//!
//! Opening scans the file once for line ends and remembers where every 1024th row starts, so memory stays at a few
//! bytes a thousand rows and any row can be reached by reading at most one block. Blank lines are not rows.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{Block, Blocks, Column, Shape};
use crate::error::{DataError, RowError};

const BLOCK_ROWS: usize = 1024;
/// A longer line is taken for a file that is not what its name says.
const MAX_LINE: u64 = 64 << 20;
/// Rows looked at to learn the columns.
const SAMPLED_ROWS: usize = 16;

pub(super) struct Jsonl {
    path: PathBuf,
    columns: Vec<Column>,
    /// Where blocks start; one more entry for the end of the last.
    starts: Vec<Start>,
    rows: usize,
}

#[derive(Clone, Copy)]
struct Start {
    offset: u64,
    line: u64,
}

/// The lines of one block, not parsed yet.
pub(crate) struct Lines {
    bytes: Vec<u8>,
    /// Line number from 1 and the line's bytes.
    lines: Vec<(u64, Range<usize>)>,
}

impl Lines {
    pub(crate) fn len(&self) -> usize {
        self.lines.len()
    }

    /// Line number, from 1.
    pub(crate) fn number(&self, row: usize) -> u64 {
        self.lines[row].0
    }

    /// The object on a line.
    pub(crate) fn parse(&self, row: usize) -> Result<Map<String, Value>, RowError> {
        parse(&self.bytes[self.lines[row].1.clone()])
    }
}

fn parse(line: &[u8]) -> Result<Map<String, Value>, RowError> {
    match serde_json::from_slice(line) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(other) => {
            Err(RowError::WrongType { what: "the line".into(), found: kind(&other).into(), expected: "a JSON object" })
        }
        Err(error) => {
            // The parser sees one line: its line number says nothing, its column does.
            let text = error.to_string();
            let text = text.split(" at line ").next().unwrap_or_default();
            Err(RowError::Json { message: format!("{text} at column {}", error.column()) })
        }
    }
}

pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

impl Jsonl {
    pub(super) fn open(path: &Path) -> Result<Self, DataError> {
        let io = |e| DataError::io(path, e);
        let mut reader = BufReader::with_capacity(1 << 18, File::open(path).map_err(io)?);
        if reader.fill_buf().map_err(io)?.starts_with(b"\xef\xbb\xbf") {
            reader.consume(3);
        }
        let first = reader.stream_position().map_err(io)?;
        let mut scan = Scan { offset: first, line: 1, starts: Vec::new(), rows: 0 };
        scan.run(path, &mut reader)?;
        if scan.rows == 0 {
            return Err(DataError::Empty { path: path.to_owned() });
        }
        let mut opened = Self { path: path.to_owned(), columns: Vec::new(), starts: scan.starts, rows: scan.rows };
        opened.columns = opened.sample_columns()?;
        Ok(opened)
    }

    fn sample_columns(&self) -> Result<Vec<Column>, DataError> {
        let lines = self.lines(0)?;
        let mut columns: Vec<Column> = Vec::new();
        for row in 0..lines.len().min(SAMPLED_ROWS) {
            let fields = lines.parse(row).map_err(|error| self.first_error(&lines, row, error))?;
            for (name, value) in &fields {
                match columns.iter_mut().find(|c| &c.name == name) {
                    Some(column) if knows_less(&column.shape) => {
                        *column = Column { name: name.clone(), type_name: type_name(value), shape: shape(value) };
                    }
                    Some(_) => {}
                    None => {
                        columns.push(Column { name: name.clone(), type_name: type_name(value), shape: shape(value) });
                    }
                }
            }
        }
        Ok(columns)
    }

    /// A first row that does not parse may be a file of another kind.
    fn first_error(&self, lines: &Lines, row: usize, error: RowError) -> DataError {
        let text = &lines.bytes[lines.lines[row].1.clone()];
        let found = match text.first() {
            Some(b'[') if row == 0 => "one JSON list, expected one object a line",
            Some(b'{') if row == 0 && lines.len() > 1 && text.len() < 3 => {
                "JSON spread over several lines, expected one object a line"
            }
            _ => {
                return DataError::Row {
                    path: self.path.clone(),
                    row: row as u64,
                    line: Some(lines.number(row)),
                    column: None,
                    error: Box::new(error),
                };
            }
        };
        DataError::FileType { path: self.path.clone(), found: found.into() }
    }

    fn lines(&self, block: usize) -> Result<Lines, DataError> {
        let io = |e| DataError::io(&self.path, e);
        let (start, end) = (self.starts[block], self.starts[block + 1]);
        let length = usize::try_from(end.offset - start.offset).expect("invariant: a block has 1024 bounded lines");
        let mut file = File::open(&self.path).map_err(io)?;
        file.seek(SeekFrom::Start(start.offset)).map_err(io)?;
        let mut bytes = Vec::with_capacity(length);
        file.take(length as u64).read_to_end(&mut bytes).map_err(io)?;
        let mut lines = Vec::with_capacity(BLOCK_ROWS);
        let (mut at, mut number) = (0, start.line);
        while at < bytes.len() {
            let stop = bytes[at..].iter().position(|b| *b == b'\n').map_or(bytes.len(), |n| at + n);
            if !bytes[at..stop].trim_ascii().is_empty() {
                lines.push((number, at..stop));
            }
            at = stop + 1;
            number += 1;
        }
        if lines.len() != self.block_rows(block) {
            return Err(DataError::damaged(&self.path, "it changed while it was being read"));
        }
        Ok(Lines { bytes, lines })
    }
}

/// One pass over a file, line by line, keeping nothing but where blocks start.
struct Scan {
    offset: u64,
    line: u64,
    starts: Vec<Start>,
    rows: usize,
}

impl Scan {
    fn run(&mut self, path: &Path, reader: &mut impl BufRead) -> Result<(), DataError> {
        let (mut blank, mut length) = (true, 0u64);
        loop {
            let buffer = reader.fill_buf().map_err(|e| DataError::io(path, e))?;
            if buffer.is_empty() {
                break;
            }
            let newline = buffer.iter().position(|b| *b == b'\n');
            let part = &buffer[..newline.unwrap_or(buffer.len())];
            blank &= part.trim_ascii().is_empty();
            length += part.len() as u64;
            if length > MAX_LINE {
                return Err(DataError::damaged(
                    path,
                    format!(
                        "line {} is longer than {} MiB, expected one JSON object a line",
                        self.line,
                        MAX_LINE >> 20
                    ),
                ));
            }
            let used = newline.map_or(part.len(), |n| n + 1);
            reader.consume(used);
            if newline.is_some() {
                self.end_line(blank, length + 1);
                (blank, length) = (true, 0);
            }
        }
        if length > 0 {
            self.end_line(blank, length);
        }
        self.starts.push(Start { offset: self.offset, line: self.line });
        Ok(())
    }

    fn end_line(&mut self, blank: bool, bytes: u64) {
        if !blank {
            if self.rows.is_multiple_of(BLOCK_ROWS) {
                self.starts.push(Start { offset: self.offset, line: self.line });
            }
            self.rows += 1;
        }
        self.offset += bytes;
        self.line += 1;
    }
}

impl Blocks for Jsonl {
    fn path(&self) -> &Path {
        &self.path
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn num_blocks(&self) -> usize {
        self.starts.len() - 1
    }

    fn block_rows(&self, block: usize) -> usize {
        BLOCK_ROWS.min(self.rows - block * BLOCK_ROWS)
    }

    fn read(&self, block: usize) -> Result<Block, DataError> {
        self.lines(block).map(Block::Lines)
    }

    fn project(&mut self, _: &[String]) -> Result<(), DataError> {
        Ok(())
    }
}

fn knows_less(shape: &Shape) -> bool {
    match shape {
        Shape::Unknown => true,
        Shape::List(inner) => knows_less(inner),
        _ => false,
    }
}

fn shape(value: &Value) -> Shape {
    match value {
        Value::Null => Shape::Unknown,
        Value::String(_) => Shape::Text,
        Value::Number(n) if n.is_i64() || n.is_u64() => Shape::Integer,
        Value::Array(items) => Shape::List(Box::new(items.first().map_or(Shape::Unknown, shape))),
        Value::Object(fields) => Shape::Object(fields.keys().cloned().collect()),
        Value::Bool(_) | Value::Number(_) => Shape::Other,
    }
}

fn type_name(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "boolean".into(),
        Value::String(_) => "string".into(),
        Value::Number(n) if n.is_i64() || n.is_u64() => "integer".into(),
        Value::Number(_) => "number".into(),
        Value::Array(items) => format!("list<{}>", items.first().map_or("?".into(), type_name)),
        Value::Object(fields) => {
            let fields: Vec<String> = fields.iter().map(|(k, v)| format!("{k}: {}", type_name(v))).collect();
            format!("struct<{}>", fields.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::Builder::new().suffix(".jsonl").tempfile().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn blocks_start_at_every_1024th_row_and_blank_lines_are_not_rows() {
        let mut text = String::from("\u{feff}\n");
        for i in 0..2500 {
            text.push_str(&format!("{{\"n\": {i}}}\r\n"));
            if i % 100 == 7 {
                text.push_str("  \n\n");
            }
        }
        let file = file(text.trim_end());
        let jsonl = Jsonl::open(file.path()).unwrap();
        assert_eq!(jsonl.num_blocks(), 3);
        let mut n = 0;
        for block in 0..3 {
            let lines = jsonl.lines(block).unwrap();
            assert_eq!(lines.len(), jsonl.block_rows(block));
            for row in 0..lines.len() {
                assert_eq!(lines.parse(row).unwrap()["n"], n);
                let number = lines.number(row) as usize;
                assert!(text.lines().nth(number - 1).unwrap().contains(&format!(" {n}}}")));
                n += 1;
            }
        }
        assert_eq!(n, 2500);
    }

    #[test]
    fn columns_are_learnt_from_rows_that_have_something_in_them() {
        let file = file("{\"a\": null, \"b\": []}\n{\"a\": \"x\", \"b\": [{\"role\": \"user\"}]}\n");
        let jsonl = Jsonl::open(file.path()).unwrap();
        let types: Vec<&str> = jsonl.columns().iter().map(|c| c.type_name.as_str()).collect();
        assert_eq!(types, ["string", "list<struct<role: string>>"]);
    }

    #[test]
    fn files_that_are_not_lines_of_objects_are_named() {
        let message = |text: &str| match Jsonl::open(file(text).path()) {
            Ok(_) => panic!("accepted {text:?}"),
            Err(error) => error.to_string(),
        };
        assert!(message("[{\"a\": 1}]").contains("one JSON list"));
        assert!(message("{\n \"a\": 1\n}").contains("spread over several lines"));
        assert!(
            message("{\"a\": 1}\n{\"a\": \n").contains("row 1 (line 2): not valid JSON: EOF while parsing a value")
        );
        assert!(message("3\n").contains("the line is a number, expected a JSON object"));
        assert!(message(" \n\n").contains("has no rows"));
    }
}
