//! One cell of an Arrow column as a JSON value, the form in which formats and templates read it.

use arrow::array::{Array, AsArray};
use arrow::datatypes::{
    DataType, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use serde_json::{Map, Value};

use crate::error::RowError;

/// Deeper nesting than any data set has; guards the stack.
const MAX_DEPTH: usize = 64;

/// The cell, with null fields of structs left out: Arrow gives every struct of a column the same fields, so a null
/// there says only that some other row has one.
pub(super) fn value(array: &dyn Array, row: usize) -> Result<Value, RowError> {
    nested(array, row, MAX_DEPTH)
}

fn nested(array: &dyn Array, row: usize, depth: usize) -> Result<Value, RowError> {
    if array.is_null(row) {
        return Ok(Value::Null);
    }
    macro_rules! number {
        ($type:ty) => {
            Value::from(array.as_primitive::<$type>().value(row))
        };
    }
    Ok(match array.data_type() {
        DataType::Null => Value::Null,
        DataType::Boolean => array.as_boolean().value(row).into(),
        DataType::Int8 => number!(Int8Type),
        DataType::Int16 => number!(Int16Type),
        DataType::Int32 => number!(Int32Type),
        DataType::Int64 => number!(Int64Type),
        DataType::UInt8 => number!(UInt8Type),
        DataType::UInt16 => number!(UInt16Type),
        DataType::UInt32 => number!(UInt32Type),
        DataType::UInt64 => number!(UInt64Type),
        DataType::Float16 => array.as_primitive::<Float16Type>().value(row).to_f64().into(),
        DataType::Float32 => number!(Float32Type),
        DataType::Float64 => number!(Float64Type),
        DataType::Utf8 => array.as_string::<i32>().value(row).into(),
        DataType::LargeUtf8 => array.as_string::<i64>().value(row).into(),
        DataType::Utf8View => array.as_string_view().value(row).into(),
        DataType::List(_) => list(array.as_list::<i32>().value(row).as_ref(), depth)?,
        DataType::LargeList(_) => list(array.as_list::<i64>().value(row).as_ref(), depth)?,
        DataType::FixedSizeList(..) => list(array.as_fixed_size_list().value(row).as_ref(), depth)?,
        DataType::Struct(fields) => {
            let depth = deeper(depth)?;
            let columns = array.as_struct().columns();
            let mut object = Map::with_capacity(fields.len());
            for (field, column) in fields.iter().zip(columns) {
                let value = nested(column.as_ref(), row, depth)?;
                if !value.is_null() {
                    object.insert(field.name().clone(), value);
                }
            }
            Value::Object(object)
        }
        DataType::Map(..) => {
            let depth = deeper(depth)?;
            let entries = array.as_map().value(row);
            let (keys, values) = (entries.column(0), entries.column(1));
            let mut object = Map::with_capacity(entries.len());
            for i in 0..entries.len() {
                let key = match nested(keys.as_ref(), i, depth)? {
                    Value::String(key) => key,
                    other => other.to_string(),
                };
                object.insert(key, nested(values.as_ref(), i, depth)?);
            }
            Value::Object(object)
        }
        DataType::Dictionary(..) => {
            let dictionary = array.as_any_dictionary();
            let key = nested(dictionary.keys(), row, depth)?.as_u64().and_then(|k| usize::try_from(k).ok());
            match key.filter(|&k| k < dictionary.values().len()) {
                Some(key) => nested(dictionary.values().as_ref(), key, depth)?,
                None => Value::Null,
            }
        }
        other => {
            return Err(RowError::WrongType {
                what: "the cell".into(),
                found: format!("of the Arrow type {other}"),
                expected: "text, numbers, or lists and structs of them",
            });
        }
    })
}

fn list(items: &dyn Array, depth: usize) -> Result<Value, RowError> {
    let depth = deeper(depth)?;
    (0..items.len()).map(|i| nested(items, i, depth)).collect::<Result<Vec<_>, _>>().map(Value::Array)
}

fn deeper(depth: usize) -> Result<usize, RowError> {
    depth.checked_sub(1).ok_or_else(|| RowError::WrongType {
        what: "the cell".into(),
        found: "nested too deeply".into(),
        expected: "at most 64 levels",
    })
}
