//! A diagnostic as text and as JSON.
//!
//! miette draws the snippets; the rest of a report is our own so that every hint is a line starting with `hint:`
//! and the first line (`error[code]`) can be searched for, with or without colour.

use std::fmt::{self, Write as _};

use serde_json::{Value, json};

use super::{Diagnostic, Severity, Source, Span};

/// How a report is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// ANSI colours.
    pub colour: bool,
    /// Box-drawing characters instead of ASCII.
    pub unicode: bool,
}

impl Look {
    /// No colour and ASCII only: files, pipes, CI logs.
    pub const PLAIN: Look = Look { colour: false, unicode: false };
}

impl Diagnostic {
    /// The report as text, with a trailing newline.
    pub fn render(&self, look: Look) -> String {
        let mut out = String::new();
        let drawn = handler(look).render_report(&mut out, &Drawn(self));
        if drawn.is_err() {
            // A span outside its source is our mistake, and no reason to keep the message from the user.
            out = format!("{}\n  {}\n", header(self), self.message);
        }
        while out.ends_with("\n\n") {
            out.pop();
        }
        // An empty line between header and message is miette's; reports are many, lines are dear.
        if let Some(at) = out.find("\n\n") {
            out.remove(at);
        }
        self.write_tail(&mut out);
        out
    }

    fn write_tail(&self, out: &mut String) {
        let mut line = |text: fmt::Arguments<'_>| {
            out.write_fmt(text).expect("invariant: writing to a String cannot fail");
            out.push('\n');
        };
        // Ranges in another source cannot share the snippet: they are told in words.
        for (span, label) in &self.related {
            if !self.drawn_together(span) {
                let (row, column) = span.source.locate(span.range.start);
                line(format_args!("  {}:{row}:{column}: {label}", span.source.name));
            }
        }
        if let Some(place) = &self.place {
            line(format_args!("  in {place}"));
        }
        if let Some(excerpt) = &self.excerpt {
            line(format_args!("  excerpt: {excerpt}"));
        }
        for cause in &self.causes {
            line(format_args!("  caused by: {cause}"));
        }
        if let Some(found) = &self.found {
            line(format_args!("  found: {found}"));
        }
        if let Some(expected) = &self.expected {
            line(format_args!("  expected: {expected}"));
        }
        for hint in &self.hints {
            line(format_args!("hint: {hint}"));
        }
    }

    fn drawn_together(&self, other: &Span) -> bool {
        self.span.as_ref().is_some_and(|span| span.source == other.source)
    }

    /// The report as one JSON object.
    pub fn to_json(&self) -> Value {
        let mut object = json!({
            "code": self.code,
            "severity": self.severity.word(),
            "message": self.message,
        });
        let fields = object.as_object_mut().expect("invariant: built as an object");
        if let Some(span) = &self.span {
            let (line, column) = span.source.locate(span.range.start);
            let (end_line, end_column) = span.source.locate(span.range.end);
            fields.insert("file".into(), span.source.name.clone().into());
            fields.insert("line".into(), line.into());
            fields.insert("column".into(), column.into());
            fields.insert("end_line".into(), end_line.into());
            fields.insert("end_column".into(), end_column.into());
        }
        for (key, text) in
            [("label", &self.label), ("found", &self.found), ("expected", &self.expected), ("excerpt", &self.excerpt)]
        {
            if let Some(text) = text {
                fields.insert(key.into(), text.clone().into());
            }
        }
        if let Some(place) = &self.place {
            let mut at = json!({ "file": place.file.display().to_string() });
            if let Some(row) = place.row {
                at["row"] = row.into();
            }
            if let Some(line) = place.line {
                at["line"] = line.into();
            }
            if let Some(column) = &place.column {
                at["column"] = column.clone().into();
            }
            fields.insert("place".into(), at);
        }
        if !self.causes.is_empty() {
            fields.insert("causes".into(), self.causes.clone().into());
        }
        fields.insert("hints".into(), self.hints.clone().into());
        object
    }
}

fn handler(look: Look) -> miette::GraphicalReportHandler {
    let theme = match (look.unicode, look.colour) {
        (true, true) => miette::GraphicalTheme::unicode(),
        (true, false) => miette::GraphicalTheme::unicode_nocolor(),
        (false, true) => miette::GraphicalTheme::ascii(),
        (false, false) => miette::GraphicalTheme::none(),
    };
    // Lines are left to the terminal to wrap: a broken message cannot be searched for or copied.
    miette::GraphicalReportHandler::new_themed(theme)
        .with_wrap_lines(false)
        .with_links(false)
        .without_syntax_highlighting()
}

fn header(diagnostic: &Diagnostic) -> String {
    format!("{}[{}]", diagnostic.severity.word(), diagnostic.code)
}

/// A diagnostic as miette's trait wants it, without the parts written by [`Diagnostic::write_tail`].
struct Drawn<'a>(&'a Diagnostic);

impl fmt::Debug for Drawn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.0, f)
    }
}

impl fmt::Display for Drawn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for Drawn<'_> {}

impl miette::Diagnostic for Drawn<'_> {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(header(self.0)))
    }

    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.0.severity {
            Severity::Note => miette::Severity::Advice,
            Severity::Warning => miette::Severity::Warning,
            Severity::Failure | Severity::Mistake => miette::Severity::Error,
        })
    }

    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        self.0.span.as_ref().map(|span| &*span.source as &dyn miette::SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = miette::LabeledSpan> + '_>> {
        let span = self.0.span.as_ref()?;
        let mut labels = vec![miette::LabeledSpan::new_primary_with_span(self.0.label.clone(), span.range.clone())];
        for (other, label) in &self.0.related {
            if self.0.drawn_together(other) {
                labels.push(miette::LabeledSpan::new_with_span(Some(label.clone()), other.range.clone()));
            }
        }
        Some(Box::new(labels.into_iter()))
    }
}

impl miette::SourceCode for Source {
    fn read_span<'a>(
        &'a self,
        span: &miette::SourceSpan,
        lines_before: usize,
        lines_after: usize,
    ) -> Result<Box<dyn miette::SpanContents<'a> + 'a>, miette::MietteError> {
        let inner = self.text.read_span(span, lines_before, lines_after)?;
        Ok(Box::new(miette::MietteSpanContents::new_named(
            self.name.clone(),
            inner.data(),
            *inner.span(),
            inner.line(),
            inner.column(),
            inner.line_count(),
        )))
    }
}
