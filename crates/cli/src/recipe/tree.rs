//! A TOML table in which every key and value knows its place, and which owns what it holds.
//!
//! toml's own spanned table borrows from its text and so cannot outlive it; this one is kept beside the recipe and
//! becomes toml's again, for a moment, when serde reads it.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};
use toml::map::Map;
use toml::value::Datetime;

/// Keys to values, in the order written.
pub(super) type Table = Map<Spanned<String>, Spanned<Node>>;

/// A value.
#[derive(Clone, Debug)]
pub(super) enum Node {
    /// A string.
    String(String),
    /// A whole number as it was written: `0x10` and `1_000` are still themselves in a report.
    Integer { text: String, value: Option<i128> },
    /// A number with a fraction or an exponent.
    Float { text: String, value: Option<f64> },
    /// `true` or `false`.
    Boolean(bool),
    /// A date or a time.
    Datetime(Datetime),
    /// A list.
    List(Vec<Spanned<Node>>),
    /// A table.
    Table(Table),
}

impl Node {
    /// Takes over a value of toml's, moved by an offset.
    pub(super) fn take(value: Spanned<DeValue<'_>>, by: usize) -> Spanned<Node> {
        let range = shift(&value.span(), by);
        let node = match value.into_inner() {
            DeValue::String(text) => Node::String(text.into_owned()),
            DeValue::Integer(number) => Node::Integer {
                text: number.to_string(),
                value: i128::from_str_radix(number.as_str(), number.radix()).ok(),
            },
            DeValue::Float(number) => Node::Float { text: number.to_string(), value: number.as_str().parse().ok() },
            DeValue::Boolean(value) => Node::Boolean(value),
            DeValue::Datetime(value) => Node::Datetime(value),
            DeValue::Array(list) => Node::List(list.into_iter().map(|item| Node::take(item, by)).collect()),
            DeValue::Table(table) => Node::Table(take_table(table, by)),
        };
        Spanned::new(range, node)
    }

    fn lend(&self) -> DeValue<'_> {
        match self {
            Node::String(text) => DeValue::String(text.as_str().into()),
            Node::Integer { text, .. } | Node::Float { text, .. } => {
                // A number has no public constructor; its own text is one.
                DeValue::parse(text).map_or(DeValue::String(text.as_str().into()), Spanned::into_inner)
            }
            Node::Boolean(value) => DeValue::Boolean(*value),
            Node::Datetime(value) => DeValue::Datetime(*value),
            Node::List(list) => DeValue::Array(
                list.iter().map(|item| Spanned::new(item.span(), item.get_ref().lend())).collect::<DeArray<'_>>(),
            ),
            Node::Table(table) => DeValue::Table(lend_table(table)),
        }
    }

    /// The strings and tables of a value.
    pub(super) fn as_str(&self) -> Option<&str> {
        if let Node::String(text) = self { Some(text) } else { None }
    }

    /// Whether it is a table, or a list with one in it: a section.
    pub(super) fn is_section(&self) -> bool {
        match self {
            Node::Table(_) => true,
            Node::List(list) => list.iter().any(|item| matches!(item.get_ref(), Node::Table(_))),
            _ => false,
        }
    }
}

/// Takes over a table of toml's, moved by an offset.
pub(super) fn take_table(table: DeTable<'_>, by: usize) -> Table {
    let mut taken = Table::new();
    for (key, value) in table {
        taken.insert(Spanned::new(shift(&key.span(), by), key.into_inner().into_owned()), Node::take(value, by));
    }
    taken
}

/// The table as toml's deserializer wants it.
pub(super) fn lend_table(table: &Table) -> DeTable<'_> {
    let mut lent = DeTable::new();
    for (key, value) in table {
        lent.insert(
            Spanned::new(key.span(), key.get_ref().as_str().into()),
            Spanned::new(value.span(), value.get_ref().lend()),
        );
    }
    lent
}

/// A range moved by an offset.
pub(super) fn shift(range: &Range<usize>, by: usize) -> Range<usize> {
    range.start + by..range.end + by
}
