//! [`LayerFilter`]: which layers get adapters.

use std::{borrow::Cow, collections::BTreeSet, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Layer numbers from 0: `"all"`, a list such as `[0, 1, 2]`, or a range with both ends such as `"8-15"`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum LayerFilter {
    /// Every layer.
    #[default]
    All,
    /// From the first to the last, both included.
    Range(usize, usize),
    /// These.
    List(Vec<usize>),
}

/// Layers that cannot be chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// A number beyond the model's last layer.
    #[error("`layers` names layer {layer}; this model has layers 0 to {}", count.saturating_sub(1))]
    Beyond {
        /// The number.
        layer: usize,
        /// How many layers there are.
        count: usize,
    },

    /// A list without a number.
    #[error("`layers` is empty; \"all\" chooses every layer")]
    Empty,

    /// Text in no known form.
    #[error("`{text}` chooses no layers; expected \"all\", a range such as \"8-15\", or a list of numbers")]
    Malformed {
        /// As written.
        text: String,
    },

    /// A range that runs backwards.
    #[error("the range `{first}-{last}` runs backwards")]
    Backwards {
        /// Its first number.
        first: usize,
        /// Its last number.
        last: usize,
    },
}

impl LayerFilter {
    /// The layers of a model with `count` of them.
    pub fn resolve(&self, count: usize) -> Result<BTreeSet<usize>, LayerError> {
        let beyond = |layer| LayerError::Beyond { layer, count };
        match self {
            LayerFilter::All => Ok((0..count).collect()),
            LayerFilter::Range(_, last) if *last >= count => Err(beyond(*last)),
            LayerFilter::Range(first, last) => Ok((*first..=*last).collect()),
            LayerFilter::List(layers) if layers.is_empty() => Err(LayerError::Empty),
            LayerFilter::List(layers) => match layers.iter().find(|&&layer| layer >= count) {
                Some(&layer) => Err(beyond(layer)),
                None => Ok(layers.iter().copied().collect()),
            },
        }
    }
}

impl FromStr for LayerFilter {
    type Err = LayerError;

    fn from_str(text: &str) -> Result<Self, LayerError> {
        if text == "all" {
            return Ok(LayerFilter::All);
        }
        let malformed = || LayerError::Malformed { text: text.to_owned() };
        let (first, last) = text.split_once('-').ok_or_else(malformed)?;
        let number = |part: &str| part.trim().parse::<usize>().map_err(|_| malformed());
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(LayerError::Backwards { first, last });
        }
        Ok(LayerFilter::Range(first, last))
    }
}

impl fmt::Display for LayerFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LayerFilter::All => f.write_str("\"all\""),
            LayerFilter::Range(first, last) => write!(f, "\"{first}-{last}\""),
            LayerFilter::List(layers) => write!(f, "{layers:?}"),
        }
    }
}

impl Serialize for LayerFilter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            LayerFilter::All => serializer.serialize_str("all"),
            LayerFilter::Range(first, last) => serializer.collect_str(&format_args!("{first}-{last}")),
            LayerFilter::List(layers) => layers.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for LayerFilter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> de::Visitor<'de> for Either {
            type Value = LayerFilter;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`\"all\"`, a range such as `\"8-15\"`, or a list of layer numbers")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<LayerFilter, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, items: A) -> Result<LayerFilter, A::Error> {
                Vec::deserialize(de::value::SeqAccessDeserializer::new(items)).map(LayerFilter::List)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl JsonSchema for LayerFilter {
    fn schema_name() -> Cow<'static, str> {
        "LayerFilter".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Layer numbers from 0: \"all\", a list, or a range with both ends such as \"8-15\".",
            "anyOf": [
                { "const": "all" },
                { "type": "string", "pattern": "^[0-9]+-[0-9]+$" },
                { "type": "array", "items": { "type": "integer", "minimum": 0 }, "minItems": 1 }
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn read(json: &str) -> Result<LayerFilter, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn all_three_forms_are_read_and_written() {
        for (json, filter) in [
            ("\"all\"", LayerFilter::All),
            ("\"8-15\"", LayerFilter::Range(8, 15)),
            ("[3,1]", LayerFilter::List(vec![3, 1])),
        ] {
            assert_eq!(read(json).unwrap(), filter);
            assert_eq!(serde_json::to_string(&filter).unwrap(), json);
        }
    }

    #[test]
    fn other_forms_say_what_is_expected() {
        assert!(
            read("\"some\"").unwrap_err().starts_with(
                "`some` chooses no layers; expected \"all\", a range such as \"8-15\", or a list of numbers"
            )
        );
        assert!(read("\"9-8\"").unwrap_err().starts_with("the range `9-8` runs backwards"));
        assert!(read("3").unwrap_err().contains("expected `\"all\"`, a range"));
    }

    #[test]
    fn layers_the_model_lacks_are_refused() {
        assert_eq!(LayerFilter::Range(1, 2).resolve(4).unwrap(), BTreeSet::from([1, 2]));
        assert_eq!(
            LayerFilter::Range(2, 4).resolve(4).unwrap_err().to_string(),
            "`layers` names layer 4; this model has layers 0 to 3"
        );
        assert_eq!(LayerFilter::List(vec![9, 0]).resolve(4), Err(LayerError::Beyond { layer: 9, count: 4 }));
        assert_eq!(LayerFilter::List(Vec::new()).resolve(4), Err(LayerError::Empty));
    }
}
