//! How a mistake is told to a person or a program: a code, the place, what was found, what was expected, what to type.
//!
//! Every mistake of recipe, data and checkpoint becomes a [`Diagnostic`]; a command that is stopped by them hands all of
//! them back at once as [`Diagnostics`], which also know the exit code.

mod render;

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};

pub use self::render::Look;

/// A text that diagnostics point into: a recipe, or one `--set` argument.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    /// What a report calls it: the path as the user typed it, or the flag.
    pub name: String,
    /// The whole text.
    pub text: String,
    /// Which of the document's sources it is; reports follow their order.
    pub order: usize,
}

impl Source {
    /// Line and column of a byte offset, both from 1; columns count characters.
    pub fn locate(&self, offset: usize) -> (usize, usize) {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        let before = &self.text[..offset];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }
}

/// A range of bytes in a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The text the range is in.
    pub source: Arc<Source>,
    /// Bytes, end exclusive.
    pub range: Range<usize>,
}

/// How bad it is, which decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Printed for the record: the user has said that it is meant so.
    Note,
    /// Printed; nothing stops.
    Warning,
    /// Something went wrong while running: exit code 1.
    Failure,
    /// The recipe or the command line is wrong: exit code 2.
    Mistake,
}

/// Where in the user's data or files a problem sits, when it is not in the recipe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// Row of the file, from 0.
    pub row: Option<u64>,
    /// Line of the file, from 1, where it has lines.
    pub line: Option<u64>,
    /// Name of the column or field.
    pub column: Option<String>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(row) = self.row {
            write!(f, ", row {row}")?;
        }
        if let Some(line) = self.line {
            write!(f, " (line {line})")?;
        }
        if let Some(column) = &self.column {
            write!(f, ", column `{column}`")?;
        }
        Ok(())
    }
}

/// One problem, told with what a person needs to end it.
#[derive(Clone, Debug, PartialEq)]
pub struct Diagnostic {
    /// Stable name of the kind of problem, in kebab-case.
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// One sentence: lower case, literals in backticks, no trailing period.
    pub message: String,
    /// Where in the recipe.
    pub span: Option<Span>,
    /// What stands beside the underlined range.
    pub label: Option<String>,
    /// Other ranges that have a part in it, each with its own label.
    pub related: Vec<(Span, String)>,
    /// What was there.
    pub found: Option<String>,
    /// What should have been there.
    pub expected: Option<String>,
    /// Things to do or to type.
    pub hints: Vec<String>,
    /// Where in data files.
    pub place: Option<Place>,
    /// What stands there, on one line.
    pub excerpt: Option<String>,
    /// The chain of causes beneath a failure, outermost first.
    pub causes: Vec<String>,
}

impl Diagnostic {
    fn new(severity: Severity, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            severity,
            message: message.into(),
            span: None,
            label: None,
            related: Vec::new(),
            found: None,
            expected: None,
            hints: Vec::new(),
            place: None,
            excerpt: None,
            causes: Vec::new(),
        }
    }

    /// A mistake in the recipe, its files or the command line (exit code 2).
    pub fn mistake(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Severity::Mistake, code, message)
    }

    /// A failure while running (exit code 1).
    pub fn failure(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Severity::Failure, code, message)
    }

    /// Something to know; nothing stops.
    pub fn warning(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Severity::Warning, code, message)
    }

    /// Something that the user has said is meant so.
    pub fn note(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Severity::Note, code, message)
    }

    /// A library error as a mistake, its causes kept.
    pub fn mistake_from(code: &'static str, error: &(dyn std::error::Error + 'static)) -> Self {
        Self::mistake(code, error.to_string()).caused_by(error)
    }

    /// A library error as a failure, its causes kept.
    pub fn failure_from(code: &'static str, error: &(dyn std::error::Error + 'static)) -> Self {
        Self::failure(code, error.to_string()).caused_by(error)
    }

    fn caused_by(mut self, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut told = self.message.clone();
        let mut cause = error.source();
        while let Some(inner) = cause {
            // Many errors already print their source inside their own message: not said twice.
            let text = inner.to_string();
            if !told.contains(&text) {
                told.clone_from(&text);
                self.causes.push(text);
            }
            cause = inner.source();
        }
        self
    }

    /// Points at a range of the recipe.
    #[must_use]
    pub fn at(mut self, span: impl Into<Option<Span>>) -> Self {
        self.span = span.into();
        self
    }

    /// What stands beside the range.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Another range with a part in it; nothing when it has no place in the recipe.
    #[must_use]
    pub fn also(mut self, span: impl Into<Option<Span>>, label: impl Into<String>) -> Self {
        if let Some(span) = span.into() {
            self.related.push((span, label.into()));
        }
        self
    }

    /// What was there.
    #[must_use]
    pub fn found(mut self, found: impl Into<String>) -> Self {
        self.found = Some(found.into());
        self
    }

    /// What should have been there.
    #[must_use]
    pub fn expected(mut self, expected: impl Into<String>) -> Self {
        self.expected = Some(expected.into());
        self
    }

    /// A thing to do or to type.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Where in a data file.
    #[must_use]
    pub fn place(mut self, place: impl Into<Option<Place>>) -> Self {
        self.place = place.into();
        self
    }

    /// What stands at the place, on one line.
    #[must_use]
    pub fn excerpt(mut self, excerpt: impl Into<String>) -> Self {
        self.excerpt = Some(excerpt.into());
        self
    }
}

impl Severity {
    /// The word a report begins with; colour only repeats it.
    pub fn word(self) -> &'static str {
        match self {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Failure | Severity::Mistake => "error",
        }
    }
}

/// Everything there is to say, in the order it was found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Diagnostics {
    list: Vec<Diagnostic>,
}

impl Diagnostics {
    /// Nothing to say yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        self.list.push(diagnostic);
    }

    /// The value, or its faults added to these.
    pub fn keep<T>(&mut self, result: Result<T, Diagnostics>) -> Option<T> {
        result.map_err(|faults| self.extend(faults)).ok()
    }

    /// All of them.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.list.iter()
    }

    /// How many there are, warnings included.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether any of them stops the command.
    pub fn has_errors(&self) -> bool {
        self.list.iter().any(|d| d.severity > Severity::Warning)
    }

    /// `Ok` with the warnings when nothing stops the command, else all of them as the error.
    pub fn stop_on_errors(self) -> Result<Self, Self> {
        if self.has_errors() { Err(self) } else { Ok(self) }
    }

    /// 0 without errors, 1 for failures, 2 as soon as one is a mistake in the recipe or the command line.
    pub fn exit_code(&self) -> u8 {
        match self.list.iter().map(|d| d.severity).max() {
            Some(Severity::Mistake) => 2,
            Some(Severity::Failure) => 1,
            Some(Severity::Warning | Severity::Note) | None => 0,
        }
    }

    /// Sorts by place in the recipe: reports then read from top to bottom. Those without a place come last.
    pub fn sort_by_place(&mut self) {
        self.list.sort_by_key(|d| match &d.span {
            Some(span) => (false, span.source.order, span.range.start),
            None => (true, 0, 0),
        });
    }

    /// All reports, an empty line between two of them, a closing count when there is more than one error.
    pub fn render(&self, look: Look) -> String {
        let mut out = self.list.iter().map(|d| d.render(look)).collect::<Vec<_>>().join("\n");
        let errors = self.list.iter().filter(|d| d.severity > Severity::Warning).count();
        if errors > 1 {
            out.push_str(&format!("\n{errors} errors\n"));
        }
        out
    }

    /// One JSON object with the list.
    pub fn to_json(&self) -> Value {
        let errors = self.list.iter().filter(|d| d.severity > Severity::Warning).count();
        let warnings = self.list.iter().filter(|d| d.severity == Severity::Warning).count();
        json!({
            "diagnostics": self.list.iter().map(Diagnostic::to_json).collect::<Vec<_>>(),
            "errors": errors,
            "warnings": warnings,
            "exit_code": self.exit_code(),
        })
    }
}

impl From<Diagnostic> for Diagnostics {
    fn from(diagnostic: Diagnostic) -> Self {
        Self { list: vec![diagnostic] }
    }
}

impl Extend<Diagnostic> for Diagnostics {
    fn extend<I: IntoIterator<Item = Diagnostic>>(&mut self, diagnostics: I) {
        self.list.extend(diagnostics);
    }
}

impl FromIterator<Diagnostic> for Diagnostics {
    fn from_iter<I: IntoIterator<Item = Diagnostic>>(diagnostics: I) -> Self {
        Self { list: diagnostics.into_iter().collect() }
    }
}

impl IntoIterator for Diagnostics {
    type Item = Diagnostic;
    type IntoIter = std::vec::IntoIter<Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.list.into_iter()
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(Look::PLAIN))
    }
}

impl std::error::Error for Diagnostics {}
