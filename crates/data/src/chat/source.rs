//! A template's source made ready for the engine, and its marks cut out of what it rendered.
//!
//! `{% generation %}`, with which templates mark what the assistant writes: the engine knows no custom tags, so the tag is
//! rewritten into tags it knows, which print a mark at either end. The first and last tag of each rewriting carry the
//! original's whitespace signs, so trimming is as before; `with` keeps variables set inside from leaking out, as in Jinja.
//!
//! `{% set x = … %}`: what is assigned goes through a filter that refuses values without bounds. Fuel does not see them:
//! `[x, x]` is cheap to make however large `x` is, and forty of them on top of each other print for ever.

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
            None => Tag::Other(end),
        },
    }
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
