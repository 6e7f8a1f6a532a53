//! Where Python's text forms differ from Rust's: `json.dumps`, `repr` of floats, spaces and line ends.
//!
//! Templates are written for Jinja in Python, and models have learnt what Python prints, to the space after a colon.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// Layout of [`json`].
pub(super) struct Json {
    ascii: bool,
    sort_keys: bool,
    indent: Option<String>,
    item: String,
    key: String,
}

impl Json {
    /// transformers' `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
    pub(super) fn from_args(ascii: Option<bool>, indent: Option<Value>, args: &Kwargs) -> Result<Self, Error> {
        let indent = match indent.or(args.get("indent")?) {
            None => None,
            Some(v) if v.is_none() || v.is_undefined() => None,
            Some(v) => Some(match v.as_str() {
                Some(text) => text.to_owned(),
                None => " ".repeat(usize::try_from(v)?.min(64)),
            }),
        };
        let separators: Option<Vec<String>> = args.get("separators")?;
        let ascii = ascii.or(args.get("ensure_ascii")?).unwrap_or(false);
        let sort_keys: Option<bool> = args.get("sort_keys")?;
        args.assert_all_used()?;
        let (item, key) = match separators.as_deref() {
            None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
            Some([item, key]) => (item.clone(), key.clone()),
            Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "`separators` needs two strings")),
        };
        Ok(Self { ascii, sort_keys: sort_keys.unwrap_or(false), indent, item, key })
    }

    pub(super) fn dump(&self, value: &Value) -> Result<String, Error> {
        let mut out = String::new();
        self.write(value, 0, &mut out)?;
        Ok(out)
    }

    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        let refuse =
            |what: &str| Err(Error::new(ErrorKind::InvalidOperation, format!("{what} cannot be written as JSON")));
        if depth > 128 {
            return refuse("a value nested deeper than 128 levels");
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => out.push_str(&value.to_string()),
            ValueKind::Number => out.push_str(&match f64::try_from(value.clone())? {
                x if x.is_nan() => "NaN".to_owned(),
                x if x.is_infinite() => (if x > 0.0 { "Infinity" } else { "-Infinity" }).to_owned(),
                x => float(x),
            }),
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                out.push('[');
                let mut empty = true;
                for item in value.try_iter()? {
                    self.separate(&mut empty, depth + 1, out);
                    self.write(&item, depth + 1, out)?;
                }
                self.close(empty, depth, ']', out);
            }
            ValueKind::Map => {
                out.push('{');
                let mut empty = true;
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                for key in keys {
                    self.separate(&mut empty, depth + 1, out);
                    match key.as_str() {
                        Some(text) => self.string(text, out),
                        None => self.string(&text(&key), out),
                    }
                    out.push_str(&self.key);
                    self.write(&value.get_item(&key)?, depth + 1, out)?;
                }
                self.close(empty, depth, '}', out);
            }
            ValueKind::Undefined => return refuse("an undefined value"),
            _ => return refuse("this kind of value"),
        }
        Ok(())
    }

    fn separate(&self, empty: &mut bool, depth: usize, out: &mut String) {
        if !*empty {
            out.push_str(&self.item);
        }
        *empty = false;
        self.newline(depth, out);
    }

    fn close(&self, empty: bool, depth: usize, bracket: char, out: &mut String) {
        if !empty {
            self.newline(depth, out);
        }
        out.push(bracket);
    }

    fn newline(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            for _ in 0..depth {
                out.push_str(indent);
            }
        }
    }

    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// What Python's `str.strip()` strips: Unicode's white space and four separators that Python counts as such.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// What ends a line for Python's `str.splitlines()`; a carriage return and a newline together end one.
pub(super) fn ends_line(c: char) -> bool {
    matches!(c, '\n'..='\r' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = rest.find(ends_line).unwrap_or(rest.len());
        let (line, tail) = rest.split_at(end);
        let break_length = if tail.starts_with("\r\n") { 2 } else { tail.chars().next().map_or(0, char::len_utf8) };
        rest = &tail[break_length..];
        Some(line)
    })
}

/// Jinja's `indent`: a text that ends in a newline keeps it, one that does not gets none.
pub(super) fn indent(text: &str, by: &str, first: bool, blank: bool) -> String {
    let with_end = format!("{text}\n");
    let mut out = String::with_capacity(text.len());
    for (i, line) in lines(&with_end).enumerate() {
        if i > 0 {
            out.push('\n');
        }
        if if i == 0 { first } else { blank || !line.is_empty() } {
            out.push_str(by);
        }
        out.push_str(line);
    }
    out
}

/// Python's `str()` of a value.
pub(super) fn text(value: &Value) -> String {
    if value.kind() == ValueKind::Number
        && !value.is_integer()
        && let Ok(x) = f64::try_from(value.clone())
    {
        return float(x);
    }
    value.to_string()
}

/// Python's `repr()` of a float: the shortest digits that read back, exponents below 1e-4 and from 1e16 on.
pub(super) fn float(x: f64) -> String {
    if x.is_nan() {
        return "nan".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf" } else { "-inf" }.into();
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if x != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{x}");
    if plain.contains('.') { plain } else { plain + ".0" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_print_as_in_python() {
        for (x, text) in [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (-2.5, "-2.5"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (123_456_789.125, "123456789.125"),
        ] {
            assert_eq!(float(x), text);
        }
    }
}
