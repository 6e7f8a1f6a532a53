//! Which keys of a run's recipe are not what they were: all count but those marked `x-may-change-on-resume` where they are
//! declared, so a new key counts until its section says otherwise.

use serde_json::Value;

use super::Schema;

/// A key with another value than before.
#[derive(Clone, Debug, PartialEq)]
pub struct Changed {
    /// Dotted path.
    pub key: String,
    /// Its value then; absent if it had none.
    pub was: Option<Value>,
    /// Its value now.
    pub is: Option<Value>,
}

/// The part of a resolved recipe that a resumed run has to have too.
pub fn binding_keys(recipe: &Value) -> Value {
    let schema = Schema::of_recipe();
    prune(&schema, Some(schema.root()), recipe).unwrap_or_default()
}

/// The keys in which two such parts differ. One that the former lacks and that has its default now came with a later
/// build, and its default is what that build did.
pub fn changed_keys(was: &Value, is: &Value) -> Vec<Changed> {
    let schema = Schema::of_recipe();
    let mut changed = Vec::new();
    collect(&schema, Some(schema.root()), "", Some(was), Some(is), &mut changed);
    changed
}

fn prune(schema: &Schema, node: Option<&Value>, value: &Value) -> Option<Value> {
    if node.and_then(|node| node.get("x-may-change-on-resume")) == Some(&Value::Bool(true)) {
        return None;
    }
    let table = node.and_then(|node| schema.table_of(node));
    Some(match value {
        Value::Object(map) => {
            let kept = map.iter().filter_map(|(key, value)| {
                Some((key.clone(), prune(schema, table.and_then(|table| table.get(key)), value)?))
            });
            Value::Object(kept.collect())
        }
        Value::Array(list) if list.iter().all(Value::is_object) => {
            list.iter().filter_map(|entry| prune(schema, node, entry)).collect()
        }
        other => other.clone(),
    })
}

fn collect(
    schema: &Schema,
    node: Option<&Value>,
    key: &str,
    was: Option<&Value>,
    is: Option<&Value>,
    changed: &mut Vec<Changed>,
) {
    let came_later = was.is_none() && is.is_some() && is == node.and_then(|node| node.get("default"));
    if was == is || came_later {
        return;
    }
    let table = node.and_then(|node| schema.table_of(node));
    match (was.unwrap_or(&Value::Null), is.unwrap_or(&Value::Null)) {
        (Value::Object(_), Value::Object(_) | Value::Null) | (Value::Null, Value::Object(_)) => {
            let maps = [was, is].map(|side| side.and_then(Value::as_object));
            let mut names: Vec<&String> = maps.into_iter().flatten().flat_map(|map| map.keys()).collect();
            names.sort();
            names.dedup();
            for name in names {
                let path = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                let [was, is] = maps.map(|map| map.and_then(|map| map.get(name)));
                collect(schema, table.and_then(|table| table.get(name)), &path, was, is, changed);
            }
        }
        (Value::Array(before), Value::Array(now)) if before.iter().chain(now).all(Value::is_object) => {
            for index in 0..before.len().max(now.len()) {
                collect(schema, node, &format!("{key}[{index}]"), before.get(index), now.get(index), changed);
            }
        }
        _ => changed.push(Changed { key: key.to_owned(), was: was.cloned(), is: is.cloned() }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn keys(was: &Value, is: &Value) -> Vec<String> {
        changed_keys(&binding_keys(was), &binding_keys(is)).into_iter().map(|changed| changed.key).collect()
    }

    #[test]
    fn keys_that_decide_what_is_computed_bind_and_others_do_not() {
        let recipe = |learning_rate: f64, steps: u64, path: &str, every: u64| {
            json!({
                "model": { "base": path }, "data": [{ "path": path, "weight": learning_rate }],
                "optimizer": { "learning_rate": learning_rate }, "run": { "steps": steps, "micro_batch": steps },
                "checkpoint": { "every": every }, "eval": { "every": every, "fraction": 0.5 },
                "export": (0..every).map(|_| json!({ "to": "merged" })).collect::<Vec<_>>(),
            })
        };
        assert_eq!(keys(&recipe(0.1, 5, "a", 1), &recipe(0.1, 9, "b", 2)), Vec::<String>::new());
        let seen = keys(&recipe(0.1, 5, "a", 1), &recipe(0.2, 5, "a", 1));
        assert_eq!(seen, ["data[0].weight", "optimizer.learning_rate"]);
    }

    #[test]
    fn sections_and_entries_that_come_and_go_are_named_by_their_keys() {
        let one = json!({ "model": { "base": "m" }, "data": [{ "path": "a" }], "lora": { "rank": 4 } });
        let other = json!({ "model": { "base": "m" }, "data": [{ "path": "a" }, { "path": "b", "limit": 3 }] });
        let seen = keys(&one, &other);
        assert!(seen.contains(&"lora.rank".to_owned()) && seen.contains(&"data[1].limit".to_owned()), "{seen:?}");
        assert!(!seen.contains(&"data[1].path".to_owned()), "the files are held against their digests");
    }

    #[test]
    fn keys_a_build_did_not_know_yet_had_their_defaults() {
        let old = json!({ "model": { "base": "m" }, "data": [] });
        let new = json!({ "model": { "base": "m" }, "data": [], "run": { "seed": 42 } });
        assert_eq!(keys(&old, &new), Vec::<String>::new());
    }
}
