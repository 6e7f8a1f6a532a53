//! Every mistake a recipe's shape can have, found in one walk of the table against the schema.
//!
//! serde stops at its first error; a person wants all of them. What is wrong is taken out as it is found, so that what
//! is left can still be read into a [`Recipe`](super::Recipe) and the rules of meaning can speak in the same report.

use std::ops::Range;

use serde_json::Value as Json;
use toml::Spanned;

use super::doc::RecipeDoc;
use super::near::{nearest, nearly_equal};
use super::renamed;
use super::schema::{Schema, Shape, Table, one_of};
use super::tree::{Node, Table as Keys};
use super::wording::{join, lower_first, scalar_hint, section_name, shown_list, string_hint};
use crate::diagnostic::{Diagnostic, Diagnostics, Place};

type Value = Spanned<Node>;

/// Checks a copy of the document's table; returns it without the parts that are wrong, and what was wrong.
pub(super) fn walk(doc: &RecipeDoc, schema: &Schema) -> (Keys, Diagnostics) {
    let mut table = doc.table().clone();
    let mut walker = Walker { doc, schema, mistakes: Diagnostics::new() };
    walker.table(&mut table, schema.sections(), "", None);
    (table, walker.mistakes)
}

struct Walker<'a> {
    doc: &'a RecipeDoc,
    schema: &'a Schema,
    mistakes: Diagnostics,
}

impl<'a> Walker<'a> {
    fn table(&mut self, table: &mut Keys, shape: Table<'a>, path: &str, header: Option<&Range<usize>>) {
        let mut suggested = Vec::new();
        let keys: Vec<(String, Range<usize>)> =
            table.iter().map(|(key, _)| (key.get_ref().clone(), key.span())).collect();
        for (key, range) in keys {
            let inner = join(path, &key);
            let Some(known) = shape.get(&key).or_else(|| shape.others()) else {
                let mistake = self.unknown_key(&key, range, shape, path, table.get(key.as_str()));
                self.mistakes.push(mistake);
                suggested.extend(nearest(&key, shape.keys()));
                table.remove(key.as_str());
                continue;
            };
            let value = table.get_mut(key.as_str()).expect("invariant: the key was just listed");
            if !self.value(value, known, &inner, range) {
                table.remove(key.as_str());
            }
        }
        for key in shape.required() {
            if table.get(key).is_some() {
                continue;
            }
            let inner = join(path, key);
            let known = shape.get(key).unwrap_or(&Json::Bool(true));
            // A key that was there and wrong, or misspelt, has been spoken of already.
            if !self.doc.contains(&inner) && !suggested.contains(&key) {
                self.missing(&inner, known, header);
            }
            let range = header.cloned().unwrap_or(0..0);
            table.insert(Spanned::new(range.clone(), key.to_owned()), self.stand_in(known, range));
        }
    }

    /// Whether the value can stay.
    fn value(&mut self, value: &mut Value, known: &'a Json, path: &str, key: Range<usize>) -> bool {
        let shapes = self.schema.shapes(known);
        if shapes.iter().any(|shape| matches!(shape, Shape::Anything)) {
            return true;
        }
        let range = value.span();
        match value.get_mut() {
            Node::String(text) => {
                let fits = shapes.iter().any(|shape| match shape {
                    Shape::Text => true,
                    Shape::Word(word) => word == text,
                    _ => false,
                });
                if fits {
                    return true;
                }
                let text = text.clone();
                let words: Vec<&str> = shapes
                    .iter()
                    .filter_map(|shape| if let Shape::Word(word) = shape { Some(*word) } else { None })
                    .collect();
                if words.is_empty() {
                    self.wrong_type(
                        path,
                        range,
                        &shapes,
                        "a string",
                        &format!("`\"{text}\"`"),
                        string_hint(path, &text, &shapes),
                    );
                } else {
                    self.unknown_word(path, range, &text, &words, &shapes);
                }
                false
            }
            Node::Table(table) => {
                let tables: Vec<Table<'a>> = shapes
                    .iter()
                    .filter_map(|shape| if let Shape::Table(table) = shape { Some(*table) } else { None })
                    .collect();
                match tables.as_slice() {
                    [] => {
                        let list = shapes.iter().any(
                            |shape| matches!(shape, Shape::List(Some(entry)) if self.schema.table_of(entry).is_some()),
                        );
                        let hint = list.then(|| format!("it is a list of sections: write `[[{path}]]`"));
                        self.wrong_type(path, key, &shapes, "a table", "one table", hint);
                        false
                    }
                    [one] => {
                        self.table(table, *one, path, Some(&header(&range, &key)));
                        true
                    }
                    several => self.variant(table, several, path, &range, &key),
                }
            }
            Node::List(list) => {
                let entries =
                    shapes.iter().find_map(|shape| if let Shape::List(entry) = shape { Some(*entry) } else { None });
                let Some(entry) = entries else {
                    let hint = shapes
                        .iter()
                        .any(|shape| matches!(shape, Shape::Table(_)))
                        .then(|| format!("there is one such section: write `[{path}]`"));
                    self.wrong_type(path, range, &shapes, "a list", &shown_list(list), hint);
                    return false;
                };
                if let Some(entry) = entry {
                    for (index, item) in list.iter_mut().enumerate() {
                        let range = item.span();
                        // Replaced, not taken out: the rules name entries by their index.
                        if !self.value(item, entry, &format!("{path}[{index}]"), range.clone()) {
                            *item = self.stand_in(entry, range);
                        }
                    }
                }
                true
            }
            _ => self.scalar(value, &shapes, path),
        }
    }

    fn scalar(&mut self, value: &mut Value, shapes: &[Shape<'a>], path: &str) -> bool {
        let range = value.span();
        let (kind, shown, number) = match value.get_ref() {
            Node::Boolean(it) => ("a boolean", it.to_string(), None),
            Node::Integer { text, value } => ("a whole number", text.clone(), value.map(|it| it as f64)),
            Node::Float { text, value } => ("a number with a fraction or an exponent", text.clone(), *value),
            Node::Datetime(it) => ("a date", it.to_string(), None),
            Node::String(_) | Node::List(_) | Node::Table(_) => return true,
        };
        let boolean = matches!(value.get_ref(), Node::Boolean(_));
        let whole = matches!(value.get_ref(), Node::Integer { .. });
        let mut outside = false;
        for shape in shapes {
            let (least, most) = match shape {
                Shape::Boolean if boolean => return true,
                Shape::Integer { least, most } if whole => (least, most),
                Shape::Number { least, most } if number.is_some() => (least, most),
                _ => continue,
            };
            let Some(number) = number else { continue };
            if least.is_none_or(|least| number >= least) && most.is_none_or(|most| number <= most) {
                return true;
            }
            outside = true;
        }
        if shapes.iter().any(|shape| matches!(shape, Shape::Text | Shape::Word(_)))
            && let Some(words) = self.doc.bare_words(&range)
        {
            // `--set model.base=2024` means the string.
            *value.get_mut() = Node::String(words);
            let key = range;
            return shapes.iter().any(|shape| matches!(shape, Shape::Text))
                || self.word_again(value, shapes, path, key);
        }
        if outside {
            let span = self.doc.span(range);
            self.mistakes.push(
                Diagnostic::mistake("out-of-range", format!("`{path}` cannot be `{shown}`"))
                    .at(span)
                    .found(format!("`{shown}`"))
                    .expected(one_of(shapes, self.schema)),
            );
        } else {
            let hint = scalar_hint(path, &shown, whole, shapes);
            self.wrong_type(path, range, shapes, kind, &format!("`{shown}`"), hint);
        }
        false
    }

    /// A bare word of the command line where only some words may stand.
    fn word_again(&mut self, value: &Value, shapes: &[Shape<'a>], path: &str, range: Range<usize>) -> bool {
        let Node::String(text) = value.get_ref() else { return true };
        let words: Vec<&str> =
            shapes.iter().filter_map(|shape| if let Shape::Word(word) = shape { Some(*word) } else { None }).collect();
        if words.contains(&text.as_str()) {
            return true;
        }
        self.unknown_word(path, range, text, &words, shapes);
        false
    }

    /// A table that may be one of several: the one its tag names.
    fn variant(
        &mut self,
        table: &mut Keys,
        several: &[Table<'a>],
        path: &str,
        range: &Range<usize>,
        key: &Range<usize>,
    ) -> bool {
        let Some((tag, _)) = several.first().and_then(Table::tag) else {
            return true; // told apart by serde alone
        };
        let words: Vec<&str> = several.iter().filter_map(|table| Some(table.tag()?.1)).collect();
        let Some(value) = table.get(tag) else {
            self.missing(
                &join(path, tag),
                several.first().and_then(|table| table.get(tag)).unwrap_or(&Json::Null),
                Some(&header(range, key)),
            );
            return false;
        };
        let chosen = value.get_ref().as_str().map(str::to_owned);
        let shape = several.iter().find(|table| table.tag().map(|(_, word)| word) == chosen.as_deref());
        match (shape, chosen) {
            (Some(shape), _) => {
                self.table(table, *shape, path, Some(&header(range, key)));
                true
            }
            (None, Some(text)) => {
                let shapes: Vec<Shape<'_>> = words.iter().map(|word| Shape::Word(word)).collect();
                self.unknown_word(&join(path, tag), value.span(), &text, &words, &shapes);
                false
            }
            (None, None) => {
                let shapes: Vec<Shape<'_>> = words.iter().map(|word| Shape::Word(word)).collect();
                self.wrong_type(
                    &join(path, tag),
                    value.span(),
                    &shapes,
                    "no string",
                    "a value that is no string",
                    None,
                );
                false
            }
        }
    }

    fn unknown_key(
        &self,
        key: &str,
        range: Range<usize>,
        shape: Table<'a>,
        path: &str,
        value: Option<&Value>,
    ) -> Diagnostic {
        let span = self.doc.span(range);
        let top = path.is_empty();
        let is_table = value.is_some_and(|value| value.get_ref().is_section());
        let mistake = if top && is_table {
            Diagnostic::mistake("unknown-key", format!("unknown section `[{key}]`")).at(span)
        } else if top {
            Diagnostic::mistake("unknown-key", format!("unknown key `{key}` outside any section")).at(span)
        } else {
            Diagnostic::mistake("unknown-key", format!("unknown key `{key}` in {}", section_name(self.schema, path)))
                .at(span)
        };
        if renamed::is_planned(path, key) {
            let name = join(path, key);
            return Diagnostic::mistake("not-there-yet", format!("`{name}` is not there yet"))
                .at(mistake.span)
                .hint("leave it out");
        }
        if let Some(section) = self.section_with(key, path)
            && !is_table
        {
            return mistake.hint(format!("`{key}` belongs in {}", section_name(self.schema, section)));
        }
        if let Some(advice) = renamed::advice(key, path) {
            return mistake.hint(advice);
        }
        if let Some(near) = nearest(key, shape.keys()) {
            let near = if top { section_name(self.schema, near) } else { format!("`{near}`") };
            return mistake.hint(format!("did you mean {near}?"));
        }
        let elsewhere = self.all_keys().into_iter().filter(|(section, _)| *section != path).collect::<Vec<_>>();
        if !is_table && let Some(near) = nearly_equal(key, elsewhere.iter().map(|(_, key)| *key)) {
            let section = elsewhere.iter().find(|(_, key)| *key == near).map_or("", |(section, _)| section);
            return mistake.hint(format!("did you mean `{near}` in {}?", section_name(self.schema, section)));
        }
        let keys: Vec<String> = shape.keys().map(|key| format!("`{key}`")).collect();
        let what = if top { "sections" } else { "keys" };
        mistake.hint(format!("its {what} are {}", keys.join(", ")).replacen("its sections", "the sections", 1))
    }

    /// The section that knows a key, if it is one and not this one.
    fn section_with(&self, key: &str, path: &str) -> Option<&'a str> {
        let mut found = self
            .all_keys()
            .into_iter()
            .filter(|(section, known)| *known == key && *section != path)
            .map(|(section, _)| section);
        let first = found.next()?;
        found.next().is_none().then_some(first)
    }

    fn all_keys(&self) -> Vec<(&'a str, &'a str)> {
        let sections = self.schema.sections();
        let tables = sections.keys().filter_map(|name| Some((name, self.schema.table_of(sections.get(name)?)?)));
        tables.flat_map(|(name, table)| table.keys().map(move |key| (name, key))).collect()
    }

    fn unknown_word(&mut self, path: &str, range: Range<usize>, text: &str, words: &[&str], shapes: &[Shape<'_>]) {
        let mut mistake = Diagnostic::mistake("unknown-value", format!("`{path}` cannot be `{text}`"))
            .at(self.doc.span(range.clone()))
            .found(format!("`\"{text}\"`"))
            .expected(one_of(shapes, self.schema));
        if renamed::is_planned(path, text) {
            mistake = Diagnostic::mistake("not-there-yet", format!("`{path} = {text}` is not there yet"))
                .at(self.doc.span(range))
                .expected(one_of(shapes, self.schema));
        } else if let Some(near) = nearest(text, words.iter().copied()) {
            mistake = mistake.hint(format!("did you mean `{near}`?"));
        } else if let Some(hint) = string_hint(path, text, shapes) {
            mistake = mistake.hint(hint);
        }
        self.mistakes.push(mistake);
    }

    fn wrong_type(
        &mut self,
        path: &str,
        range: Range<usize>,
        shapes: &[Shape<'_>],
        kind: &str,
        shown: &str,
        hint: Option<String>,
    ) {
        let mut mistake = Diagnostic::mistake("wrong-type", format!("`{path}` has a value of the wrong type"))
            .at(self.doc.span(range))
            .label(format!("this is {kind}"))
            .found(shown)
            .expected(one_of(shapes, self.schema));
        mistake.hints.extend(hint);
        self.mistakes.push(mistake);
    }

    fn missing(&mut self, path: &str, known: &'a Json, header: Option<&Range<usize>>) {
        // A whole section that is missing is told by the keys it has to have.
        if let Some(table) = self
            .schema
            .shapes(known)
            .iter()
            .find_map(|shape| if let Shape::Table(table) = shape { Some(*table) } else { None })
        {
            let mut keys = table.required().peekable();
            if keys.peek().is_some() {
                for key in keys {
                    self.missing(&join(path, key), table.get(key).unwrap_or(&Json::Bool(true)), header);
                }
                return;
            }
        }
        let mut mistake = Diagnostic::mistake("missing-key", format!("`{path}` is missing"))
            .expected(one_of(&self.schema.shapes(known), self.schema));
        if let Some(about) = self.schema.about(known) {
            mistake.expected = mistake.expected.map(|expected| format!("{expected}: {}", lower_first(about)));
        }
        let (section, key) = path.rsplit_once('.').unwrap_or(("", path));
        mistake = match header {
            Some(header) => mistake.at(self.doc.span(header.clone())).hint(format!("add `{key} = ...` here")),
            None if let Some(file) = &self.doc.path => mistake
                .place(Place { file: file.clone(), ..Place::default() })
                .hint(format!("add a section `[{section}]` with `{key} = ...`, or give `--set {path}=...`")),
            None => mistake.hint(format!("give `--set {path}=...`")),
        };
        self.mistakes.push(mistake);
    }

    /// A value of the right shape for a key that is missing, so that the rest can be read.
    fn stand_in(&self, known: &'a Json, range: Range<usize>) -> Value {
        let shape = self.schema.shapes(known).into_iter().next();
        let value = match shape {
            Some(Shape::Word(word)) => Node::String(word.to_owned()),
            Some(Shape::Boolean) => Node::Boolean(false),
            Some(Shape::Integer { .. } | Shape::Number { .. }) => {
                Node::Integer { text: "1".to_owned(), value: Some(1) }
            }
            Some(Shape::List(_)) => Node::List(Vec::new()),
            Some(Shape::Table(table)) => {
                let mut inner = Keys::new();
                for key in table.required() {
                    let known = table.get(key).unwrap_or(&Json::Bool(true));
                    inner.insert(Spanned::new(range.clone(), key.to_owned()), self.stand_in(known, range.clone()));
                }
                Node::Table(inner)
            }
            Some(Shape::Text | Shape::Anything) | None => Node::String(String::new()),
        };
        Spanned::new(range, value)
    }
}

/// Where a table begins: its header, or its braces.
fn header(value: &Range<usize>, key: &Range<usize>) -> Range<usize> {
    if value.is_empty() { key.clone() } else { value.clone() }
}
