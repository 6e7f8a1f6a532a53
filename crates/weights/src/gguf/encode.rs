//! The header as bytes.

use std::collections::HashSet;

use super::{ALIGNMENT, ALIGNMENT_KEY, Array, GgufFault, GgufTensor, Metadata, Value, header, shards};

/// Checks keys that a file is to have; those of alignment and shards are set here.
pub(super) fn check_metadata(metadata: &Metadata) -> Result<(), GgufFault> {
    let mut names = HashSet::new();
    for (key, _) in metadata.iter() {
        if key.is_empty() {
            return Err(GgufFault::EmptyKey);
        }
        if key == ALIGNMENT_KEY || shards::KEYS.contains(&key) {
            return Err(GgufFault::ReservedKey { key: key.to_owned() });
        }
        if !names.insert(key) {
            return Err(GgufFault::DuplicateKey { key: key.to_owned() });
        }
    }
    Ok(())
}

/// Checks tensors that a file is to have.
pub(super) fn check_tensors(tensors: &[GgufTensor]) -> Result<(), GgufFault> {
    let mut names = HashSet::new();
    for tensor in tensors {
        header::check(tensor)?;
        if !names.insert(tensor.name.as_str()) {
            return Err(GgufFault::DuplicateTensor { tensor: tensor.name.clone() });
        }
    }
    Ok(())
}

/// Bytes of a checked tensor's data in the file, padding included.
pub(super) fn padded(tensor: &GgufTensor) -> usize {
    tensor.bytes().expect("invariant: the tensor was checked").next_multiple_of(ALIGNMENT)
}

/// Everything before the data, padding included, for checked keys and tensors.
pub(super) fn header(metadata: &Metadata, tensors: &[GgufTensor]) -> Vec<u8> {
    let mut bytes = fields(metadata, tensors);
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    bytes
}

/// [`header`] without its padding.
pub(super) fn fields(metadata: &Metadata, tensors: &[GgufTensor]) -> Vec<u8> {
    let mut bytes = header::MAGIC.to_vec();
    bytes.extend(header::VERSION.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata.iter() {
        text(&mut bytes, key);
        bytes.extend((value.value_type() as u32).to_le_bytes());
        put(&mut bytes, value);
    }
    let mut offset = 0;
    for tensor in tensors {
        entry(&mut bytes, tensor, offset);
        offset += padded(tensor) as u64;
    }
    bytes
}

/// Bytes of a tensor's entry in the header.
pub(super) fn entry_bytes(tensor: &GgufTensor) -> usize {
    8 + tensor.name.len() + 4 + 8 * tensor.shape.len() + 4 + 8
}

fn entry(bytes: &mut Vec<u8>, tensor: &GgufTensor, offset: u64) {
    text(bytes, &tensor.name);
    bytes.extend((tensor.shape.len() as u32).to_le_bytes());
    for &extent in tensor.shape.iter().rev() {
        bytes.extend((extent as u64).to_le_bytes());
    }
    bytes.extend(tensor.ty.id().to_le_bytes());
    bytes.extend(offset.to_le_bytes());
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

fn put(bytes: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(value) => bytes.push(*value),
        Value::I8(value) => bytes.extend(value.to_le_bytes()),
        Value::U16(value) => bytes.extend(value.to_le_bytes()),
        Value::I16(value) => bytes.extend(value.to_le_bytes()),
        Value::U32(value) => bytes.extend(value.to_le_bytes()),
        Value::I32(value) => bytes.extend(value.to_le_bytes()),
        Value::F32(value) => bytes.extend(value.to_le_bytes()),
        Value::U64(value) => bytes.extend(value.to_le_bytes()),
        Value::I64(value) => bytes.extend(value.to_le_bytes()),
        Value::F64(value) => bytes.extend(value.to_le_bytes()),
        Value::Bool(value) => bytes.push(u8::from(*value)),
        Value::String(value) => text(bytes, value),
        Value::Array(value) => array(bytes, value),
    }
}

fn array(bytes: &mut Vec<u8>, array: &Array) {
    bytes.extend((array.element() as u32).to_le_bytes());
    bytes.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(values) => bytes.extend(values),
        Array::I8(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::U16(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::I16(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::U32(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::I32(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::F32(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::U64(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::I64(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::F64(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::Bool(values) => bytes.extend(values.iter().map(|&value| u8::from(value))),
        Array::String(values) => {
            bytes.reserve(values.text_bytes() + 8 * values.len());
            values.iter().for_each(|value| text(bytes, value));
        }
    }
}
