//! [`Patterns`]: settings by module, as `rank_pattern` and `alpha_pattern` hold them.

use std::{fmt, marker::PhantomData};

use regex::Regex;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor},
};

use super::AdapterError;

/// Values by regular expression over module paths, in file order: the first that matches wins.
#[derive(Debug, Clone, PartialEq)]
pub struct Patterns<T>(pub Vec<(String, T)>);

impl<T> Default for Patterns<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Copy> Patterns<T> {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The expressions made ready; `key` is the setting they belong to.
    pub(super) fn compile(&self, key: &'static str) -> Result<Compiled<T>, AdapterError> {
        self.0
            .iter()
            .map(|(pattern, value)| {
                // PEFT: re.match(rf"(.*\.)?({key})$", module)
                let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$")).map_err(|error| {
                    AdapterError::Pattern { key, pattern: pattern.clone(), reason: error.to_string() }
                })?;
                Ok((regex, *value))
            })
            .collect::<Result<Vec<_>, AdapterError>>()
            .map(Compiled)
    }
}

/// [`Patterns`] that can be asked.
#[derive(Debug)]
pub(super) struct Compiled<T>(Vec<(Regex, T)>);

impl<T: Copy> Compiled<T> {
    /// The value of the first pattern that matches this module.
    pub(super) fn find(&self, module: &str) -> Option<T> {
        self.0.iter().find(|(regex, _)| regex.is_match(module)).map(|(_, value)| *value)
    }
}

impl<T: Serialize> Serialize for Patterns<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(pattern, value)| (pattern, value)))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Patterns<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = Patterns<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of values by module pattern")
            }

            fn visit_unit<E>(self) -> Result<Patterns<T>, E> {
                Ok(Patterns::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Patterns<T>, A::Error> {
                let mut patterns = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    patterns.push(entry);
                }
                Ok(Patterns(patterns))
            }
        }
        deserializer.deserialize_any(Entries(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn find(patterns: &[(&str, usize)], module: &str) -> Option<usize> {
        let patterns = Patterns(patterns.iter().map(|&(pattern, value)| (pattern.to_owned(), value)).collect());
        patterns.compile("rank_pattern").unwrap().find(module)
    }

    #[test]
    fn patterns_match_as_in_peft() {
        let module = "model.layers.11.self_attn.q_proj";
        for matching in [
            "q_proj",
            "self_attn.q_proj",
            "model.layers.11.self_attn.q_proj",
            r".*\.q_proj",
            r"^model\.layers\.1\d\..*",
            "k_proj|q_proj",
            r"layers\.\d+\.self_attn\.(q|k)_proj",
        ] {
            assert_eq!(find(&[(matching, 4)], module), Some(4), "{matching}");
        }
        for other in
            ["proj", "q", "attn.q_proj", "layers.1.self_attn.q_proj", "q_proj.weight", "^layers.11.self_attn.q_proj"]
        {
            assert_eq!(find(&[(other, 4)], module), None, "{other}");
        }
    }

    #[test]
    fn the_first_match_wins() {
        assert_eq!(find(&[("k_proj", 1), ("q_proj", 2), (".*", 3)], "layers.0.q_proj"), Some(2));
    }

    #[test]
    fn an_unreadable_pattern_is_named() {
        let patterns = Patterns(vec![("q_(proj".to_owned(), 1)]);
        let error = patterns.compile("alpha_pattern").unwrap_err();
        assert!(error.to_string().starts_with("`alpha_pattern` has the key `q_(proj`, which is not"), "{error}");
    }

    #[test]
    fn order_survives_json() {
        let text = r#"{"b":1,"a":2}"#;
        let patterns: Patterns<usize> = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&patterns).unwrap(), text);
        assert_eq!(serde_json::from_str::<Patterns<usize>>("null").unwrap(), Patterns::default());
    }
}
