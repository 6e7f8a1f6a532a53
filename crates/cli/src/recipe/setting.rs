//! One value from the command line: `--set lora.rank=32`, or a flag that stands for a recipe key.

use std::ops::Range;

/// A recipe value given on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The flag, as reports name it.
    pub(super) flag: &'static str,
    /// The argument as it was typed.
    pub(super) text: String,
    /// The key when the flag stands for one, else it is part of the text.
    pub(super) key: Option<&'static str>,
}

/// One step of a dotted path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// Name of a key, or the digits of an index.
    pub name: String,
    /// Whether it was written in brackets and so can only be an index.
    pub bracketed: bool,
    /// Where it stands in the text it was parsed from.
    pub range: Range<usize>,
}

/// Why a path cannot be read, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PathMistake {
    /// What is wrong.
    pub message: &'static str,
    /// Where in the text.
    pub range: Range<usize>,
}

impl Setting {
    /// `key=value` as given to `--set`.
    pub fn from_set(argument: impl Into<String>) -> Self {
        Self { flag: "--set", text: argument.into(), key: None }
    }

    /// A flag that stands for a recipe key, such as `--model PATH` for `model.base`; the value is a string as it is.
    pub fn from_flag(flag: &'static str, key: &'static str, value: impl Into<String>) -> Self {
        Self { flag, text: value.into(), key: Some(key) }
    }
}

/// Reads `data[0].path`, `data.0.path` or `tokens.template_vars."odd key"`.
pub(super) fn parse_path(text: &str) -> Result<Vec<Segment>, PathMistake> {
    let mut segments = Vec::new();
    let mut rest = 0;
    loop {
        let start = rest;
        let tail = &text[start..];
        let (name, end) = if let Some(quoted) = tail.strip_prefix(['"', '\'']) {
            let quote = &tail[..1];
            let Some(length) = quoted.find(quote) else {
                return Err(PathMistake { message: "a quote that is not closed", range: start..text.len() });
            };
            (quoted[..length].to_owned(), start + length + 2)
        } else {
            let length = tail.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-')).unwrap_or(tail.len());
            (tail[..length].to_owned(), start + length)
        };
        if name.is_empty() {
            let stop = text[start..].chars().next().map_or(start, |c| start + c.len_utf8());
            return Err(PathMistake { message: "a key is missing here", range: start..stop });
        }
        segments.push(Segment { name, bracketed: false, range: start..end });
        rest = end;
        while text[rest..].starts_with('[') {
            let Some(length) = text[rest..].find(']') else {
                return Err(PathMistake { message: "a `[` that is not closed", range: rest..text.len() });
            };
            let index = &text[rest + 1..rest + length];
            if index.is_empty() || !index.bytes().all(|b| b.is_ascii_digit()) {
                return Err(PathMistake {
                    message: "an index is a whole number from 0",
                    range: rest..rest + length + 1,
                });
            }
            segments.push(Segment { name: index.to_owned(), bracketed: true, range: rest..rest + length + 1 });
            rest += length + 1;
        }
        match text[rest..].chars().next() {
            None => return Ok(segments),
            Some('.') => rest += 1,
            Some(other) => {
                return Err(PathMistake { message: "not a character of a key", range: rest..rest + other.len_utf8() });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn names(text: &str) -> Vec<String> {
        parse_path(text).unwrap().into_iter().map(|s| s.name).collect()
    }

    #[test]
    fn brackets_and_dots_name_the_same_place() {
        assert_eq!(names("data[0].path"), ["data", "0", "path"]);
        assert_eq!(names("data.0.path"), names("data[0].path"));
    }

    #[test]
    fn quoted_keys_may_hold_dots() {
        assert_eq!(names("tokens.template_vars.\"a.b\""), ["tokens", "template_vars", "a.b"]);
    }

    #[test]
    fn broken_paths_say_where() {
        assert_eq!(parse_path("").unwrap_err().range, 0..0);
        assert_eq!(parse_path("run.").unwrap_err().range, 4..4);
        assert_eq!(parse_path("run..steps").unwrap_err().range, 4..5);
        assert_eq!(parse_path("data[x].path").unwrap_err().range, 4..7);
        assert_eq!(parse_path("data[0").unwrap_err().range, 4..6);
        assert_eq!(parse_path("run steps").unwrap_err().range, 3..4);
        assert!(parse_path("é[ß]").is_err());
    }
}
