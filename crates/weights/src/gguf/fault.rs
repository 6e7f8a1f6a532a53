//! [`GgufFault`]: every way in which a GGUF file, or what is to become one, can be wrong.

use super::TensorType;

/// What is wrong with a file that was read, or with keys and tensors that were to be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GgufFault {
    /// Another kind of file.
    #[error("a GGUF file begins with `GGUF`, this one with `{}`", found.escape_ascii())]
    Magic {
        /// The first four bytes.
        found: [u8; 4],
    },

    /// A version this program does not know.
    #[error("version {found} is not supported: expected 2 or 3{}", if found & 0xffff == 0 && *found != 0 { " (the file is big-endian)" } else { "" })]
    Version {
        /// The version as written.
        found: u32,
    },

    /// The file ends early, or a length in it is absurd.
    #[error("{what} needs {needs} bytes and {left} are left")]
    Truncated {
        /// What was being read.
        what: String,
        /// Its size at least.
        needs: u64,
        /// What the file still has.
        left: u64,
    },

    /// Text that is not UTF-8.
    #[error("{what} is not UTF-8")]
    NotUtf8 {
        /// What was being read.
        what: String,
    },

    /// A key without a name.
    #[error("a key is empty")]
    EmptyKey,

    /// A key that is set twice.
    #[error("key `{key}` occurs twice")]
    DuplicateKey {
        /// The key.
        key: String,
    },

    /// A value type that is none.
    #[error("key `{key}` has the unknown value type {id}")]
    ValueType {
        /// The key.
        key: String,
        /// The type as written.
        id: u32,
    },

    /// An array of arrays.
    #[error("key `{key}` is an array of arrays")]
    NestedArray {
        /// The key.
        key: String,
    },

    /// A truth value that is neither.
    #[error("key `{key}` holds a bool of {found}, which is neither 0 nor 1")]
    NotBool {
        /// The key.
        key: String,
        /// The byte.
        found: u8,
    },

    /// A key that has to have a certain value.
    #[error("key `{key}` is {found}; expected {expected}")]
    KeyValue {
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
        /// What it must be.
        expected: String,
    },

    /// A key that is the writer's own business.
    #[error("key `{key}` is set by the writer")]
    ReservedKey {
        /// The key.
        key: String,
    },

    /// A tensor without a name.
    #[error("a tensor has no name")]
    EmptyName,

    /// A name that llama.cpp has no room for.
    #[error("tensor `{tensor}` has a name of {} bytes; at most {limit} are allowed", tensor.len())]
    LongName {
        /// The tensor.
        tensor: String,
        /// The longest allowed.
        limit: usize,
    },

    /// A name that occurs twice.
    #[error("tensor `{tensor}` occurs twice")]
    DuplicateTensor {
        /// The tensor.
        tensor: String,
    },

    /// More axes than there can be.
    #[error("tensor `{tensor}` has {found} axes; at most 4 are allowed")]
    Axes {
        /// The tensor.
        tensor: String,
        /// How many it has.
        found: u64,
    },

    /// A type that is none, or that was given up.
    #[error("tensor `{tensor}` has the unknown type {id}")]
    TensorType {
        /// The tensor.
        tensor: String,
        /// The type as written.
        id: u32,
    },

    /// Rows that are no whole number of blocks.
    #[error("tensor `{tensor}` is {ty} with rows of {row}, which is not a multiple of {}", ty.block())]
    Row {
        /// The tensor.
        tensor: String,
        /// Its type.
        ty: TensorType,
        /// Elements of a row.
        row: u64,
    },

    /// A shape that no machine can hold.
    #[error("tensor `{tensor}` is {ty} {shape:?}, more bytes than can be addressed")]
    TooLarge {
        /// The tensor.
        tensor: String,
        /// Its type.
        ty: TensorType,
        /// Its shape, outermost axis first.
        shape: Vec<u64>,
    },

    /// Data that overlaps or leaves a hole.
    #[error(
        "tensor `{tensor}` begins at byte {found} of the data; expected {expected}, where the tensor before it ends"
    )]
    Offset {
        /// The tensor.
        tensor: String,
        /// Where the tensor before it ends, padding included.
        expected: u64,
        /// Where it begins.
        found: u64,
    },

    /// A file that goes on after its last tensor.
    #[error("{found} bytes follow the header; its tensors take {expected}")]
    TooLong {
        /// Bytes the header speaks of.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },

    /// One of several files under a name from which the others' names do not follow.
    #[error("the file is one of {count}; its name must end in `-{:05}-of-{count:05}.gguf`", index + 1)]
    ShardName {
        /// Which one it is, from 0.
        index: u64,
        /// How many there are.
        count: u64,
    },

    /// More files than their numbers have room for.
    #[error("{found} files are needed and at most {} can be numbered", u16::MAX)]
    TooManyShards {
        /// How many there would be.
        found: usize,
    },
}
