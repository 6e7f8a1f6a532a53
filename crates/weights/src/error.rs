//! Every way in which reading or writing tensors can fail.

use std::{io, path::PathBuf};

use crate::Dtype;
use crate::gguf::{GgufFault, TensorType};

/// Why tensors could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightError {
    /// The operating system refused.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was attempted, as a verb: `read`, `create`.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// A directory without any weights that can be read.
    #[error("no weights in `{}`: expected `model.safetensors` or `model.safetensors.index.json`{}", path.display(), pickle_hint(pickles))]
    NoWeights {
        /// The directory.
        path: PathBuf,
        /// PyTorch pickles lying there instead.
        pickles: Vec<String>,
    },

    /// Several safetensors files and no index that says how they belong together.
    #[error("several safetensors files in `{}` and no `model.safetensors.index.json` that joins them: {}", path.display(), list(files))]
    Unindexed {
        /// The directory.
        path: PathBuf,
        /// The files found.
        files: Vec<String>,
    },

    /// A file too short to hold even the length of its header.
    #[error("`{}` is {found} bytes long; a safetensors file begins with an 8-byte header length", path.display())]
    HeaderAbsent {
        /// The file.
        path: PathBuf,
        /// Its length.
        found: u64,
    },

    /// A declared header length beyond what any checkpoint needs.
    #[error("`{}` declares a header of {declared} bytes, more than the limit of {limit}: not a safetensors file", path.display())]
    HeaderTooLong {
        /// The file.
        path: PathBuf,
        /// The length it declares.
        declared: u64,
        /// The longest accepted.
        limit: u64,
    },

    /// A header that runs past the end of the file.
    #[error("`{}` is truncated: it declares a header of {declared} bytes and is {found} bytes long in all", path.display())]
    HeaderTruncated {
        /// The file.
        path: PathBuf,
        /// The length it declares.
        declared: u64,
        /// Its length.
        found: u64,
    },

    /// A header that is not the JSON object it has to be.
    #[error("the header of `{}` is malformed: {reason}", path.display())]
    HeaderMalformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },

    /// An element type this program does not know.
    #[error("tensor `{tensor}` of `{}` has the unknown element type `{dtype}`", path.display())]
    UnknownDtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The type as written.
        dtype: String,
    },

    /// A tensor whose byte range disagrees with its type and shape.
    #[error("tensor `{tensor}` of `{}` is {dtype} {shape:?}, which takes {} bytes, but its range is {begin}..{end}", path.display(), bytes_of(*dtype, shape))]
    WrongExtent {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its declared type.
        dtype: Dtype,
        /// Its declared shape.
        shape: Vec<u64>,
        /// First byte of its range in the data.
        begin: u64,
        /// One past its last byte.
        end: u64,
    },

    /// Byte ranges that overlap or leave a hole.
    #[error("tensor `{tensor}` of `{}` begins at byte {found} of the data; expected {expected}, where the tensor before it ends", path.display())]
    NotContiguous {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Where the tensor before it ends.
        expected: u64,
        /// Where it begins.
        found: u64,
    },

    /// A file that does not end where its last tensor ends.
    #[error("`{}` is {}: its tensors take {expected} bytes and {found} bytes follow the header", path.display(), if found < expected { "truncated" } else { "too long" })]
    WrongLength {
        /// The file.
        path: PathBuf,
        /// Bytes the header speaks of.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },

    /// An index file that is not the JSON it has to be.
    #[error("`{}` is malformed: {reason}", path.display())]
    IndexMalformed {
        /// The index.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },

    /// A shard name in an index that leads out of the checkpoint's directory.
    #[error("`{}` places tensor `{tensor}` in `{shard}`, which is not a file name inside its directory", index.display())]
    ShardOutside {
        /// The index.
        index: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shard as written.
        shard: String,
    },

    /// A shard that an index names and that is not there.
    #[error("shard `{shard}` named by `{}` is missing ({tensors} tensors)", index.display())]
    ShardMissing {
        /// The index.
        index: PathBuf,
        /// The shard.
        shard: String,
        /// How many tensors it should hold.
        tensors: usize,
    },

    /// A tensor that is not in the shard the index names.
    #[error("`{}` places tensor `{tensor}` in `{shard}`, which does not hold it", index.display())]
    NotInShard {
        /// The index.
        index: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: String,
    },

    /// One name in two places.
    #[error("tensor `{tensor}` occurs twice: in `{first}` and in `{second}`")]
    Duplicate {
        /// The tensor.
        tensor: String,
        /// Where it was seen first.
        first: String,
        /// Where it was seen again.
        second: String,
    },

    /// A tensor that was asked for and is not there.
    #[error("no tensor `{tensor}` in {place}")]
    Missing {
        /// The tensor.
        tensor: String,
        /// Where it was looked for.
        place: String,
    },

    /// Elements that cannot become `f32` or be made from it.
    #[error("tensor `{tensor}` is {dtype}; only F32, F16, BF16 and F64 convert to and from f32")]
    UnsupportedDtype {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: Dtype,
    },

    /// Data given for a tensor that is not as long as its type and shape say.
    #[error("tensor `{tensor}` was given {found} bytes; its type and shape take {expected}")]
    WrongData {
        /// The tensor.
        tensor: String,
        /// What type and shape take.
        expected: usize,
        /// What was given.
        found: usize,
    },

    /// A sink that was told its plan twice or written to before it had one.
    #[error("`{}` was {what}", path.display())]
    WrongOrder {
        /// The file.
        path: PathBuf,
        /// What happened, as a past participle.
        what: &'static str,
    },

    /// A tensor written when another one was due.
    #[error("tensor `{found}` was written to `{}` when {} was due", path.display(), expected.as_ref().map_or_else(|| "none".to_owned(), |name| format!("`{name}`")))]
    OutOfTurn {
        /// The file.
        path: PathBuf,
        /// The tensor due, if any.
        expected: Option<String>,
        /// The tensor written.
        found: String,
    },

    /// A plan that does not hold exactly the tensors of the layout it is to be written in.
    #[error("the plan and the layout of `{}` differ: not planned {}; not laid out {}", path.display(), list(unplanned), list(extra))]
    PlanMismatch {
        /// The directory written to.
        path: PathBuf,
        /// In the layout only.
        unplanned: Vec<String>,
        /// In the plan only.
        extra: Vec<String>,
    },

    /// A sink finished before every declared tensor was written.
    #[error("`{}` was finished before {} of its tensors were written; next due: `{next}`", path.display(), missing)]
    Unfinished {
        /// The file.
        path: PathBuf,
        /// How many are missing.
        missing: usize,
        /// The first of them.
        next: String,
    },

    /// A GGUF file that is not one, or not a sound one.
    #[error("`{}` is malformed at byte {at}: {fault}", path.display())]
    GgufMalformed {
        /// The file.
        path: PathBuf,
        /// Where, from the file's beginning.
        at: u64,
        /// What is wrong there.
        fault: GgufFault,
    },

    /// Keys or tensors that no GGUF file can hold.
    #[error("`{}` cannot be written: {fault}", path.display())]
    GgufUnwritable {
        /// The file that was to be.
        path: PathBuf,
        /// What is wrong.
        fault: GgufFault,
    },

    /// A tensor whose type is known by size only.
    #[error("tensor `{tensor}` of `{}` is {ty}, which cannot be read as numbers", path.display())]
    UnreadableType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type.
        ty: TensorType,
    },

    /// A block format without an encoder or decoder here.
    #[error("numbers cannot be {what} {ty}")]
    NoBlockFormat {
        /// The type.
        ty: TensorType,
        /// What was attempted, as a participle with its preposition: `stored as`.
        what: &'static str,
    },

    /// Numbers and bytes of a block format that do not go together.
    #[error("{values} values in rows of {row} and {bytes} bytes of {ty} do not go together")]
    WrongBlocks {
        /// The type.
        ty: TensorType,
        /// Numbers given or asked for.
        values: usize,
        /// Numbers of a row.
        row: usize,
        /// Bytes given or asked for.
        bytes: usize,
    },

    /// Rows that a tensor does not have.
    #[error("tensor `{tensor}` of `{}` has {rows} rows; asked for {begin}..{end}", path.display())]
    NoSuchRows {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Rows it has.
        rows: usize,
        /// The first row asked for.
        begin: usize,
        /// One past the last row asked for.
        end: usize,
    },

    /// A file or directory that would be overwritten.
    #[error("`{}` exists already", path.display())]
    Exists {
        /// What exists.
        path: PathBuf,
    },

    /// A path that cannot be written to because it names no file, such as `/` or `..`.
    #[error("`{}` names no file or directory that can be created", path.display())]
    Nameless {
        /// The path.
        path: PathBuf,
    },
}

impl WeightError {
    /// For `map_err`: an I/O failure with what was attempted and on what.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}

/// At most eight names in backticks, then how many more.
fn list(names: &[String]) -> String {
    const SHOWN: usize = 8;
    if names.is_empty() {
        return "none".to_owned();
    }
    let mut text = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}

fn pickle_hint(pickles: &[String]) -> String {
    if pickles.is_empty() {
        String::new()
    } else {
        format!(
            "; {} are PyTorch pickles, which are not read: save the model again with `safe_serialization=True`",
            list(pickles)
        )
    }
}

fn bytes_of(dtype: Dtype, shape: &[u64]) -> String {
    shape
        .iter()
        .try_fold(dtype.size() as u64, |product, &extent| product.checked_mul(extent))
        .map_or_else(|| "more than 2^64".to_owned(), |bytes| bytes.to_string())
}
