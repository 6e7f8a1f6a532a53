//! The one door to stdout and stderr.
//!
//! Data goes to stdout and can be piped; everything said to a person goes to stderr. Colour follows NO_COLOR,
//! CLICOLOR_FORCE and whether there is a terminal. Nothing here panics when a pipe is closed early.

use std::io::{self, IsTerminal, Write};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget};
use serde::Serialize;

use crate::diagnostic::{Diagnostics, Look};

/// Prints data and talk, and keeps both off the progress bar's line.
#[derive(Clone, Debug)]
pub struct Printer {
    json: bool,
    look: Look,
    terminal: bool,
    bars: MultiProgress,
}

impl Printer {
    /// A printer for this process; with `json` stdout carries JSON only.
    pub fn new(json: bool) -> Self {
        let terminal = io::stderr().is_terminal();
        let colour = anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never;
        let target =
            if terminal && !json { ProgressDrawTarget::stderr_with_hz(8) } else { ProgressDrawTarget::hidden() };
        Self {
            json,
            look: Look { colour, unicode: terminal && speaks_utf8() },
            terminal,
            bars: MultiProgress::with_draw_target(target),
        }
    }

    /// Whether `--json` was given.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Whether a person is likely to be watching.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// How diagnostics are drawn.
    pub fn look(&self) -> Look {
        self.look
    }

    /// Writes data as it is: no newline is added.
    ///
    /// # Errors
    /// If stdout cannot be written to; a closed pipe is [`io::ErrorKind::BrokenPipe`].
    pub fn data(&self, text: &str) -> io::Result<()> {
        self.bars.suspend(|| {
            let mut out = anstream::stdout().lock();
            out.write_all(text.as_bytes())?;
            out.flush()
        })
    }

    /// Writes one line of data.
    ///
    /// # Errors
    /// As [`Printer::data`].
    pub fn line(&self, text: &str) -> io::Result<()> {
        self.data(&format!("{text}\n"))
    }

    /// Writes one JSON value on one line.
    ///
    /// # Errors
    /// As [`Printer::data`], and if the value cannot be written as JSON.
    pub fn json<T: Serialize + ?Sized>(&self, value: &T) -> io::Result<()> {
        let text = serde_json::to_string(value)?;
        self.line(&text)
    }

    /// Says something to a person; there is nobody to tell when it cannot be said.
    pub fn say(&self, text: &str) {
        self.bars.suspend(|| {
            let _ = writeln!(anstream::stderr().lock(), "{text}");
        });
    }

    /// Says something to a person who is not only waiting for JSON: progress, summaries, where results lie.
    pub fn note(&self, text: &str) {
        if !self.json {
            self.say(text);
        }
    }

    /// Warns on stderr.
    pub fn warn(&self, text: &str) {
        let word = self.paint("warning", |s| owo_colors::OwoColorize::yellow(&s).to_string());
        self.say(&format!("{word}: {text}"));
    }

    /// Says that something failed, on stderr, when there is no diagnostic to render.
    pub fn error(&self, text: &str) {
        let word = self.paint("error", |s| owo_colors::OwoColorize::red(&s).to_string());
        self.say(&format!("{word}: {text}"));
    }

    /// Text in bold where there is colour.
    pub fn strong(&self, text: &str) -> String {
        self.paint(text, |s| owo_colors::OwoColorize::bold(&s).to_string())
    }

    /// Text set back where there is colour.
    pub fn faint(&self, text: &str) -> String {
        self.paint(text, |s| owo_colors::OwoColorize::dimmed(&s).to_string())
    }

    /// Text in a style where there is colour.
    pub fn styled(&self, text: &str, style: owo_colors::Style) -> String {
        self.paint(text, |s| style.style(s).to_string())
    }

    fn paint(&self, text: &str, style: impl Fn(&str) -> String) -> String {
        if self.look.colour { style(text) } else { text.to_owned() }
    }

    /// Reports diagnostics: to stderr for people; with `--json`, and if one of them stops the command, as one object
    /// on stdout as well.
    pub fn diagnostics(&self, diagnostics: &Diagnostics) {
        if diagnostics.is_empty() {
            return;
        }
        let text = diagnostics.render(self.look);
        self.say(text.trim_end_matches('\n'));
        if self.json && diagnostics.has_errors() {
            // A closed pipe has no reader to miss it.
            let _ = self.json(&diagnostics.to_json());
        }
    }

    /// A bar on stderr, hidden where there is no terminal.
    pub(super) fn bar(&self, length: u64) -> ProgressBar {
        self.bars.add(ProgressBar::new(length))
    }
}

/// Box-drawing characters need a UTF-8 locale; an unset one is taken to be UTF-8, as terminals are today.
fn speaks_utf8() -> bool {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .filter_map(|name| std::env::var(name).ok())
        .find(|value| !value.is_empty());
    locale.is_none_or(|locale| {
        let locale = locale.to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    })
}
