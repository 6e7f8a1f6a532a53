//! One model in several files: their names, their keys, and which tensor goes where.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use super::{GgufFault, GgufTensor, Metadata, Value, encode};

const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";
/// Keys that every one of several files has.
pub(super) const KEYS: [&str; 3] = [NUMBER, COUNT, TENSORS];

/// What a file says of itself as one of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shard {
    pub(super) index: u64,
    pub(super) count: u64,
    /// Tensors of all files together.
    pub(super) tensors: Option<u64>,
}

impl Shard {
    /// Reads the keys; `None` for a file on its own.
    pub(super) fn of(metadata: &Metadata) -> Result<Option<Self>, GgufFault> {
        let Some(count) = number(metadata, COUNT)? else { return Ok(None) };
        if count <= 1 {
            return Ok(None);
        }
        let index = number(metadata, NUMBER)?.ok_or_else(|| GgufFault::KeyValue {
            key: NUMBER,
            found: "absent".to_owned(),
            expected: format!("the number of this file, below {count}"),
        })?;
        if index >= count || count > u64::from(u16::MAX) {
            return Err(GgufFault::KeyValue {
                key: NUMBER,
                found: format!("{index} of {count}"),
                expected: "less".to_owned(),
            });
        }
        Ok(Some(Self { index, count, tensors: number(metadata, TENSORS)? }))
    }

    /// Puts the keys at the end of `metadata`, with the types llama.cpp gives them.
    pub(super) fn put(self, metadata: &mut Metadata) {
        metadata.push(NUMBER, self.index as u16);
        metadata.push(COUNT, self.count as u16);
        metadata.push(TENSORS, self.tensors.unwrap_or(0) as i32);
    }
}

fn number(metadata: &Metadata, key: &'static str) -> Result<Option<u64>, GgufFault> {
    let Some(value) = metadata.get(key) else { return Ok(None) };
    let wrong = || GgufFault::KeyValue {
        key,
        found: format!("{:?}", value.value_type()),
        expected: "an integer that is not negative".to_owned(),
    };
    value.as_u64().map(Some).ok_or_else(wrong)
}

/// The name of one of several files: `stem-00001-of-00003.gguf`, where `path` is `stem.gguf`.
pub(super) fn name(path: &Path, index: usize, count: usize) -> PathBuf {
    let mut name = stem(path).to_owned();
    name.push(format!("-{:05}-of-{count:05}.gguf", index + 1));
    path.with_file_name(name)
}

fn stem(path: &Path) -> &OsStr {
    let whole = path.file_name().unwrap_or_default();
    if path.extension() == Some(OsStr::new("gguf")) { path.file_stem().unwrap_or(whole) } else { whole }
}

/// The path from which the [`name`]s of all files follow, given one of them.
pub(super) fn base(path: &Path, shard: Shard) -> Result<PathBuf, GgufFault> {
    let Shard { index, count, .. } = shard;
    let end = format!("-{:05}-of-{count:05}", index + 1);
    let stem = stem(path).to_str().and_then(|stem| stem.strip_suffix(&end));
    let stem = stem.ok_or(GgufFault::ShardName { index, count })?;
    Ok(path.with_file_name(format!("{stem}.gguf")))
}

/// Divides checked tensors, in order, into files of at most `limit` bytes each, headers included, where a tensor is not
/// larger than that by itself. Gives how many tensors each file takes; one file has no keys of shards.
pub(super) fn plan(metadata: &Metadata, tensors: &[GgufTensor], limit: u64) -> Vec<usize> {
    let whole = encode::header(metadata, tensors).len() + tensors.iter().map(encode::padded).sum::<usize>();
    if whole as u64 <= limit {
        return vec![tensors.len()];
    }
    let mut keys = Metadata::new();
    Shard { index: 0, count: 0, tensors: None }.put(&mut keys);
    let later = encode::fields(&keys, &[]).len();
    let mut used = later + encode::fields(metadata, &[]).len();
    let mut counts = vec![0];
    for tensor in tensors {
        // One alignment more than the padding of the header can take.
        let takes = encode::entry_bytes(tensor) + encode::padded(tensor);
        let last = counts.last_mut().expect("invariant: there is a first file");
        if *last > 0 && (used + takes + super::ALIGNMENT) as u64 > limit {
            counts.push(1);
            used = later + takes;
        } else {
            *last += 1;
            used += takes;
        }
    }
    counts
}

/// Keys of a model without those that only say how it was divided.
pub(super) fn without_keys(mut metadata: Metadata) -> Metadata {
    for key in KEYS {
        let _: Option<Value> = metadata.remove(key);
    }
    metadata
}
