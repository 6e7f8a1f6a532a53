//! The recipe's JSON schema, generated from the sections' structs, as the one list of keys, types and allowed words.
//!
//! Editors read it as `recipes/recipe.schema.json`; the walk over a recipe reads it here, so a new key or word in any
//! section is checked, suggested and documented without a line in this crate.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use super::Recipe;

/// A JSON schema with its definitions.
#[derive(Clone, Debug)]
pub struct Schema {
    root: Value,
}

/// One thing a value may be; a schema is a list of these.
#[derive(Clone, Debug)]
pub(super) enum Shape<'a> {
    /// Exactly this string.
    Word(&'a str),
    /// Any string.
    Text,
    /// A whole number between bounds.
    Integer { least: Option<f64>, most: Option<f64> },
    /// Any number between bounds.
    Number { least: Option<f64>, most: Option<f64> },
    /// `true` or `false`.
    Boolean,
    /// A list, of this when said.
    List(Option<&'a Value>),
    /// A table.
    Table(Table<'a>),
    /// Anything at all.
    Anything,
}

/// What a table may hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table<'a> {
    properties: Option<&'a Map<String, Value>>,
    required: Option<&'a Vec<Value>>,
    additional: Option<&'a Value>,
}

impl Schema {
    /// The schema of a recipe.
    pub fn of_recipe() -> Self {
        let settings = SchemaSettings::draft2020_12()
            .with(|settings| settings.contract = schemars::generate::Contract::Deserialize);
        Self { root: settings.into_generator().into_root_schema_for::<Recipe>().to_value() }
    }

    /// The text of `recipes/recipe.schema.json`.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(&self.root).expect("invariant: a JSON value can be written");
        text.push('\n');
        text
    }

    /// The whole.
    pub(super) fn root(&self) -> &Value {
        &self.root
    }

    /// The keys of the top level, as a table.
    pub(super) fn sections(&self) -> Table<'_> {
        self.table_of(&self.root).expect("invariant: a recipe is a struct")
    }

    /// The table a schema stands for: itself, or the one of its list's entries.
    pub(super) fn table_of<'a>(&'a self, schema: &'a Value) -> Option<Table<'a>> {
        self.shapes(schema).into_iter().find_map(|shape| match shape {
            Shape::Table(table) => Some(table),
            Shape::List(Some(entry)) => self.table_of(entry),
            _ => None,
        })
    }

    /// First sentence of the documentation of a key.
    pub(super) fn about<'a>(&'a self, schema: &'a Value) -> Option<&'a str> {
        let text = schema.get("description").or_else(|| self.target(schema)?.get("description"))?.as_str()?;
        let line = text.lines().next()?;
        let end = line.find(". ").unwrap_or(line.len());
        Some(line[..end].trim_end_matches('.'))
    }

    fn target<'a>(&'a self, schema: &'a Value) -> Option<&'a Value> {
        let name = schema.get("$ref")?.as_str()?.strip_prefix("#/$defs/")?;
        self.root.get("$defs")?.get(name)
    }

    /// Everything a value of this schema may be; `null` is left out, TOML has none.
    pub(super) fn shapes<'a>(&'a self, schema: &'a Value) -> Vec<Shape<'a>> {
        let mut shapes = Vec::new();
        self.collect(schema, &mut shapes);
        shapes
    }

    fn collect<'a>(&'a self, schema: &'a Value, shapes: &mut Vec<Shape<'a>>) {
        if let Some(target) = self.target(schema) {
            return self.collect(target, shapes);
        }
        for union in ["anyOf", "oneOf", "allOf"] {
            if let Some(members) = schema.get(union).and_then(Value::as_array) {
                return members.iter().for_each(|member| self.collect(member, shapes));
            }
        }
        if let Some(word) = schema.get("const").and_then(Value::as_str) {
            return shapes.push(Shape::Word(word));
        }
        if let Some(words) = schema.get("enum").and_then(Value::as_array) {
            return shapes.extend(words.iter().filter_map(Value::as_str).map(Shape::Word));
        }
        match schema.get("type") {
            Some(Value::String(kind)) => shapes.extend(shape(kind, schema)),
            Some(Value::Array(kinds)) => shapes.extend(kinds.iter().filter_map(|kind| shape(kind.as_str()?, schema))),
            _ => shapes.push(Shape::Anything),
        }
    }
}

fn shape<'a>(kind: &str, schema: &'a Value) -> Option<Shape<'a>> {
    let bound = |key: &str| schema.get(key).and_then(Value::as_f64);
    Some(match kind {
        "string" => Shape::Text,
        "integer" => Shape::Integer { least: bound("minimum"), most: bound("maximum") },
        "number" => Shape::Number { least: bound("minimum"), most: bound("maximum") },
        "boolean" => Shape::Boolean,
        "array" => Shape::List(schema.get("items")),
        "object" => Shape::Table(Table {
            properties: schema.get("properties").and_then(Value::as_object),
            required: schema.get("required").and_then(Value::as_array),
            additional: schema.get("additionalProperties"),
        }),
        _ => return None,
    })
}

impl<'a> Table<'a> {
    /// The keys it knows.
    pub(super) fn keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.properties.into_iter().flatten().map(|(key, _)| key.as_str())
    }

    /// The schema of a known key.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.properties?.get(key)
    }

    /// The schema every other key has to follow: `None` when there may be no other key.
    pub(super) fn others(&self) -> Option<&'a Value> {
        match self.additional {
            Some(Value::Bool(false)) => None,
            Some(schema) => Some(schema),
            None => Some(&Value::Bool(true)),
        }
    }

    /// The keys that have to be there.
    pub(super) fn required(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.required.into_iter().flatten().filter_map(Value::as_str)
    }

    /// The key that tells the variants of an enum apart, and its word here.
    pub(super) fn tag(&self) -> Option<(&'a str, &'a str)> {
        self.properties?.iter().find_map(|(key, schema)| Some((key.as_str(), schema.get("const")?.as_str()?)))
    }
}

impl Shape<'_> {
    /// The shape in words, as after "expected".
    pub(super) fn words(&self) -> String {
        match self {
            Shape::Word(word) => format!("`\"{word}\"`"),
            Shape::Text => "a string".to_owned(),
            Shape::Integer { least, most } => format!("a whole number{}", bounds(*least, *most)),
            Shape::Number { least, most } => format!("a number{}", bounds(*least, *most)),
            Shape::Boolean => "`true` or `false`".to_owned(),
            Shape::List(_) => "a list".to_owned(),
            Shape::Table(_) => "a table".to_owned(),
            Shape::Anything => "any value".to_owned(),
        }
    }
}

fn bounds(least: Option<f64>, most: Option<f64>) -> String {
    match (least, most) {
        (Some(least), Some(most)) => format!(" from {least} to {most}"),
        (Some(least), None) => format!(" from {least}"),
        (None, Some(most)) => format!(" up to {most}"),
        (None, None) => String::new(),
    }
}

/// Alternatives in words: `a`, `a or b`, `a, b or c`.
pub(super) fn one_of(shapes: &[Shape<'_>], schema: &Schema) -> String {
    let mut words: Vec<String> = Vec::new();
    for shape in shapes {
        let text = match shape {
            Shape::List(Some(entry)) => {
                let entries: Vec<String> = schema.shapes(entry).iter().map(|shape| plural(shape)).collect();
                format!("a list of {}", entries.join(" or "))
            }
            other => other.words(),
        };
        if !words.contains(&text) {
            words.push(text);
        }
    }
    match words.split_last() {
        None => "nothing".to_owned(),
        Some((last, [])) => last.clone(),
        Some((last, first)) => format!("{} or {last}", first.join(", ")),
    }
}

fn plural(shape: &Shape<'_>) -> String {
    match shape {
        Shape::Text => "strings".to_owned(),
        Shape::Integer { .. } => "whole numbers".to_owned(),
        Shape::Number { .. } => "numbers".to_owned(),
        Shape::Boolean => "`true` and `false`".to_owned(),
        Shape::Table(_) => "tables".to_owned(),
        Shape::List(_) => "lists".to_owned(),
        Shape::Word(_) | Shape::Anything => shape.words(),
    }
}
