//! GGUF files: typed metadata and tensors in block formats, as llama.cpp reads and writes them.
//!
//! Reading is strict, as llama.cpp's own reader is: what that would refuse is refused here with a place. Shapes are
//! row-major, so the reverse of the file's. What keys and names mean for a model is not known here.
//!
//! | module | what it holds |
//! |---|---|
//! | `value`, `strings`, `metadata` | [`Value`], [`Array`], [`Metadata`] |
//! | `tensor_type` | [`TensorType`], [`GgufTensor`] |
//! | `header`, `cursor`, `encode` | the part of a file before the data, both ways |
//! | `file` | [`GgufFile`], one file or several joined |
//! | `writer`, `shards` | [`GgufWriter`] |
//! | [`blocks`] | numbers to blocks and back, byte for byte as ggml does |
//!
//! Layout: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

pub mod blocks;
mod cursor;
mod encode;
mod fault;
mod file;
mod header;
mod metadata;
mod shards;
mod strings;
mod tensor_type;
mod value;
mod writer;

pub use fault::GgufFault;
pub use file::GgufFile;
pub use metadata::Metadata;
pub use strings::Strings;
pub use tensor_type::{GgufTensor, TensorType};
pub use value::{Array, Value, ValueType};
pub use writer::GgufWriter;

/// What tensors begin at a multiple of, in files that are written here.
const ALIGNMENT: usize = 32;
/// Where a file that is read says otherwise.
const ALIGNMENT_KEY: &str = "general.alignment";
/// The longest name llama.cpp has room for.
const NAME_LIMIT: usize = 63;
/// The most axes a tensor can have.
const AXES_LIMIT: usize = 4;

#[cfg(test)]
mod tests;
