//! [`GgufError`]: every way in which a model cannot become a GGUF file, or a file a model.

use std::path::PathBuf;

use qwen_tune_weights::{WeightError, peft::AdapterError};

use crate::{ConfigError, ExportError};

/// Why a GGUF file cannot be written or used, or one thing that is wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// A kind of model that no architecture stands for.
    #[error("models of type `{model_type}` have no architecture in GGUF files that is known here")]
    NoArchitecture {
        /// `model_type` of its configuration.
        model_type: String,
    },

    /// Something that a file of the model's architecture has no way to say.
    #[error("the model has {what}, which a GGUF file of architecture `{architecture}` cannot say")]
    Inexpressible {
        /// The architecture.
        architecture: &'static str,
        /// What it is.
        what: String,
    },

    /// A quantisation that is none, or cannot be written.
    #[error("unknown quantisation `{found}`{}; known: `{}`", near_hint(near), known.join("`, `"))]
    UnknownQuant {
        /// As written.
        found: String,
        /// Names that look like it.
        near: Vec<String>,
        /// Every name.
        known: Vec<&'static str>,
    },

    /// A tokenizer file that is not there.
    #[error("`{}` is missing: a GGUF file holds the tokenizer too", path.display())]
    NoTokenizer {
        /// Where it was looked for.
        path: PathBuf,
    },

    /// A tokenizer file that cannot be used.
    #[error("`{}`: {reason}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },

    /// Numbers that are not finite.
    #[error("tensor `{tensor}` holds a number that is not finite; no quantised file could hold it")]
    NotFinite {
        /// The model's tensor.
        tensor: String,
    },

    /// A file that is not what was written down.
    #[error("`{}` differs from what was to be written: {what}", path.display())]
    Differs {
        /// The file.
        path: PathBuf,
        /// What differs.
        what: String,
    },

    /// What an adapter holds beyond pairs of factors.
    #[error(
        "the adapter has {what}, which an adapter in GGUF cannot hold; export the merged model instead (`--to gguf`)"
    )]
    NotAnAdapter {
        /// What it is.
        what: String,
    },

    /// A key that a file has to have.
    #[error("`{}` has no key `{key}`", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },

    /// An architecture that is not known here.
    #[error("`{}` is of architecture `{found}`{}; known: `{}`", path.display(), near_hint(near), known.join("`, `"))]
    UnknownArchitecture {
        /// The file.
        path: PathBuf,
        /// The architecture.
        found: String,
        /// Names that look like it.
        near: Vec<String>,
        /// Every name.
        known: Vec<&'static str>,
    },

    /// Keys that describe nothing that can be run.
    #[error("the keys of `{}`, read as a config.json: {source}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ConfigError,
    },

    /// Keys that call for more numbers than there are.
    #[error("the keys of `{}` call for {expected} numbers and its tensors hold {found}", path.display())]
    TooSmall {
        /// The file.
        path: PathBuf,
        /// How many the keys call for.
        expected: u64,
        /// How many there are.
        found: u64,
    },

    /// Rotary factors that come from no known scaling.
    #[error("`{tensor}` of `{}` holds factors of rotary frequencies that are not those of Llama 3's scaling", path.display())]
    WrongFactors {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: &'static str,
    },

    /// A key with a value that cannot be used.
    #[error("`{}` has {found} for key `{key}`; expected {expected}", path.display())]
    WrongKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What it should be.
        expected: String,
    },

    /// A tensor that a file has to have.
    #[error("`{}` has no tensor `{tensor}` {expected:?}", path.display())]
    NoTensor {
        /// The file.
        path: PathBuf,
        /// Its name.
        tensor: String,
        /// Its shape.
        expected: Vec<usize>,
    },

    /// A tensor of another shape.
    #[error("tensor `{tensor}` of `{}` has shape {found:?}; its keys call for {expected:?}", path.display())]
    WrongShape {
        /// The file.
        path: PathBuf,
        /// Its name.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape called for.
        expected: Vec<usize>,
    },

    /// A tensor that the model does not have, in a place where it would change the result.
    #[error("tensor `{tensor}` of `{}` is not part of the model that its keys describe", path.display())]
    UnexpectedTensor {
        /// The file.
        path: PathBuf,
        /// Its name.
        tensor: String,
    },

    /// A change that does not fit its base.
    #[error(transparent)]
    Change(#[from] ExportError),

    /// An adapter that cannot be read.
    #[error(transparent)]
    Adapter(#[from] AdapterError),

    /// Files that cannot be read or written.
    #[error(transparent)]
    Weights(#[from] WeightError),
}

fn near_hint(near: &[String]) -> String {
    near.first().map_or_else(String::new, |name| format!(", did you mean `{name}`?"))
}
