//! The resolved recipe: a recipe with nothing left to decide, each decision explained beside its value.

use toml::{Table, Value};

use super::Recipe;

/// What an `auto`, or a key that was not written, became.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Dotted path of the key, such as `run.micro_batch`.
    pub key: String,
    /// The value chosen.
    pub value: Value,
    /// Why, in a few words.
    pub reason: String,
}

impl Choice {
    /// A choice with its reason.
    pub fn new(key: impl Into<String>, value: impl Into<Value>, reason: impl Into<String>) -> Self {
        Self { key: key.into(), value: value.into(), reason: reason.into() }
    }
}

/// Said beside its `auto`, not written in its place: an export of the run on another machine has other cores.
const MACHINES_OWN: &str = "run.threads";

/// Writes the recipe with the choices made; the text is itself a recipe that means the same.
///
/// # Errors
/// If a number of the recipe is larger than TOML can write.
pub fn to_resolved_toml(recipe: &Recipe, choices: &[Choice]) -> Result<String, toml::ser::Error> {
    let mut recipe = recipe.clone();
    let adapter_by_default = recipe.lora.is_none() && recipe.full.is_none();
    recipe.lora = recipe.adapter();
    let mut table = Table::try_from(&recipe)?;
    for choice in choices.iter().filter(|choice| choice.key != MACHINES_OWN) {
        set(&mut table, &choice.key, choice.value.clone());
    }
    // An adapter to go on from brings its own shape; writing another beside it would say something that is not so.
    if let Some(Value::Table(lora)) = table.get_mut("lora")
        && !matches!(lora.get("init").and_then(Value::as_str), Some("default" | "pissa"))
    {
        super::rules::ADAPTER_SHAPE.into_iter().for_each(|key| drop(lora.remove(key)));
    }

    let reason =
        |path: &str| choices.iter().rev().find(|choice| choice.key == path).map(|choice| choice.reason.as_str());
    let mut out = String::from("# The recipe of this run with nothing left to decide; it can be run again as it is.\n");
    for (name, section) in &table {
        match section {
            Value::Table(keys) => {
                let why = if name == "lora" && adapter_by_default {
                    "  # neither `[lora]` nor `[full]` was given"
                } else {
                    ""
                };
                out.push_str(&format!("\n[{name}]{why}\n"));
                write_keys(&mut out, name, keys, &reason);
            }
            Value::Array(entries) => {
                for (index, entry) in entries.iter().enumerate() {
                    if let Value::Table(keys) = entry {
                        out.push_str(&format!("\n[[{name}]]\n"));
                        write_keys(&mut out, &format!("{name}[{index}]"), keys, &reason);
                    }
                }
            }
            // A recipe has nothing but sections.
            _ => {}
        }
    }
    Ok(out)
}

fn write_keys<'a>(out: &mut String, section: &str, keys: &Table, reason: &dyn Fn(&str) -> Option<&'a str>) {
    for (key, value) in keys {
        let why = reason(&format!("{section}.{key}"))
            .map(|why| format!("  # {}", why.replace('\n', " ")))
            .unwrap_or_default();
        out.push_str(&format!("{} = {value}{why}\n", shown_key(key)));
    }
}

fn shown_key(key: &str) -> String {
    let bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if bare { key.to_owned() } else { Value::String(key.to_owned()).to_string() }
}

fn set(table: &mut Table, path: &str, value: Value) {
    let Ok(path) = super::setting::parse_path(path) else { return };
    let Some((last, way)) = path.split_last() else { return };
    let mut here = table;
    for (at, segment) in way.iter().enumerate() {
        if segment.bracketed {
            continue;
        }
        let slot = here.entry(segment.name.clone()).or_insert_with(|| Value::Table(Table::new()));
        let next = match (slot, way.get(at + 1)) {
            (Value::Table(inner), _) => Some(inner),
            (Value::Array(list), Some(index)) => {
                index.name.parse::<usize>().ok().and_then(|index| list.get_mut(index)?.as_table_mut())
            }
            _ => None,
        };
        let Some(next) = next else { return };
        here = next;
    }
    here.insert(last.name.clone(), value);
}
