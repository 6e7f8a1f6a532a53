//! Every way in which an adapter directory can be wrong.

use std::path::PathBuf;

use crate::WeightError;

/// Why an adapter could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// Files or tensors, whatever they mean.
    #[error(transparent)]
    Weights(#[from] WeightError),

    /// A directory that is no adapter.
    #[error("`{}` is not an adapter directory: it has no `{missing}`{}", path.display(), hint.as_deref().unwrap_or(""))]
    NotAnAdapter {
        /// The directory.
        path: PathBuf,
        /// The file that is not there.
        missing: &'static str,
        /// What to do about it.
        hint: Option<String>,
    },

    /// An `adapter_config.json` that cannot be understood.
    #[error("`{}` is malformed: {reason}", path.display())]
    ConfigMalformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },

    /// A setting this program does not implement.
    #[error("`{}` sets `{key}` to {value}, which is not supported: {reason}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The setting.
        key: String,
        /// Its value as JSON.
        value: String,
        /// Why, or what would be needed.
        reason: &'static str,
    },

    /// A key of `rank_pattern` or `alpha_pattern` that is no regular expression.
    #[error("`{key}` has the key `{pattern}`, which is not a regular expression this program understands: {reason}")]
    Pattern {
        /// Which of the two.
        key: &'static str,
        /// The key.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },

    /// A tensor that belongs to no form of adapter known here.
    #[error("tensor `{tensor}` of `{}` is not supported: {reason}", path.display())]
    UnsupportedTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What it is.
        reason: &'static str,
    },

    /// One half of a pair without the other.
    #[error("module `{module}` has `{present}` and no `{absent}`")]
    Unpaired {
        /// The module.
        module: String,
        /// The half there is.
        present: &'static str,
        /// The half there is not.
        absent: &'static str,
    },

    /// A half that is no matrix.
    #[error("tensor `{tensor}` has shape {found:?}; expected {expected}")]
    WrongShape {
        /// The tensor.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// The form it should have.
        expected: &'static str,
    },

    /// Ranks that disagree.
    #[error(
        "module `{module}`: `adapter_config.json` gives rank {config}, `lora_A` has {a} rows and `lora_B` {b} columns"
    )]
    WrongRank {
        /// The module.
        module: String,
        /// Rank by the configuration, patterns applied.
        config: usize,
        /// Rows of A.
        a: usize,
        /// Columns of B.
        b: usize,
    },

    /// Adapters of single experts that do not make one of all.
    #[error("the adapter of `{module}` is incomplete: {reason}")]
    Experts {
        /// The tensor with the matrices of all experts.
        module: String,
        /// What is missing.
        reason: String,
    },

    /// A pair to be written whose scale is not what readers of the configuration will compute.
    #[error("module `{module}` was trained with scale {found}, but its configuration gives {config}")]
    WrongScale {
        /// The module.
        module: String,
        /// Scale by the configuration.
        config: f32,
        /// Scale of the pair.
        found: f32,
    },

    /// A file without any pair.
    #[error("`{}` adapts nothing: it holds no `lora_A` and `lora_B` tensors", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}
