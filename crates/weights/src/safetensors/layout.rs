//! [`Layout`]: how a checkpoint's tensors are spread over files, so that an export can be spread the same way.

use serde_json::{Map, Value};

use super::Metadata;
use crate::TensorInfo;

/// One safetensors file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardInfo {
    /// Its name inside the checkpoint's directory.
    pub file_name: String,
    /// Its tensors in file order.
    pub tensors: Vec<String>,
    /// The text pairs of its header.
    pub metadata: Metadata,
}

/// The index that joins several files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// Its name inside the checkpoint's directory.
    pub file_name: String,
    /// Its `metadata` as read; `total_size` is computed anew when it is written.
    pub metadata: Map<String, Value>,
}

/// The files of a checkpoint, without their data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The files, by name.
    pub shards: Vec<ShardInfo>,
    /// The index; none when a single file stands alone.
    pub index: Option<Index>,
}

impl Layout {
    /// One file `model.safetensors` as transformers writes it, holding `tensors` in that order.
    pub fn single(tensors: &[TensorInfo]) -> Self {
        Self {
            shards: vec![ShardInfo {
                file_name: "model.safetensors".to_owned(),
                tensors: tensors.iter().map(|info| info.name.clone()).collect(),
                metadata: Metadata::from([("format".to_owned(), "pt".to_owned())]),
            }],
            index: None,
        }
    }

    /// Names of all tensors, file after file: the order in which a [`super::ShardedWriter`] wants them.
    pub fn tensors(&self) -> impl Iterator<Item = &str> {
        self.shards.iter().flat_map(|shard| &shard.tensors).map(String::as_str)
    }
}
