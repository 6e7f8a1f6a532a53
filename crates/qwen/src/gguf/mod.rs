//! Between Qwen checkpoints and GGUF files, both ways: names, keys, tokenizer, types, and the order and form that
//! llama.cpp wants values in.
//!
//! [`layout`] says once where each number of a model lies in a file; models and adapters are written by it and files are
//! read back by it. A new architecture is one entry in [`ARCHITECTURES`]; a new kind of tensor one in `names`.
//!
//! | module | what it holds |
//! |---|---|
//! | `arch`, `rules` | [`ARCHITECTURES`], and what a file of each cannot say |
//! | `names`, `order`, `layout` | every tensor: its name there, and which rows and columns it takes |
//! | `types` | [`Quant`]: which type each tensor gets |
//! | `about`, `metadata`, `tokenizer` | the keys |
//! | `write` | [`write()`]: a model, merged and quantised in one pass |
//! | `adapter` | [`write_adapter`] |
//! | `read` | [`GgufModel`]: a file as a checkpoint |
//!
//! Sources: `conversion/` and `src/` of llama.cpp, <https://github.com/ggml-org/llama.cpp>.

mod about;
mod adapter;
mod arch;
mod error;
mod layout;
mod metadata;
mod names;
mod order;
mod read;
mod rules;
mod tokenizer;
mod types;
mod write;

pub use about::About;
pub use adapter::write_adapter;
pub use arch::{ARCHITECTURES, Architecture, warnings};
pub use error::GgufError;
pub use read::{GgufBlocks, GgufModel};
pub use types::Quant;
pub use write::{Report, WriteOptions, WrittenGguf, examine, file_name, write};

#[cfg(test)]
mod tests;
