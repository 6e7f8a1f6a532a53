//! What the user wrote, with the place of every key: the recipe file and the `--set` arguments as one spanned table.
//!
//! The sections' structs stay free of spans; a rule that wants to point at a line asks this document. Every source gets
//! a range of one offset space, so toml's own spans and serde errors work across file and command line alike.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::setting::{Segment, Setting, parse_path};
use super::tree::{Node, Table, shift, take_table};
use crate::diagnostic::{Diagnostic, Diagnostics, Source, Span};

/// A recipe is a page of text; anything larger is some other file.
const LARGEST_RECIPE: u64 = 1 << 20;

/// Keys of which one excludes the others.
const RIVALS: &[(&str, &[&str])] = &[
    ("run", &["epochs", "steps", "tokens"]),
    ("run", &["global_batch", "global_tokens"]),
    ("eval", &["data", "fraction"]),
];

/// A recipe as text and as a table in which every key and value knows its place.
#[derive(Clone, Debug)]
pub struct RecipeDoc {
    /// The recipe file; none when everything came from the command line.
    pub path: Option<PathBuf>,
    sources: Vec<(usize, Arc<Source>)>,
    table: Table,
    syntax: Diagnostics,
}

impl RecipeDoc {
    /// Reads a recipe file and lays the settings over it.
    pub fn read(path: &Path, settings: &[Setting]) -> Result<Self, Diagnostics> {
        let text = read_text(path)?;
        Ok(Self::from_text(Some(path), &text, settings))
    }

    /// A document made of settings alone.
    pub fn from_settings(settings: &[Setting]) -> Self {
        Self::from_text(None, "", settings)
    }

    /// A recipe already in memory; `path` is what reports call it and what relative paths are tried from.
    pub fn from_text(path: Option<&Path>, text: &str, settings: &[Setting]) -> Self {
        let mut doc = Self {
            path: path.map(Path::to_owned),
            sources: Vec::new(),
            table: Table::new(),
            syntax: Diagnostics::new(),
        };
        if let Some(path) = path {
            let base = doc.add_source(path.display().to_string(), text);
            let (table, errors) = DeTable::parse_recoverable(text);
            doc.table = take_table(table.into_inner(), base);
            for error in errors {
                let span = doc.span(visible(text, &error.span().unwrap_or(0..0), base));
                doc.syntax.push(Diagnostic::mistake("toml-syntax", error.message().to_owned()).at(span));
            }
        }
        for setting in settings {
            if let Err(mistake) = doc.apply(setting) {
                doc.syntax.push(*mistake);
            }
        }
        doc
    }

    /// Mistakes of TOML itself and of the arguments' paths.
    pub fn syntax_mistakes(&self) -> &Diagnostics {
        &self.syntax
    }

    /// The whole table.
    pub(super) fn table(&self) -> &Table {
        &self.table
    }

    /// The text of the recipe file.
    pub fn text(&self) -> Option<&str> {
        self.path.as_ref().and(self.sources.first()).map(|(_, source)| source.text.as_str())
    }

    /// Where the value of a key such as `lora.rank` or `data[1].path` was written; `None` when it was not.
    pub fn span_of(&self, key: &str) -> Option<Span> {
        let (_, value) = self.find(key)?;
        Some(self.span(value))
    }

    /// Where the key itself was written; for a section its header.
    pub fn key_span_of(&self, key: &str) -> Option<Span> {
        let (key, value) = self.find(key)?;
        Some(self.span(key.unwrap_or(value)))
    }

    /// Whether the user wrote this key.
    pub fn contains(&self, key: &str) -> bool {
        self.find(key).is_some()
    }

    /// Whether a list is there with nothing in it.
    pub(super) fn is_empty_list(&self, key: &str) -> bool {
        self.table.get(key).is_some_and(|value| matches!(value.get_ref(), Node::List(list) if list.is_empty()))
    }

    /// The place of a range in the joint offset space.
    pub fn span(&self, range: Range<usize>) -> Span {
        let at = self.sources.partition_point(|(base, _)| *base <= range.start).saturating_sub(1);
        match self.sources.get(at) {
            Some((base, source)) => {
                let end = source.text.len();
                let range = range.start.saturating_sub(*base).min(end)..range.end.saturating_sub(*base).min(end);
                Span { source: Arc::clone(source), range }
            }
            None => {
                Span { source: Arc::new(Source { name: String::new(), text: String::new(), order: 0 }), range: 0..0 }
            }
        }
    }

    /// The words of a value given on the command line without quotes, which stand for a string where one is wanted.
    pub(super) fn bare_words(&self, range: &Range<usize>) -> Option<String> {
        let span = self.span(range.clone());
        let from_command_line = self.path.is_none() || !Arc::ptr_eq(&span.source, &self.sources.first()?.1);
        from_command_line.then(|| span.source.text.get(span.range).map(str::to_owned)).flatten()
    }

    /// A relative path of the recipe: from the working directory if something is there, else from the recipe's own.
    pub fn resolve_path(&self, path: &Path) -> PathBuf {
        if path.is_absolute() || path.exists() {
            return path.to_owned();
        }
        let beside = self.path.as_deref().and_then(Path::parent).map(|directory| directory.join(path));
        match beside {
            Some(beside) if beside.exists() => beside,
            _ => path.to_owned(),
        }
    }

    /// The directory relative paths are tried from when the working directory does not have them.
    pub fn directory(&self) -> Option<&Path> {
        self.path.as_deref().and_then(Path::parent)
    }

    fn add_source(&mut self, name: String, text: &str) -> usize {
        // One byte between two sources, so that an empty range at the end of one is not the start of the next.
        let base = self.sources.last().map_or(0, |(base, source)| base + source.text.len() + 1);
        self.sources.push((base, Arc::new(Source { name, text: text.to_owned(), order: self.sources.len() })));
        base
    }

    /// Ranges of the key (none for an element of a list) and of the value.
    fn find(&self, key: &str) -> Option<(Option<Range<usize>>, Range<usize>)> {
        let path = parse_path(key).ok()?;
        let (first, rest) = path.split_first()?;
        let (key, mut value) = self.table.get_key_value(first.name.as_str())?;
        let mut key = Some(key.span());
        for segment in rest {
            match value.get_ref() {
                Node::Table(table) => {
                    let (inner, next) = table.get_key_value(segment.name.as_str())?;
                    (key, value) = (Some(inner.span()), next);
                }
                Node::List(list) => {
                    (key, value) = (None, list.get(segment.name.parse::<usize>().ok()?)?);
                }
                _ => return None,
            }
        }
        Some((key, value.span()))
    }

    fn apply(&mut self, setting: &Setting) -> Result<(), Box<Diagnostic>> {
        let base = self.add_source(setting.flag.to_owned(), &setting.text);
        let whole = base..base + setting.text.len();
        let (path, value) = match setting.key {
            Some(key) => {
                let mut path = parse_path(key).expect("invariant: flags stand for well-formed keys");
                path.iter_mut().for_each(|segment| segment.range = whole.clone());
                (path, Spanned::new(whole, Node::String(setting.text.clone())))
            }
            None => self.parse_assignment(&setting.text, base)?,
        };
        let names: Vec<&str> = path.iter().map(|segment| segment.name.as_str()).collect();
        self.displace_rivals(&names, base);
        insert(&mut self.table, &path, value).map_err(|clash| {
            let mut mistake = Diagnostic::mistake("set-path", clash.message).at(self.span(clash.range));
            mistake.hints.extend(clash.hint);
            Box::new(mistake)
        })
    }

    /// `--set run.steps=20` over a recipe with `epochs` means the steps: the recipe's own choice gives way, and is named.
    fn displace_rivals(&mut self, path: &[&str], base: usize) {
        let &[section, key] = path else { return };
        let Some((_, rivals)) = RIVALS.iter().find(|(known, keys)| *known == section && keys.contains(&key)) else {
            return;
        };
        let Some(Node::Table(table)) = self.table.get_mut(section).map(Spanned::get_mut) else { return };
        let mut given_way = Vec::new();
        for rival in rivals.iter().filter(|rival| **rival != key) {
            // Two settings of one group contradict each other, and the rules say so.
            if table
                .get(*rival)
                .is_some_and(|value| value.span().start < self.sources.first().map_or(0, |(_, file)| file.text.len()))
                && let Some((rival, value)) = table.remove_entry(*rival)
            {
                given_way.push((rival, value));
            }
        }
        if self.path.is_none() {
            return;
        }
        for (rival, _) in given_way {
            let name = rival.get_ref();
            let warning = Diagnostic::warning(
                "replaced",
                format!("`{section}.{key}` of the command line replaces `{section}.{name}` of the recipe"),
            )
            .at(self.span(rival.span()))
            .label("not used")
            .also(self.span(base..base + 1), format!("`{section}.{key}` is given here"));
            self.syntax.push(warning);
        }
    }

    fn parse_assignment(&self, text: &str, base: usize) -> Result<(Vec<Segment>, Spanned<Node>), Box<Diagnostic>> {
        let Some((key, value)) = text.split_once('=') else {
            let mistake = Diagnostic::mistake("set-syntax", format!("`{text}` is not of the form `key=value`"))
                .at(self.span(base..base + text.len()))
                .hint("for example `--set run.steps=20`");
            return Err(Box::new(mistake));
        };
        let mut path = parse_path(key.trim_end()).map_err(|mistake| {
            Diagnostic::mistake("set-syntax", format!("`{key}` is not a recipe key: {}", mistake.message))
                .at(self.span(shift(&mistake.range, base)))
                .hint("keys are dotted paths such as `lora.rank` or `data[0].path`")
        })?;
        path.iter_mut().for_each(|segment| segment.range = shift(&segment.range, base));

        let start = base + key.len() + 1 + (value.len() - value.trim_start().len());
        let value = value.trim();
        let range = start..start + value.len();
        match DeValue::parse(value) {
            Ok(parsed) => Ok((path, Node::take(parsed, start))),
            // `run.device=cpu` and `model.base=../qwen`: words that TOML would want quoted.
            Err(_) if !value.starts_with(['"', '\'', '[', '{']) && !value.is_empty() => {
                Ok((path, Spanned::new(range, Node::String(value.to_owned()))))
            }
            Err(error) => {
                let inner = match error.span() {
                    Some(span) if !value.is_empty() => visible(value, &span, start),
                    _ => base..base + text.len(),
                };
                let mistake = if value.is_empty() {
                    Diagnostic::mistake("set-syntax", format!("`{key}` is given no value"))
                        .hint("an empty string is `\"\"`")
                } else {
                    Diagnostic::mistake("set-syntax", error.message().to_owned())
                };
                Err(Box::new(mistake.at(self.span(inner))))
            }
        }
    }
}

fn read_text(path: &Path) -> Result<String, Diagnostics> {
    let shown = path.display();
    let unreadable = |why: String| Diagnostic::mistake("recipe-unreadable", why);
    let metadata = std::fs::metadata(path).map_err(|error| {
        let mistake = unreadable(format!("cannot read the recipe `{shown}`: {error}"));
        match near_file(path) {
            Some(near) => mistake.hint(format!("did you mean `{near}`?")),
            None => mistake,
        }
    })?;
    if metadata.is_dir() {
        return Err(unreadable(format!("`{shown}` is a directory"))
            .expected("a recipe file, such as `recipe.toml`")
            .into());
    }
    if metadata.len() > LARGEST_RECIPE {
        let mistake = unreadable(format!("`{shown}` is not a recipe"))
            .found(format!("{} bytes", metadata.len()))
            .expected(format!("a TOML text of at most {LARGEST_RECIPE} bytes"));
        return Err(mistake.into());
    }
    let bytes =
        std::fs::read(path).map_err(|error| unreadable(format!("cannot read the recipe `{shown}`: {error}")))?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        unreadable(format!("`{shown}` is not a recipe"))
            .found(format!("a byte that is not UTF-8 at offset {at}"))
            .expected("a TOML text")
            .into()
    })
}

/// A recipe beside the one that is not there whose name is close to it.
fn near_file(path: &Path) -> Option<String> {
    let wanted = path.file_name()?.to_str()?;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // Bounded: a directory of a million files is not searched for a spelling.
    let names = std::fs::read_dir(directory)
        .ok()?
        .take(1000)
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    let names: Vec<String> = names.filter(|name| name.ends_with(".toml")).collect();
    let near = super::near::nearest(wanted, names.iter().map(String::as_str))?;
    Some(path.with_file_name(near).display().to_string())
}

/// A range with something in it to underline: what is missing at the end of a line is shown at its last character.
fn visible(text: &str, range: &Range<usize>, base: usize) -> Range<usize> {
    let end_of_line = range.is_empty()
        && text.get(range.start..).is_none_or(|rest| rest.is_empty() || rest.starts_with(['\n', '\r']));
    let last = text.get(..range.start).and_then(|before| before.char_indices().next_back());
    match last {
        Some((at, character)) if end_of_line && character != '\n' => at + base..at + character.len_utf8() + base,
        _ => shift(range, base),
    }
}

struct Clash {
    message: String,
    range: Range<usize>,
    hint: Option<String>,
}

/// Puts a value at a path, making the tables and list elements on the way to it.
fn insert(table: &mut Table, path: &[Segment], value: Spanned<Node>) -> Result<(), Clash> {
    let (first, rest) = path.split_first().expect("invariant: a path has at least one segment");
    let key = Spanned::new(first.range.clone(), first.name.clone());
    if rest.is_empty() {
        // Removed first: a replaced entry would keep the old key's place.
        table.remove(first.name.as_str());
        table.insert(key, value);
        return Ok(());
    }
    if table.get(first.name.as_str()).is_none() {
        table.insert(key, Spanned::new(first.range.clone(), empty_for(rest)));
    }
    let slot = table.get_mut(first.name.as_str()).expect("invariant: inserted just above");
    insert_into(slot, &first.name, rest, value)
}

/// A list where the next step is an index, else a table.
fn empty_for(rest: &[Segment]) -> Node {
    match rest.first() {
        Some(next) if next.bracketed || next.name.bytes().all(|b| b.is_ascii_digit()) => Node::List(Vec::new()),
        _ => Node::Table(Table::new()),
    }
}

fn insert_into(slot: &mut Spanned<Node>, at: &str, path: &[Segment], value: Spanned<Node>) -> Result<(), Clash> {
    let next = path.first().expect("invariant: called with a step to take");
    match slot.get_mut() {
        Node::Table(_) if next.bracketed => {
            Err(Clash { message: format!("`{at}` is a section, not a list"), range: next.range.clone(), hint: None })
        }
        Node::Table(table) => insert(table, path, value),
        Node::List(list) => {
            let count = list.len();
            let entries = match count {
                0 => "has no entries".to_owned(),
                1 => "has 1 entry".to_owned(),
                _ => format!("has {count} entries"),
            };
            let Ok(index) = next.name.parse::<usize>() else {
                return Err(Clash {
                    message: format!("`{at}` is a list and `{}` is not an index", next.name),
                    range: next.range.clone(),
                    hint: Some(format!("write `{at}[0].{}`", next.name)),
                });
            };
            if index > count {
                return Err(Clash {
                    message: format!("`{at}` {entries}, so there is no index {index}"),
                    range: next.range.clone(),
                    hint: Some(format!("the next new entry is `{at}[{count}]`")),
                });
            }
            let rest = &path[1..];
            if index == count {
                let fresh = if rest.is_empty() { Node::Boolean(false) } else { empty_for(rest) };
                list.push(Spanned::new(next.range.clone(), fresh));
            }
            let element = list.get_mut(index).expect("invariant: the index was checked");
            if rest.is_empty() {
                *element = value;
                return Ok(());
            }
            insert_into(element, &format!("{at}[{index}]"), rest, value)
        }
        _ => Err(Clash {
            message: format!("`{at}` is a plain value, so `{}` cannot be set inside it", next.name),
            range: next.range.clone(),
            hint: None,
        }),
    }
}
