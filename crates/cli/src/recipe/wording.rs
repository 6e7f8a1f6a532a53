//! How the walk puts things: names of sections, values as found, and what to type instead.

use toml::Spanned;

use super::schema::{Schema, Shape};
use super::tree::Node;

/// The dotted path of a key in a table.
pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// `[run]`, `[[data]]`, or the dotted path of something deeper.
pub(super) fn section_name(schema: &Schema, path: &str) -> String {
    let name = path.split('[').next().unwrap_or(path);
    let listed = schema
        .sections()
        .get(name)
        .is_some_and(|known| schema.shapes(known).iter().any(|shape| matches!(shape, Shape::List(_))));
    if path.contains('.') {
        format!("`{path}`")
    } else if listed {
        format!("`[[{name}]]`")
    } else {
        format!("`[{name}]`")
    }
}

/// A sentence from the manual as the continuation of another.
pub(super) fn lower_first(text: &str) -> String {
    let mut rest = text.chars();
    // An abbreviation keeps its capitals.
    match (rest.next(), text.chars().nth(1)) {
        (Some(first), Some(second)) if first.is_uppercase() && second.is_lowercase() => {
            first.to_lowercase().chain(rest).collect()
        }
        _ => text.to_owned(),
    }
}

fn last_key(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// What to type instead of a string.
pub(super) fn string_hint(path: &str, text: &str, shapes: &[Shape<'_>]) -> Option<String> {
    let key = last_key(path);
    let numeric = shapes.iter().any(|shape| matches!(shape, Shape::Number { .. }))
        && text.parse::<f64>().is_ok_and(f64::is_finite);
    let whole = shapes.iter().any(|shape| matches!(shape, Shape::Integer { .. })) && text.parse::<u64>().is_ok();
    let boolean = shapes.iter().any(|shape| matches!(shape, Shape::Boolean)) && matches!(text, "true" | "false");
    if numeric || whole || boolean {
        return Some(format!("write `{key} = {text}`, without quotes"));
    }
    let list = shapes.iter().any(|shape| matches!(shape, Shape::List(_)));
    list.then(|| format!("write `{key} = [\"{text}\"]`"))
}

/// What to type instead of a number, a boolean or a date.
pub(super) fn scalar_hint(path: &str, shown: &str, whole: bool, shapes: &[Shape<'_>]) -> Option<String> {
    let key = last_key(path);
    if shapes.iter().any(|shape| matches!(shape, Shape::Integer { .. }))
        && let Ok(number) = shown.parse::<f64>()
        && number.fract() == 0.0
        && (0.0..1e15).contains(&number)
    {
        return Some(format!("write `{key} = {number:.0}`"));
    }
    // The switches of other tools are words here.
    let word = match shown {
        "true" => "auto",
        "false" => "none",
        _ => "",
    };
    if shapes.iter().any(|shape| matches!(shape, Shape::Word(known) if *known == word)) {
        return Some(format!("write `{key} = \"{word}\"`"));
    }
    if shapes.iter().any(|shape| matches!(shape, Shape::Boolean)) && whole && matches!(shown, "0" | "1") {
        return Some(format!("write `{key} = {}`", shown == "1"));
    }
    shapes.iter().any(|shape| matches!(shape, Shape::Text)).then(|| format!("write `{key} = \"{shown}\"`, with quotes"))
}

/// A list in words.
pub(super) fn shown_list(list: &[Spanned<Node>]) -> String {
    let what = if list.iter().any(|item| matches!(item.get_ref(), Node::Table(_))) { "section" } else { "value" };
    match list.len() {
        0 => "an empty list".to_owned(),
        1 => format!("a list of one {what}"),
        count => format!("a list of {count} {what}s"),
    }
}
