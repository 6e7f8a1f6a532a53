//! Every way in which a model directory can be unusable.

use std::path::{Path, PathBuf};

use qwen_tune_weights::{Dtype, WeightError};

use crate::{ConfigError, gguf::GgufError};

/// Why a model directory cannot be used, or one thing that is wrong with it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// Nothing there.
    #[error("no model at `{}`: there is no such directory{}", path.display(), hub_hint(path))]
    NotFound {
        /// The path.
        path: PathBuf,
    },

    /// Something else there.
    #[error("`{}` is not a directory; expected one with `config.json` and safetensors files, or a GGUF file", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },

    /// A directory without a configuration.
    #[error("`{}` is not a model directory: it has no `config.json`", path.display())]
    NoConfig {
        /// The directory.
        path: PathBuf,
    },

    /// A configuration file that is no JSON.
    #[error("`{}` is malformed: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },

    /// A configuration that describes nothing that can be run.
    #[error("`{}`: {source}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ConfigError,
    },

    /// A GGUF file that cannot be used.
    #[error(transparent)]
    Gguf(Box<GgufError>),

    /// A GGUF file with a tokenizer that is not read from such files.
    #[error("{reason}; put the model's own `tokenizer.json` beside it")]
    NoTokenizer {
        /// What stands in the way.
        reason: String,
    },

    /// Weights that cannot be opened.
    #[error(transparent)]
    Weights(#[from] WeightError),

    /// A checkpoint without an embedding where one is looked for.
    #[error(
        "no `embed_tokens.weight` in the checkpoint: looked for it after {}{}",
        quoted(prefixes),
        found_instead(found)
    )]
    NoEmbedding {
        /// The prefixes tried.
        prefixes: Vec<String>,
        /// Names of tensors that look like an embedding.
        found: Vec<String>,
    },

    /// Two language models in one checkpoint.
    #[error("the checkpoint holds several embeddings: {}", quoted(found))]
    SeveralEmbeddings {
        /// Their names.
        found: Vec<String>,
    },

    /// A head that is neither stored nor tied.
    #[error("tensor `{tensor}` is missing, and `tie_word_embeddings` is not true in config.json")]
    NoHead {
        /// The name looked for.
        tensor: String,
    },

    /// A tensor the configuration calls for.
    #[error("tensor `{tensor}` {expected:?} is missing")]
    Missing {
        /// The name looked for.
        tensor: String,
        /// The shape it would have.
        expected: Vec<usize>,
    },

    /// A tensor the configuration does not call for, in a place where it would change the result.
    #[error("tensor `{tensor}` {found:?} is not part of the model that config.json describes")]
    Unexpected {
        /// Its name.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
    },

    /// A tensor of another shape.
    #[error("tensor `{tensor}` has shape {found:?}; config.json calls for {expected:?}")]
    WrongShape {
        /// Its name.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape called for.
        expected: Vec<usize>,
    },

    /// A tensor of a type that weights cannot have here.
    #[error("tensor `{tensor}` is {found}; weights are read as F32, F16, BF16 or F64")]
    WrongDtype {
        /// Its name.
        tensor: String,
        /// Its type.
        found: Dtype,
    },
}

/// For a path that looks like `owner/name`.
fn hub_hint(path: &Path) -> String {
    let text = path.to_string_lossy();
    let is_hub_id = path.is_relative()
        && path.components().count() == 2
        && !text.contains("..")
        && !text.starts_with('.')
        && !text.ends_with('/');
    match path.file_name() {
        Some(name) if is_hub_id => format!(
            "; to use the hub's `{text}`, download it first: `hf download {text} --local-dir {}`",
            name.to_string_lossy()
        ),
        _ => String::new(),
    }
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn found_instead(found: &[String]) -> String {
    if found.is_empty() { String::new() } else { format!("; found {}", quoted(found)) }
}
