//! [`Value`]: what a metadata key is set to.

use super::Strings;

/// Declares the numbers: their variant, Rust type and id in files.
macro_rules! numbers {
    ($($name:ident: $rust:ty = $id:literal;)*) => {
        /// The type of a value, with its id in files.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(missing_docs, reason = "each variant is its name")]
        pub enum ValueType {
            $($name = $id,)*
            Bool = 7,
            String = 8,
            Array = 9,
        }

        impl ValueType {
            /// The type of this id, if it is one.
            pub const fn from_id(id: u32) -> Option<Self> {
                match id {
                    $($id => Some(ValueType::$name),)*
                    7 => Some(ValueType::Bool),
                    8 => Some(ValueType::String),
                    9 => Some(ValueType::Array),
                    _ => None,
                }
            }

            /// The fewest bytes that a value of this type takes in a file.
            pub(super) const fn least_bytes(self) -> usize {
                match self {
                    $(ValueType::$name => size_of::<$rust>(),)*
                    ValueType::Bool => 1,
                    ValueType::String => 8,
                    ValueType::Array => 12,
                }
            }
        }

        /// A metadata value.
        #[derive(Debug, Clone, PartialEq)]
        #[allow(missing_docs, reason = "each variant is its type")]
        pub enum Value {
            $($name($rust),)*
            Bool(bool),
            String(String),
            Array(Array),
        }

        impl Value {
            /// Its type.
            pub fn value_type(&self) -> ValueType {
                match self {
                    $(Value::$name(_) => ValueType::$name,)*
                    Value::Bool(_) => ValueType::Bool,
                    Value::String(_) => ValueType::String,
                    Value::Array(_) => ValueType::Array,
                }
            }
        }

        /// An array value: elements of one type. Arrays of arrays do not occur.
        #[derive(Debug, Clone, PartialEq)]
        #[allow(missing_docs, reason = "each variant is its element type")]
        pub enum Array {
            $($name(Vec<$rust>),)*
            Bool(Vec<bool>),
            String(Strings),
        }

        impl Array {
            /// The type of its elements.
            pub fn element(&self) -> ValueType {
                match self {
                    $(Array::$name(_) => ValueType::$name,)*
                    Array::Bool(_) => ValueType::Bool,
                    Array::String(_) => ValueType::String,
                }
            }

            /// Number of elements.
            pub fn len(&self) -> usize {
                match self {
                    $(Array::$name(values) => values.len(),)*
                    Array::Bool(values) => values.len(),
                    Array::String(values) => values.len(),
                }
            }

            /// An element as a value of its own.
            pub fn get(&self, index: usize) -> Option<Value> {
                match self {
                    $(Array::$name(values) => values.get(index).map(|&value| Value::$name(value)),)*
                    Array::Bool(values) => values.get(index).map(|&value| Value::Bool(value)),
                    Array::String(values) => values.get(index).map(|value| Value::String(value.to_owned())),
                }
            }
        }

        $(
            impl From<$rust> for Value {
                fn from(value: $rust) -> Self {
                    Value::$name(value)
                }
            }

            impl From<Vec<$rust>> for Value {
                fn from(values: Vec<$rust>) -> Self {
                    Value::Array(Array::$name(values))
                }
            }
        )*
    };
}

numbers! {
    U8: u8 = 0;
    I8: i8 = 1;
    U16: u16 = 2;
    I16: i16 = 3;
    U32: u32 = 4;
    I32: i32 = 5;
    F32: f32 = 6;
    U64: u64 = 10;
    I64: i64 = 11;
    F64: f64 = 12;
}

/// Any integer, wide enough for each of the eight types.
fn integer(value: &Value) -> Option<i128> {
    Some(match *value {
        Value::U8(value) => value.into(),
        Value::I8(value) => value.into(),
        Value::U16(value) => value.into(),
        Value::I16(value) => value.into(),
        Value::U32(value) => value.into(),
        Value::I32(value) => value.into(),
        Value::U64(value) => value.into(),
        Value::I64(value) => value.into(),
        _ => return None,
    })
}

impl Value {
    /// The number, if it is an integer of any type that is not negative: writers differ in the width they choose.
    pub fn as_u64(&self) -> Option<u64> {
        integer(self)?.try_into().ok()
    }

    /// The number, if it is an integer of any type.
    pub fn as_i64(&self) -> Option<i64> {
        integer(self)?.try_into().ok()
    }

    /// The number, if it is an F32, or an F64 or integer, which are rounded.
    pub fn as_f32(&self) -> Option<f32> {
        match self {
            Value::F32(value) => Some(*value),
            Value::F64(value) => Some(*value as f32),
            value => integer(value).map(|value| value as f32),
        }
    }

    /// The truth value, if it is a bool.
    pub fn as_bool(&self) -> Option<bool> {
        if let Value::Bool(value) = self { Some(*value) } else { None }
    }

    /// The text, if it is a string.
    pub fn as_str(&self) -> Option<&str> {
        if let Value::String(value) = self { Some(value) } else { None }
    }

    /// The array, if it is one.
    pub fn as_array(&self) -> Option<&Array> {
        if let Value::Array(value) = self { Some(value) } else { None }
    }

    /// The texts, if it is an array of strings.
    pub fn as_strings(&self) -> Option<&Strings> {
        if let Value::Array(Array::String(values)) = self { Some(values) } else { None }
    }
}

impl Array {
    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements, one after another.
    pub fn iter(&self) -> impl Iterator<Item = Value> {
        (0..self.len()).filter_map(|index| self.get(index))
    }

    /// The elements, if all are integers that are not negative.
    pub fn to_u64s(&self) -> Option<Vec<u64>> {
        self.iter().map(|value| value.as_u64()).collect()
    }

    /// The elements, if all are integers.
    pub fn to_i64s(&self) -> Option<Vec<i64>> {
        self.iter().map(|value| value.as_i64()).collect()
    }

    /// The elements, if all are numbers.
    pub fn to_f32s(&self) -> Option<Vec<f32>> {
        self.iter().map(|value| value.as_f32()).collect()
    }

    /// The elements, if they are bools.
    pub fn as_bools(&self) -> Option<&[bool]> {
        if let Array::Bool(values) = self { Some(values) } else { None }
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Value::Bool(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Value::String(value.to_owned())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Value::String(value)
    }
}

impl From<Array> for Value {
    fn from(values: Array) -> Self {
        Value::Array(values)
    }
}

impl From<Vec<bool>> for Value {
    fn from(values: Vec<bool>) -> Self {
        Value::Array(Array::Bool(values))
    }
}

impl From<Strings> for Value {
    fn from(values: Strings) -> Self {
        Value::Array(Array::String(values))
    }
}

impl<S: AsRef<str>> From<&[S]> for Value {
    fn from(values: &[S]) -> Self {
        values.iter().collect::<Strings>().into()
    }
}

impl From<Vec<String>> for Value {
    fn from(values: Vec<String>) -> Self {
        values.as_slice().into()
    }
}
