//! The part of a GGUF file before the data: magic, counts, keys and values, tensors and where they lie.
//!
//! Every length is held against what is left of the file before anything is allocated by it.

use std::{collections::HashSet, path::Path};

use super::cursor::Cursor;
use super::{
    ALIGNMENT, ALIGNMENT_KEY, AXES_LIMIT, Array, GgufFault, GgufTensor, Metadata, NAME_LIMIT, Strings, TensorType,
    Value, ValueType,
};
use crate::WeightError;

pub(super) const MAGIC: [u8; 4] = *b"GGUF";
/// The version that is written; version 2 has the same layout.
pub(super) const VERSION: u32 = 3;

/// A checked header.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) metadata: Metadata,
    /// Tensors by position in the file.
    pub(super) entries: Vec<Entry>,
}

/// A tensor and the bytes of the file that hold it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) tensor: GgufTensor,
    pub(super) begin: usize,
    pub(super) end: usize,
}

/// Parses and checks the header of a whole file, whose data must be as long as the header says.
pub(super) fn parse(path: &Path, file: &[u8]) -> Result<Header, WeightError> {
    let mut cursor = Cursor::new(file);
    read(&mut cursor).map_err(|fault| WeightError::GgufMalformed {
        path: path.to_owned(),
        at: cursor.marked() as u64,
        fault,
    })
}

fn read(cursor: &mut Cursor<'_>) -> Result<Header, GgufFault> {
    let magic = cursor.array(|| "the magic number".to_owned())?;
    if magic != MAGIC {
        return Err(GgufFault::Magic { found: magic });
    }
    cursor.mark();
    let version = cursor.u32(|| "the version".to_owned())?;
    if !(2..=VERSION).contains(&version) {
        return Err(GgufFault::Version { found: version });
    }
    let tensors = cursor.u64(|| "the number of tensors".to_owned())?;
    let keys = cursor.u64(|| "the number of keys".to_owned())?;
    let metadata = read_metadata(cursor, keys)?;
    let alignment = alignment(&metadata)?;
    let declared = read_tensors(cursor, tensors)?;
    place(cursor, declared, alignment).map(|entries| Header { metadata, entries })
}

fn read_metadata(cursor: &mut Cursor<'_>, count: u64) -> Result<Metadata, GgufFault> {
    let mut metadata = Metadata::new();
    let mut names = HashSet::new();
    for index in 0..count {
        cursor.mark();
        let key = cursor.text(|| format!("the name of key {index} of {count}"))?;
        if key.is_empty() {
            return Err(GgufFault::EmptyKey);
        }
        if !names.insert(key) {
            return Err(GgufFault::DuplicateKey { key: key.to_owned() });
        }
        let ty = read_value_type(cursor, key)?;
        let value = if ty == ValueType::Array { read_array(cursor, key)?.into() } else { read_value(cursor, key, ty)? };
        metadata.push(key, value);
    }
    Ok(metadata)
}

fn of_key(key: &str) -> impl Fn() -> String {
    move || format!("the value of key `{key}`")
}

fn read_value_type(cursor: &mut Cursor<'_>, key: &str) -> Result<ValueType, GgufFault> {
    let id = cursor.u32(of_key(key))?;
    ValueType::from_id(id).ok_or_else(|| GgufFault::ValueType { key: key.to_owned(), id })
}

fn read_value(cursor: &mut Cursor<'_>, key: &str, ty: ValueType) -> Result<Value, GgufFault> {
    let what = of_key(key);
    Ok(match ty {
        ValueType::U8 => u8::from_le_bytes(cursor.array(what)?).into(),
        ValueType::I8 => i8::from_le_bytes(cursor.array(what)?).into(),
        ValueType::U16 => u16::from_le_bytes(cursor.array(what)?).into(),
        ValueType::I16 => i16::from_le_bytes(cursor.array(what)?).into(),
        ValueType::U32 => u32::from_le_bytes(cursor.array(what)?).into(),
        ValueType::I32 => i32::from_le_bytes(cursor.array(what)?).into(),
        ValueType::F32 => f32::from_le_bytes(cursor.array(what)?).into(),
        ValueType::U64 => u64::from_le_bytes(cursor.array(what)?).into(),
        ValueType::I64 => i64::from_le_bytes(cursor.array(what)?).into(),
        ValueType::F64 => f64::from_le_bytes(cursor.array(what)?).into(),
        ValueType::Bool => truth(key, cursor.array::<1>(what)?[0])?.into(),
        ValueType::String => cursor.text(what)?.into(),
        ValueType::Array => return Err(GgufFault::NestedArray { key: key.to_owned() }),
    })
}

fn truth(key: &str, byte: u8) -> Result<bool, GgufFault> {
    match byte {
        0 | 1 => Ok(byte == 1),
        found => Err(GgufFault::NotBool { key: key.to_owned(), found }),
    }
}

fn read_array(cursor: &mut Cursor<'_>, key: &str) -> Result<Array, GgufFault> {
    let element = read_value_type(cursor, key)?;
    let count = cursor.u64(of_key(key))?;
    // Of strings only their lengths are counted here, so this bounds what is allocated for any element type.
    let count = cursor.fits(count, element.least_bytes(), of_key(key))?;
    macro_rules! numbers {
        ($kind:ident) => {{
            let bytes = cursor.take(count * element.least_bytes(), of_key(key))?;
            Array::$kind(bytes.as_chunks().0.iter().map(|bytes| from_le_bytes(*bytes)).collect())
        }};
    }
    fn from_le_bytes<T: FromLeBytes<N>, const N: usize>(bytes: [u8; N]) -> T {
        T::from_bytes(bytes)
    }
    Ok(match element {
        ValueType::U8 => numbers!(U8),
        ValueType::I8 => numbers!(I8),
        ValueType::U16 => numbers!(U16),
        ValueType::I16 => numbers!(I16),
        ValueType::U32 => numbers!(U32),
        ValueType::I32 => numbers!(I32),
        ValueType::F32 => numbers!(F32),
        ValueType::U64 => numbers!(U64),
        ValueType::I64 => numbers!(I64),
        ValueType::F64 => numbers!(F64),
        ValueType::Bool => {
            let bytes = cursor.take(count, of_key(key))?;
            Array::Bool(bytes.iter().map(|&byte| truth(key, byte)).collect::<Result<_, _>>()?)
        }
        ValueType::String => {
            let mut strings = Strings::default();
            for index in 0..count {
                strings.push(cursor.text(|| format!("element {index} of key `{key}`"))?);
            }
            Array::String(strings)
        }
        ValueType::Array => return Err(GgufFault::NestedArray { key: key.to_owned() }),
    })
}

fn alignment(metadata: &Metadata) -> Result<u64, GgufFault> {
    let Some(value) = metadata.get(ALIGNMENT_KEY) else { return Ok(ALIGNMENT as u64) };
    match value {
        Value::U32(alignment) if alignment.is_power_of_two() => Ok((*alignment).into()),
        value => Err(GgufFault::KeyValue {
            key: ALIGNMENT_KEY,
            found: format!("{:?} {}", value.value_type(), value.as_i64().map_or_else(String::new, |n| n.to_string()))
                .trim_end()
                .to_owned(),
            expected: "a power of two as U32".to_owned(),
        }),
    }
}

/// A tensor with its offset as written.
struct Declared {
    tensor: GgufTensor,
    bytes: u64,
    offset: u64,
    /// Where in the file it was declared.
    at: usize,
}

fn read_tensors(cursor: &mut Cursor<'_>, count: u64) -> Result<Vec<Declared>, GgufFault> {
    let mut declared = Vec::new();
    let mut names = HashSet::new();
    for index in 0..count {
        let at = cursor.mark();
        let name = cursor.text(|| format!("the name of tensor {index} of {count}"))?;
        let of_tensor = || format!("the entry of tensor `{name}`");
        let axes = cursor.u32(of_tensor)?;
        if axes as usize > AXES_LIMIT {
            return Err(GgufFault::Axes { tensor: name.to_owned(), found: axes.into() });
        }
        let mut shape = (0..axes).map(|_| cursor.u64(of_tensor)).collect::<Result<Vec<u64>, _>>()?;
        shape.reverse();
        let id = cursor.u32(of_tensor)?;
        let offset = cursor.u64(of_tensor)?;
        let ty = TensorType::from_id(id).ok_or_else(|| GgufFault::TensorType { tensor: name.to_owned(), id })?;
        let tensor = tensor(name, &shape, ty)?;
        let bytes = check(&tensor)? as u64;
        if !names.insert(name) {
            return Err(GgufFault::DuplicateTensor { tensor: name.to_owned() });
        }
        declared.push(Declared { tensor, bytes, offset, at });
    }
    Ok(declared)
}

fn tensor(name: &str, shape: &[u64], ty: TensorType) -> Result<GgufTensor, GgufFault> {
    let extents = shape.iter().map(|&extent| usize::try_from(extent)).collect::<Result<Vec<_>, _>>();
    let extents = extents.map_err(|_| GgufFault::TooLarge { tensor: name.to_owned(), ty, shape: shape.to_vec() })?;
    Ok(GgufTensor::new(name, extents, ty))
}

/// Checks what a file can say of one tensor; its size in bytes.
pub(super) fn check(tensor: &GgufTensor) -> Result<usize, GgufFault> {
    let name = || tensor.name.clone();
    if tensor.name.is_empty() {
        return Err(GgufFault::EmptyName);
    }
    if tensor.name.len() > NAME_LIMIT {
        return Err(GgufFault::LongName { tensor: name(), limit: NAME_LIMIT });
    }
    if tensor.shape.len() > AXES_LIMIT {
        return Err(GgufFault::Axes { tensor: name(), found: tensor.shape.len() as u64 });
    }
    if !tensor.row().is_multiple_of(tensor.ty.block()) {
        return Err(GgufFault::Row { tensor: name(), ty: tensor.ty, row: tensor.row() as u64 });
    }
    // Elements are counted too: a reader's buffer of f32 must be addressable.
    let elements = tensor.shape.iter().try_fold(size_of::<f32>(), |product, &extent| product.checked_mul(extent));
    match tensor.bytes() {
        Some(bytes)
            if elements.is_some_and(|bytes| isize::try_from(bytes).is_ok()) && isize::try_from(bytes).is_ok() =>
        {
            Ok(bytes)
        }
        _ => Err(GgufFault::TooLarge {
            tensor: name(),
            ty: tensor.ty,
            shape: tensor.shape.iter().map(|&extent| extent as u64).collect(),
        }),
    }
}

/// Checks that tensors lie one after another, in order, and that the file ends where the last one ends.
fn place(cursor: &mut Cursor<'_>, declared: Vec<Declared>, alignment: u64) -> Result<Vec<Entry>, GgufFault> {
    let begin = (cursor.position() as u64).next_multiple_of(alignment);
    let length = cursor.length() as u64;
    let mut reached = 0_u64;
    let mut entries = Vec::with_capacity(declared.len());
    for Declared { tensor, bytes, offset, at } in declared {
        cursor.mark_at(at);
        if offset != reached {
            return Err(GgufFault::Offset { tensor: tensor.name, expected: reached, found: offset });
        }
        let left = length.saturating_sub(begin).saturating_sub(offset);
        if bytes > left {
            return Err(GgufFault::Truncated {
                what: format!("the data of tensor `{}`", tensor.name),
                needs: bytes,
                left,
            });
        }
        // Below the file's length, which is in memory: `usize` holds it.
        let from = (begin + offset) as usize;
        entries.push(Entry { tensor, begin: from, end: from + bytes as usize });
        reached = (offset + bytes).next_multiple_of(alignment);
    }
    if length > begin.saturating_add(reached) {
        cursor.mark_at((begin + reached) as usize);
        return Err(GgufFault::TooLong { expected: reached, found: length - begin });
    }
    Ok(entries)
}

/// Elements that arrays hold little-endian.
trait FromLeBytes<const N: usize> {
    fn from_bytes(bytes: [u8; N]) -> Self;
}

macro_rules! from_le_bytes {
    ($($ty:ty)*) => {$(
        impl FromLeBytes<{ size_of::<$ty>() }> for $ty {
            fn from_bytes(bytes: [u8; size_of::<$ty>()]) -> Self {
                <$ty>::from_le_bytes(bytes)
            }
        }
    )*};
}

from_le_bytes!(u8 i8 u16 i16 u32 i32 f32 u64 i64 f64);

#[cfg(test)]
mod tests;
