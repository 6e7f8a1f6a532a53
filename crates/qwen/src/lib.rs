//! What a Qwen checkpoint is, without running it: its specification, the list of its tensors, which of them take an
//! adapter, what training it costs, and how it is written out again.
//!
//! Everything that differs between families is decided here, once, from `config.json`; the rest of the program reads
//! [`DecoderSpec`] and [`inventory`] and never asks for a family's name.
//!
//! | module | what it holds |
//! |---|---|
//! | [`family`] | `config.json` to [`DecoderSpec`], one file a family |
//! | [`spec`] | [`DecoderSpec`] |
//! | [`inventory`](inventory()) | the list of tensors of a specification |
//! | [`model_dir`] | [`ModelDir`]: a directory whose weights were held against that list |
//! | [`targets`] | which modules get adapters |
//! | [`memory`] | bytes and operations, by formula |
//! | [`export`] | merged models and adapters, streamed to disk |
//! | [`gguf`] | the same as GGUF files, and models read from these |

mod auto;
mod byte_size;
pub mod export;
pub mod family;
#[cfg(test)]
mod fixture;
pub mod gguf;
mod inventory;
pub mod memory;
pub mod model_dir;
pub mod published;
pub mod spec;
pub mod targets;

pub use auto::Auto;
pub use byte_size::ByteSize;
pub use export::ExportError;
pub use family::ConfigError;
pub use inventory::{Matrices, Part, Role, TensorSpec, inventory};
pub use model_dir::{KeyLayout, LOCK_FILE, ModelDir, ModelError, Weights, module_name};
pub use spec::{
    AttentionSpec, DecoderSpec, FfnSpec, GatedDeltaSpec, HeadSpec, LayerSpec, MixerSpec, NormSpec, Projections,
    RopeOrigin, RopeScaling, RopeSpec, SparseSpec,
};
pub use targets::{LayerFilter, LoraTargets, Switches, TargetError};
