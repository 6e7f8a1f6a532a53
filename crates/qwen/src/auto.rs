//! [`Auto`]: a setting that is either `"auto"` or a value, and remembers which.

use std::{borrow::Cow, fmt, marker::PhantomData};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{
        Error, IntoDeserializer, MapAccess, SeqAccess, Visitor,
        value::{MapAccessDeserializer, SeqAccessDeserializer},
    },
};

const WORD: &str = "auto";

/// `"auto"`, to be resolved when everything it depends on is known, or a value that the user chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Auto<T> {
    /// The program decides, and says why.
    #[default]
    Auto,
    /// The user decided.
    Value(T),
}

impl<T> Auto<T> {
    /// The user's value, if there is one.
    pub fn value(self) -> Option<T> {
        match self {
            Auto::Auto => None,
            Auto::Value(value) => Some(value),
        }
    }

    /// The user's value by reference, if there is one.
    pub fn as_ref(&self) -> Option<&T> {
        match self {
            Auto::Auto => None,
            Auto::Value(value) => Some(value),
        }
    }

    /// Whether the program decides.
    pub fn is_auto(&self) -> bool {
        matches!(self, Auto::Auto)
    }

    /// The user's value, else what `decide` says.
    pub fn unwrap_or_else(self, decide: impl FnOnce() -> T) -> T {
        self.value().unwrap_or_else(decide)
    }
}

impl<T> From<T> for Auto<T> {
    fn from(value: T) -> Self {
        Auto::Value(value)
    }
}

impl<T: fmt::Display> fmt::Display for Auto<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Auto::Auto => f.pad(WORD),
            Auto::Value(value) => value.fmt(f),
        }
    }
}

impl<T: Serialize> Serialize for Auto<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Auto::Auto => serializer.serialize_str(WORD),
            Auto::Value(value) => value.serialize(serializer),
        }
    }
}

/// Not an untagged enum: that would say only that nothing matched, where this says what `T` expected.
impl<'de, T: Deserialize<'de>> Deserialize<'de> for Auto<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Either(PhantomData))
    }
}

struct Either<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
    type Value = Auto<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`\"auto\"` or a value")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Auto<T>, E> {
        if text == WORD {
            return Ok(Auto::Auto);
        }
        T::deserialize(text.into_deserializer())
            .map(Auto::Value)
            .map_err(|error: E| E::custom(format!("{error} or `\"auto\"`")))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Auto<T>, E> {
        T::deserialize(value.into_deserializer()).map(Auto::Value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Auto<T>, E> {
        T::deserialize(value.into_deserializer()).map(Auto::Value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Auto<T>, E> {
        T::deserialize(value.into_deserializer()).map(Auto::Value)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Auto<T>, E> {
        T::deserialize(value.into_deserializer()).map(Auto::Value)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Auto<T>, A::Error> {
        T::deserialize(SeqAccessDeserializer::new(items)).map(Auto::Value)
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<Auto<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(entries)).map(Auto::Value)
    }
}

impl<T: JsonSchema> JsonSchema for Auto<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("Auto_{}", T::schema_name()).into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "const": WORD }, generator.subschema_for::<T>()] })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Packing {
        BestFit,
    }

    fn read<T: for<'de> Deserialize<'de>>(json: &str) -> Result<Auto<T>, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn the_word_and_values_of_any_kind_are_read() {
        assert_eq!(read::<usize>("\"auto\""), Ok(Auto::Auto));
        assert_eq!(read::<usize>("4"), Ok(Auto::Value(4)));
        assert_eq!(read::<f64>("4"), Ok(Auto::Value(4.0)));
        assert_eq!(read::<bool>("true"), Ok(Auto::Value(true)));
        assert_eq!(read::<Vec<u8>>("[1,2]"), Ok(Auto::Value(vec![1, 2])));
        assert_eq!(read::<Packing>("\"best_fit\""), Ok(Auto::Value(Packing::BestFit)));
    }

    #[test]
    fn a_wrong_value_says_what_was_expected() {
        assert_eq!(
            read::<usize>("\"lots\"").unwrap_err(),
            "invalid type: string \"lots\", expected usize or `\"auto\"` at line 1 column 6"
        );
        assert!(
            read::<Packing>("\"best\"")
                .unwrap_err()
                .contains("unknown variant `best`, expected `best_fit` or `\"auto\"`")
        );
        assert!(read::<usize>("-1").unwrap_err().contains("expected usize"));
    }

    #[test]
    fn it_is_written_as_it_is_read() {
        assert_eq!(serde_json::to_string(&Auto::<usize>::Auto).unwrap(), "\"auto\"");
        assert_eq!(serde_json::to_string(&Auto::Value(4)).unwrap(), "4");
        assert_eq!(Auto::Value(4).to_string(), "4");
        assert_eq!(Auto::<usize>::default().unwrap_or_else(|| 7), 7);
    }

    #[test]
    fn the_schema_offers_both() {
        let schema = schemars::schema_for!(Auto<bool>);
        assert_eq!(schema.get("anyOf").unwrap(), &serde_json::json!([{ "const": "auto" }, { "type": "boolean" }]));
    }
}
