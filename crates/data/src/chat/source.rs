//! A template's source made ready for the engine, and its marks cut out of what it rendered.
//!
//! `{% generation %}`, with which templates mark what the assistant writes: the engine knows no custom tags, so the tag is
//! rewritten into tags it knows, which print a mark at either end. The first and last tag of each rewriting carry the
//! original's whitespace signs, so trimming is as before; `with` keeps variables set inside from leaking out, as in Jinja.
//!
//! `{% set x = … %}`, and what macros, `with` and loops over literals bind: it goes through a filter that refuses values
//! without bounds. Fuel does not see them: `[x, x]` is cheap to make however large `x` is, and forty of them on top of each
//! other print for ever.

use std::ops::Range;

use super::marks::{CLOSE, OPEN};

/// The filter that assigned values go through.
pub(super) const KEPT: &str = "__kept";
/// The same for what is assigned to a field of a namespace, which must not come to hold itself.
pub(super) const KEPT_IN_NAMESPACE: &str = "__kept_in_namespace";

/// A source as the engine takes it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rewritten {
    /// The source.
    pub(super) text: String,
    /// Whether it marks what the assistant writes.
    pub(super) generation: bool,
}

/// Rewrites the tags that the engine does not know or that need a bound.
pub(super) fn rewrite(source: &str) -> Rewritten {
    let mut out = String::with_capacity(source.len() + source.len() / 8);
    let mut rest = source;
    let mut found = false;
    while let Some(start) = rest.find('{') {
        let (before, from) = rest.split_at(start);
        out.push_str(before);
        let end = if from.starts_with("{#") {
            from.find("#}").map_or(from.len(), |n| n + 2)
        } else if from.starts_with("{{") {
            expression_end(from, "}}")
        } else if from.starts_with("{%") {
            match tag(from) {
                Tag::Generation { left, right, end } => {
                    found = true;
                    out.push_str(&format!("{{%{left} with %}}{{{{ \"{OPEN}\" }}}}{{% if true {right}%}}"));
                    rest = &from[end..];
                    continue;
                }
                Tag::EndGeneration { left, right, end } => {
                    out.push_str(&format!("{{%{left} endif %}}{{{{ \"{CLOSE}\" }}}}{{% endwith {right}%}}"));
                    rest = &from[end..];
                    continue;
                }
                Tag::Set { expression, filter, end } => {
                    let (head, tail) = (&from[..expression.start], &from[expression.end..end]);
                    out.push_str(&format!("{head}({})|{filter}{tail}", &from[expression]));
                    rest = &from[end..];
                    continue;
                }
                Tag::Binding { names, right, end } => {
                    let head = from[..end].trim_end_matches("%}").trim_end_matches(['-', '+']);
                    out.push_str(&format!("{head} %}}"));
                    for (i, name) in names.iter().enumerate() {
                        let sign = if i + 1 == names.len() { right } else { "" };
                        out.push_str(&format!("{{% set {name} = ({name})|{KEPT} {sign}%}}"));
                    }
                    rest = &from[end..];
                    continue;
                }
                Tag::Raw(end) => from[end..].find("endraw").map_or(from.len(), |n| end + n),
                Tag::Other(end) => end,
            }
        } else {
            1
        };
        out.push_str(&from[..end]);
        rest = &from[end..];
    }
    out.push_str(rest);
    Rewritten { text: out, generation: found }
}

enum Tag<'a> {
    Generation { left: &'a str, right: &'a str, end: usize },
    EndGeneration { left: &'a str, right: &'a str, end: usize },
    Set { expression: Range<usize>, filter: &'static str, end: usize },
    Binding { names: Vec<&'a str>, right: &'a str, end: usize },
    Raw(usize),
    Other(usize),
}

/// Reads the block tag that `text` starts with.
fn tag(text: &str) -> Tag<'_> {
    let end = expression_end(text, "%}");
    let inner = text[2..end].strip_suffix("%}").unwrap_or(&text[2..end]);
    let (left, inner) = match inner.strip_prefix(['-', '+']) {
        Some(rest) => (&inner[..1], rest),
        None => ("", inner),
    };
    let (right, inner) = match inner.strip_suffix(['-', '+']) {
        Some(rest) => (&inner[inner.len() - 1..], rest),
        None => ("", inner),
    };
    match inner.trim() {
        "generation" => Tag::Generation { left, right, end },
        "endgeneration" => Tag::EndGeneration { left, right, end },
        "raw" => Tag::Raw(end),
        _ => match assigned(inner) {
            Some((expression, filter)) => {
                let from = 2 + left.len();
                Tag::Set { expression: from + expression.start..from + expression.end, filter, end }
            }
            None => match bound(inner) {
                names if names.is_empty() => Tag::Other(end),
                names => Tag::Binding { names, right, end },
            },
        },
    }
}

/// The names that a `macro`, a `with` or a loop over a literal gives values to.
fn bound(inner: &str) -> Vec<&str> {
    let Some((tag, rest)) = inner.trim().split_once(char::is_whitespace) else { return Vec::new() };
    let names = match tag {
        "macro" => rest.split_once('(').and_then(|(_, args)| args.strip_suffix(')')),
        "with" => Some(rest),
        "for" => {
            rest.split_once(" in ").filter(|(_, items)| items.contains('[') && items.contains(',')).map(|(n, _)| n)
        }
        _ => None,
    };
    let name = |item: &'_ str| item.find('=').unwrap_or(item.len());
    let is_name = |text: &&str| !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || c == '_');
    names.map_or_else(Vec::new, |names| items(names).map(|item| item[..name(item)].trim()).filter(is_name).collect())
}

/// Splits at the commas that stand outside of strings and brackets.
fn items(text: &str) -> impl Iterator<Item = &str> {
    let (mut depth, mut quote, mut escaped) = (0_usize, None, false);
    text.split(move |c| {
        match (quote, c) {
            _ if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(open), _) if open == c => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '(' | '[' | '{') => depth += 1,
            (None, ')' | ']' | '}') => depth = depth.saturating_sub(1),
            (None, ',') => return depth == 0,
            (None, _) => {}
        }
        false
    })
}

/// The expression of `set target = expression`, and what it has to go through; none for any other tag, and for a `set`
/// that captures a block.
fn assigned(inner: &str) -> Option<(Range<usize>, &'static str)> {
    let target = inner.trim_start().strip_prefix("set")?;
    let (target, expression) = target.split_once('=')?;
    let is_target = |c: char| c.is_alphanumeric() || c.is_whitespace() || matches!(c, '_' | '.' | ',' | '(' | ')');
    if !target.starts_with(char::is_whitespace) || !target.chars().all(is_target) || expression.trim().is_empty() {
        return None;
    }
    let filter = if target.contains('.') { KEPT_IN_NAMESPACE } else { KEPT };
    Some((inner.len() - expression.len()..inner.len(), filter))
}

/// Where a tag ends, looking past string literals.
fn expression_end(text: &str, close: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = 2;
    while at < bytes.len() {
        match bytes[at] {
            quote @ (b'"' | b'\'') => {
                at += 1;
                while at < bytes.len() && bytes[at] != quote {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at += 1;
            }
            _ if bytes[at..].starts_with(close.as_bytes()) => return at + close.len(),
            _ => at += 1,
        }
    }
    text.len()
}

/// Cuts the marks out of rendered text; the spans are byte ranges of what remains. None if they are not paired.
pub(super) fn cut(rendered: &str) -> Option<(String, Vec<Range<usize>>)> {
    let mut text = String::with_capacity(rendered.len());
    let mut spans = Vec::new();
    let mut open = None;
    let mut rest = rendered;
    while let Some(at) = rest.find([OPEN, CLOSE]) {
        text.push_str(&rest[..at]);
        let mark = rest[at..].chars().next()?;
        rest = &rest[at + mark.len_utf8()..];
        match (mark, open) {
            (OPEN, None) => open = Some(text.len()),
            (CLOSE, Some(start)) => {
                spans.push(start..text.len());
                open = None;
            }
            _ => return None,
        }
    }
    text.push_str(rest);
    open.is_none().then_some((text, spans))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_keep_their_whitespace_signs_and_lookalikes_stay() {
        let rewritten = rewrite("a {%- generation -%} b {%+endgeneration%}");
        assert!(rewritten.generation);
        assert_eq!(
            rewritten.text,
            "a {%- with %}{{ \"\u{fdd0}\" }}{% if true -%} b {%+ endif %}{{ \"\u{fdd1}\" }}{% endwith %}"
        );
        for same in [
            "{# {% generation %} #}",
            "{{ '{% generation %}' }}",
            "{% raw %}{% generation %}{% endraw %}",
            "{% set x %}{% endset %}",
            "{% set x | replace(old='a', new='b') %}{% endset %}",
            "{% setting = 1 %}",
            "{% set x = %}",
        ] {
            assert_eq!(rewrite(same), Rewritten { text: same.into(), generation: false });
        }
        for (set, kept) in [
            ("{% set x = '%}' %}", "{% set x =( '%}' )|__kept%}"),
            ("{%- set a, b = b, a == 1 -%}", "{%- set a, b =( b, a == 1 )|__kept-%}"),
            ("{%set ns.x=y if z+%}", "{%set ns.x=(y if z)|__kept_in_namespace+%}"),
            (
                "{%- macro f(x, y=['a', ')', g(1, 2)]) -%}",
                "{%- macro f(x, y=['a', ')', g(1, 2)])  %}{% set x = (x)|__kept %}{% set y = (y)|__kept -%}",
            ),
            ("{% with a = b %}", "{% with a = b  %}{% set a = (a)|__kept %}"),
            ("{% for a in [[b, b]] %}", "{% for a in [[b, b]]  %}{% set a = (a)|__kept %}"),
            ("{% for a in b[1:] %}{% macro f() %}{% with %}", "{% for a in b[1:] %}{% macro f() %}{% with %}"),
        ] {
            assert_eq!(rewrite(set).text, kept);
        }
        for broken in ["{%", "{% generation", "{{ 'x", "{", "{#", "{% x = '\\"] {
            rewrite(broken);
        }
    }

    #[test]
    fn marks_are_cut_and_their_places_kept() {
        assert_eq!(cut("ab\u{fdd0}cä\u{fdd1}d\u{fdd0}\u{fdd1}"), Some(("abcäd".into(), vec![2..5, 6..6])));
        assert_eq!(cut("\u{fdd0}"), None);
        assert_eq!(cut("\u{fdd1}\u{fdd0}"), None);
        assert_eq!(cut("\u{fdd0}\u{fdd0}\u{fdd1}\u{fdd1}"), None);
    }
}
