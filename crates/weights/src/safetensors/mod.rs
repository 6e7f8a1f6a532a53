//! Safetensors files: one, or several joined by an index; read through a memory map, written as a stream.
//!
//! The header is parsed here rather than by the format's own crate, because every fault has to name its file and
//! tensor, and because exports repeat the base's order of tensors, which that crate does not keep. Tests hold the two
//! against each other.

mod checkpoint;
mod header;
mod layout;
mod sharded;
mod writer;

use std::collections::BTreeMap;

pub use checkpoint::Checkpoint;
pub use layout::{Index, Layout, ShardInfo};
pub use sharded::ShardedWriter;
pub use writer::SafetensorsWriter;

/// The text pairs of a header's `__metadata__`; checkpoints of transformers hold `format: pt`.
pub type Metadata = BTreeMap<String, String>;

/// Longest header accepted, the limit of the reference implementation; far above any real one.
pub const HEADER_LIMIT: u64 = 100_000_000;

#[cfg(test)]
mod tests;
