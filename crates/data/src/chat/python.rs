//! Where Python's text forms differ from Rust's: `json.dumps`, `repr` of floats, `strftime`.
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

/// A date and time in UTC, for templates that print today's date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    days: i64,
    seconds: i64,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

impl Moment {
    pub(crate) fn now() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(since.as_secs()).unwrap_or(0);
        Self { days: seconds / 86_400, seconds: seconds % 86_400 }
    }

    /// Midnight of `YYYY-MM-DD`.
    pub(crate) fn from_date(text: &str) -> Option<Self> {
        let mut parts = text.split('-').map(str::parse::<i64>);
        let (Some(Ok(year)), Some(Ok(month)), Some(Ok(day)), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return None;
        };
        if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
            return None;
        }
        // Days from civil: Hinnant, "chrono-Compatible Low-Level Date Algorithms".
        let y = if month <= 2 { year - 1 } else { year };
        let era = y.div_euclid(400);
        let of_era = y.rem_euclid(400);
        let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
        let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
        let moment = Self { days, seconds: 0 };
        // The 31st of a shorter month lands in the next.
        (moment.civil() == (year, month, day)).then_some(moment)
    }

    fn civil(self) -> (i64, i64, i64) {
        let z = self.days + 719_468;
        let era = z.div_euclid(146_097);
        let of_era = z.rem_euclid(146_097);
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let m = (5 * of_year + 2) / 153;
        let month = if m < 10 { m + 3 } else { m - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        (year, month, of_year - (153 * m + 2) / 5 + 1)
    }

    /// The directives that templates use; others stay as they are.
    pub(crate) fn strftime(self, format: &str) -> String {
        let (year, month, day) = self.civil();
        let (hour, minute, second) = (self.seconds / 3600, self.seconds / 60 % 60, self.seconds % 60);
        let twelve = if hour % 12 == 0 { 12 } else { hour % 12 };
        let weekday = (self.days + 4).rem_euclid(7) as usize;
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let (plain, directive) = match chars.next() {
                Some('-') => (true, chars.next()),
                other => (false, other),
            };
            let two = |n: i64| if plain { n.to_string() } else { format!("{n:02}") };
            match directive {
                Some('Y') => out.push_str(&format!("{year:04}")),
                Some('y') => out.push_str(&two(year % 100)),
                Some('m') => out.push_str(&two(month)),
                Some('d') => out.push_str(&two(day)),
                Some('H') => out.push_str(&two(hour)),
                Some('I') => out.push_str(&two(twelve)),
                Some('M') => out.push_str(&two(minute)),
                Some('S') => out.push_str(&two(second)),
                Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
                Some('B') => out.push_str(MONTHS[month as usize - 1]),
                Some('b') => out.push_str(&MONTHS[month as usize - 1][..3]),
                Some('A') => out.push_str(WEEKDAYS[weekday]),
                Some('a') => out.push_str(&WEEKDAYS[weekday][..3]),
                Some('F') => out.push_str(&format!("{year:04}-{month:02}-{day:02}")),
                Some('T') => out.push_str(&format!("{hour:02}:{minute:02}:{second:02}")),
                Some('%') => out.push('%'),
                Some(other) => out.extend(['%', other]),
                None => out.push('%'),
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
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

    #[test]
    fn dates_are_civil() {
        let moment = Moment::from_date("2024-02-29").unwrap();
        assert_eq!(
            moment.strftime("%d %B %Y, %a %-d %b %y %H:%M %I%p %%%q"),
            "29 February 2024, Thu 29 Feb 24 00:00 12AM %%q"
        );
        assert_eq!(Moment::from_date("2026-11-22").unwrap().strftime("%A"), "Sunday");
        assert_eq!(Moment::from_date("1970-01-01").unwrap().days, 0);
        assert!(
            ["2023-02-29", "2024-13-01", "x", "2024-1", "2024-1-1-1"].iter().all(|t| Moment::from_date(t).is_none())
        );
    }
}
