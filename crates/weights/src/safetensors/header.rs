//! The header of a safetensors file: eight bytes of length, a JSON object, and rules that make it trustworthy.
//!
//! Layout: <https://github.com/huggingface/safetensors#format>. Byte ranges must cover the data without hole or
//! overlap and agree with type and shape, all before anything is allocated by their size.

use std::{collections::HashSet, fmt, path::Path};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};

use super::{HEADER_LIMIT, Metadata};
use crate::{Dtype, TensorInfo, WeightError};

/// Length of the length.
pub(super) const PREFIX: usize = 8;
const METADATA_KEY: &str = "__metadata__";

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
    pub(super) info: TensorInfo,
    pub(super) begin: usize,
    pub(super) end: usize,
}

/// Checks that a file of `length` bytes can hold a header at all.
pub(super) fn check_length(path: &Path, length: u64) -> Result<(), WeightError> {
    if length < PREFIX as u64 {
        return Err(WeightError::HeaderAbsent { path: path.to_owned(), found: length });
    }
    Ok(())
}

/// Parses and checks the header of a whole file.
pub(super) fn parse(path: &Path, file: &[u8]) -> Result<Header, WeightError> {
    let (json, data_start) = split(path, file)?;
    let data_length = (file.len() - data_start) as u64;
    let malformed = |reason: String| WeightError::HeaderMalformed { path: path.to_owned(), reason };
    if json.first() != Some(&b'{') {
        return Err(malformed("it does not begin with `{`".to_owned()));
    }
    let mut raw: RawHeader = serde_json::from_slice(json).map_err(|error| malformed(error.to_string()))?;
    // Stable, so that empty tensors keep the header's order.
    raw.tensors.sort_by_key(|(_, tensor)| tensor.data_offsets);

    let mut entries = Vec::with_capacity(raw.tensors.len());
    let mut names = HashSet::with_capacity(raw.tensors.len());
    let mut reached = 0;
    for (name, tensor) in &raw.tensors {
        if !names.insert(name.as_str()) {
            return Err(malformed(format!("tensor `{name}` occurs twice")));
        }
        let info = check_tensor(path, name, tensor)?;
        let (begin, end) = tensor.data_offsets;
        if begin != reached {
            return Err(WeightError::NotContiguous {
                path: path.to_owned(),
                tensor: name.clone(),
                expected: reached,
                found: begin,
            });
        }
        reached = end;
        if end > data_length {
            continue;
        }
        entries.push(Entry { info, begin: data_start + begin as usize, end: data_start + end as usize });
    }
    if reached != data_length {
        return Err(WeightError::WrongLength { path: path.to_owned(), expected: reached, found: data_length });
    }
    Ok(Header { metadata: raw.metadata, entries })
}

/// The JSON of the header, and where the data begins.
fn split<'a>(path: &Path, file: &'a [u8]) -> Result<(&'a [u8], usize), WeightError> {
    check_length(path, file.len() as u64)?;
    let (prefix, rest) = file.split_first_chunk::<PREFIX>().expect("invariant: length was checked");
    let declared = u64::from_le_bytes(*prefix);
    if declared > HEADER_LIMIT {
        return Err(WeightError::HeaderTooLong { path: path.to_owned(), declared, limit: HEADER_LIMIT });
    }
    let length = declared as usize;
    let json = rest.get(..length).ok_or_else(|| WeightError::HeaderTruncated {
        path: path.to_owned(),
        declared,
        found: file.len() as u64,
    })?;
    Ok((json, PREFIX + length))
}

/// Checks type, shape and length of one entry against each other.
fn check_tensor(path: &Path, name: &str, raw: &RawTensor) -> Result<TensorInfo, WeightError> {
    let dtype = Dtype::from_name(&raw.dtype).ok_or_else(|| WeightError::UnknownDtype {
        path: path.to_owned(),
        tensor: name.to_owned(),
        dtype: raw.dtype.clone(),
    })?;
    let (begin, end) = raw.data_offsets;
    let bytes = raw.shape.iter().try_fold(dtype.size() as u64, |product, &extent| product.checked_mul(extent));
    let shape = raw.shape.iter().map(|&extent| usize::try_from(extent)).collect::<Result<Vec<_>, _>>();
    match shape {
        Ok(shape) if bytes.is_some() && bytes == end.checked_sub(begin) => Ok(TensorInfo::new(name, dtype, shape)),
        _ => Err(WeightError::WrongExtent {
            path: path.to_owned(),
            tensor: name.to_owned(),
            dtype,
            shape: raw.shape.clone(),
            begin,
            end,
        }),
    }
}

/// The bytes that go before the data of these tensors, laid out one after another.
pub(super) fn build(metadata: &Metadata, tensors: &[TensorInfo]) -> Vec<u8> {
    let mut json = String::from("{");
    if !metadata.is_empty() {
        json.push_str(&quoted(METADATA_KEY));
        json.push(':');
        json.push_str(&serde_json::to_string(metadata).expect("invariant: text pairs are JSON"));
    }
    let mut begin = 0_usize;
    for info in tensors {
        if json.len() > 1 {
            json.push(',');
        }
        let end = begin + info.bytes();
        json.push_str(&format!(
            r#"{}:{{"dtype":"{}","shape":{:?},"data_offsets":[{begin},{end}]}}"#,
            quoted(&info.name),
            info.dtype,
            info.shape,
        ));
        begin = end;
    }
    json.push('}');
    // The data begins at a multiple of eight, so that mapped elements of every type are aligned.
    let padded = json.len().next_multiple_of(PREFIX);
    let mut bytes = (padded as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes.resize(PREFIX + padded, b' ');
    bytes
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("invariant: text is JSON")
}

#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The header as written: order and repeated names are kept.
struct RawHeader {
    metadata: Metadata,
    tensors: Vec<(String, RawTensor)>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader { metadata: Metadata::new(), tensors: Vec::new() };
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA_KEY {
                        header.metadata = map.next_value::<Option<Metadata>>()?.unwrap_or_default();
                    } else {
                        header.tensors.push((name, map.next_value()?));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn file(json: &str, data: usize) -> Vec<u8> {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn fault(json: &str, data: usize) -> String {
        parse(Path::new("m.safetensors"), &file(json, data)).unwrap_err().to_string()
    }

    #[test]
    fn every_fault_names_file_and_tensor() {
        let faults = [
            fault("[]", 0),
            fault("{\"a\":", 0),
            fault(r#"{"__metadata__":{"format":1}}"#, 0),
            fault(r#"{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}"#, 1),
            fault(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, 4),
            fault(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#, 4),
            fault(r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#, 0),
            fault(
                r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#,
                3,
            ),
            fault(r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#, 3),
            fault(r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#, 3),
            fault(r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#, 1),
            fault(
                r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#,
                0,
            ),
        ];
        assert_eq!(
            faults,
            [
                "the header of `m.safetensors` is malformed: it does not begin with `{`",
                "the header of `m.safetensors` is malformed: EOF while parsing a value at line 1 column 5",
                "the header of `m.safetensors` is malformed: invalid type: integer `1`, expected a string at line 1 column 27",
                "tensor `a` of `m.safetensors` has the unknown element type `F4`",
                "tensor `a` of `m.safetensors` is F32 [2], which takes 8 bytes, but its range is 0..4",
                "tensor `a` of `m.safetensors` is F32 [1], which takes 4 bytes, but its range is 4..0",
                "tensor `a` of `m.safetensors` is F32 [4294967296, 4294967296], which takes more than 2^64 bytes, but its range is 0..0",
                "tensor `b` of `m.safetensors` begins at byte 1 of the data; expected 2, where the tensor before it ends",
                "tensor `a` of `m.safetensors` begins at byte 1 of the data; expected 0, where the tensor before it ends",
                "`m.safetensors` is too long: its tensors take 2 bytes and 3 bytes follow the header",
                "`m.safetensors` is truncated: its tensors take 2 bytes and 1 bytes follow the header",
                "the header of `m.safetensors` is malformed: tensor `a` occurs twice",
            ]
        );
    }

    #[test]
    fn a_header_longer_than_the_file_or_the_limit_is_refused() {
        let parse = |bytes: &[u8]| parse(Path::new("m"), bytes).unwrap_err().to_string();
        assert_eq!(parse(&[0; 7]), "`m` is 7 bytes long; a safetensors file begins with an 8-byte header length");
        assert_eq!(
            parse(&[16, 0, 0, 0, 0, 0, 0, 0, b'{', b'}']),
            "`m` is truncated: it declares a header of 16 bytes and is 10 bytes long in all"
        );
        assert_eq!(
            parse(&[255; 10]),
            "`m` declares a header of 18446744073709551615 bytes, more than the limit of 100000000: not a safetensors file"
        );
    }

    #[test]
    fn tensors_come_in_the_order_of_the_file() {
        let json = r#"{"z":{"dtype":"U8","shape":[1],"data_offsets":[2,3]},"__metadata__":null,"e":{"dtype":"U8","shape":[0],"data_offsets":[2,2]},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#;
        let header = parse(Path::new("m"), &file(json, 3)).unwrap();
        let names: Vec<_> = header.entries.iter().map(|entry| entry.info.name.as_str()).collect();
        assert_eq!(names, ["a", "e", "z"]);
    }
}
