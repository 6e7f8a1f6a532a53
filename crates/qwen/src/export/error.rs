//! Every way in which an export can fail.

use qwen_tune_weights::{WeightError, peft::AdapterError};

use super::ExportKind;
use crate::Matrices;

/// Why an export failed, or one thing that is wrong with what was to be exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// A type of GGUF files that is none.
    #[error("{reason}")]
    Quant {
        /// What was found, and what there is.
        reason: String,
    },

    /// A setting without effect.
    #[error("`quant` has no effect on an export to `{to}`")]
    QuantIgnored {
        /// The form.
        to: ExportKind,
    },

    /// Files that cannot be read or written.
    #[error(transparent)]
    Weights(#[from] WeightError),

    /// An adapter that cannot be written.
    #[error(transparent)]
    Adapter(#[from] AdapterError),

    /// An adapted module the base does not have.
    #[error("the adapter has module `{module}`, which this base does not have{}", near_hint(near))]
    UnknownModule {
        /// The module as the adapter names it.
        module: String,
        /// Names that look like it.
        near: Vec<String>,
    },

    /// An adapted module of another shape.
    #[error("the adapter of `{module}` is {adapter} (out, in); the base has {base}")]
    WrongModuleShape {
        /// The module.
        module: String,
        /// Its rows and columns.
        adapter: Matrices,
        /// Those of the base's weight.
        base: Matrices,
    },

    /// Factors whose lengths are not what their shape says.
    #[error("the adapter of `{module}` holds {a} and {b} numbers; its shapes take {expected_a} and {expected_b}")]
    WrongModuleData {
        /// The module.
        module: String,
        /// Length of A.
        a: usize,
        /// Length of B.
        b: usize,
        /// `rank * in_features`.
        expected_a: usize,
        /// `out_features * rank`.
        expected_b: usize,
    },

    /// A trained tensor the base does not have.
    #[error("tensor `{tensor}` was trained, but this base does not have it{}", near_hint(near))]
    UnknownTensor {
        /// Its name.
        tensor: String,
        /// Names that look like it.
        near: Vec<String>,
    },

    /// A trained tensor of another shape.
    #[error("tensor `{tensor}` was trained as {found:?}; the base has {base:?}")]
    WrongTensorShape {
        /// Its name.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// Shape of the base's.
        base: Vec<usize>,
    },

    /// A head and an embedding that are one tensor in the base and two in the adapter.
    #[error(
        "the base's head is its embedding (tied), but the adapter {}; merge it with PEFT into a base that is not tied",
        match alone {
            Some(module) => format!("trains `{module}` alone"),
            None => "trains them apart".to_owned(),
        }
    )]
    Untied {
        /// The one that was trained, or both with different values.
        alone: Option<&'static str>,
    },

    /// Two changes of one tensor.
    #[error("tensor `{tensor}` would be changed twice")]
    ChangedTwice {
        /// Its name in the base.
        tensor: String,
    },
}

fn near_hint(near: &[String]) -> String {
    if near.is_empty() {
        return String::new();
    }
    let names: Vec<String> = near.iter().map(|name| format!("`{name}`")).collect();
    format!("; it has {}", names.join(", "))
}
