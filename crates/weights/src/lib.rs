//! Named tensors in files: safetensors checkpoints, PEFT adapter directories, and writes that are whole or absent.
//!
//! A reader hands out bytes of the mapped file without copying them; a writer is told every tensor first and then given
//! them in that order, because the formats put their headers first. Nothing here knows what a tensor means.
//!
//! | module | what it holds |
//! |---|---|
//! | [`tensor`] | [`Dtype`], [`TensorInfo`] |
//! | [`encoding`] | stored bytes to `f32` and back |
//! | [`source`], [`sink`] | the two traits, and tensors in memory |
//! | [`safetensors`] | [`Checkpoint`], [`SafetensorsWriter`], [`ShardedWriter`] |
//! | [`gguf`] | the files of llama.cpp: typed metadata, tensors in block formats |
//! | [`peft`] | adapter directories as PEFT reads and writes them |
//! | [`atomic`] | files and directories that appear only when whole |
//! | [`lock`] | what files were: their SHA-256 |

pub mod atomic;
pub mod encoding;
mod error;
pub mod gguf;
pub mod lock;
mod mapped;
pub mod peft;
pub mod safetensors;
pub mod sink;
pub mod source;
pub mod tensor;

pub use error::WeightError;
pub use lock::user_cache;
pub use mapped::MappedBytes;
pub use safetensors::{Checkpoint, Layout, Metadata, SafetensorsWriter, ShardInfo, ShardedWriter};
pub use sink::{TensorSink, Written};
pub use source::{MemorySource, TensorSource};
pub use tensor::{Dtype, TensorInfo};
