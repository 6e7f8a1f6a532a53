//! Every way in which a `config.json` can be unusable.

use std::fmt;

/// Why a configuration gives no specification.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Not even an object.
    #[error("the configuration is not a JSON object")]
    NotAnObject,

    /// An object that does not say what it configures.
    #[error("the configuration has no `model_type`")]
    NoModelType,

    /// A kind of model nobody here has heard of.
    #[error("unknown `model_type` `{model_type}`{}; supported: {}", did_you_mean(near), quoted(supported))]
    UnknownModelType {
        /// As written.
        model_type: String,
        /// Known names that look like it.
        near: Vec<String>,
        /// Names that can be run.
        supported: Vec<String>,
    },

    /// A kind of model that is known and cannot be run yet.
    #[error("`model_type` `{model_type}` is not supported: {reason}")]
    NotYet {
        /// As written.
        model_type: String,
        /// What is missing.
        reason: &'static str,
    },

    /// Weights stored in a form that needs more than their bytes.
    #[error(
        "the weights are quantised with `{method}`, which is not read: take the checkpoint in f32, f16 or bf16 instead"
    )]
    Quantized {
        /// The method's name.
        method: String,
    },

    /// Fields that are absent or cannot be used.
    #[error("the configuration of this `{model_type}` model cannot be used:{}", lines(faults))]
    Fields {
        /// Which family read them.
        model_type: String,
        /// Each fault.
        faults: Vec<FieldFault>,
    },
}

/// What is wrong with one field.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FieldFault {
    /// A structural field that is not there.
    #[error("`{field}` is missing")]
    Missing {
        /// The field.
        field: &'static str,
    },

    /// A value of the wrong type or out of range.
    #[error("`{field}` is {found}; expected {expected}")]
    Invalid {
        /// The field, dotted when nested.
        field: String,
        /// Its value as JSON.
        found: String,
        /// What would do.
        expected: String,
    },

    /// A value that is fine and not supported.
    #[error("`{field}` is {found}, which is not supported: {reason}")]
    Unsupported {
        /// The field, dotted when nested.
        field: String,
        /// Its value as JSON.
        found: String,
        /// Why, or what is.
        reason: String,
    },

    /// Two numbers of which one should divide the other.
    #[error("`{field}` is {value}, which `{by}` = {divisor} does not divide")]
    NotDivisible {
        /// The field that should be a multiple.
        field: &'static str,
        /// Its value.
        value: usize,
        /// The field that should divide it.
        by: &'static str,
        /// Its value.
        divisor: usize,
    },

    /// A list of the wrong length.
    #[error("`{field}` has {found} entries; expected {expected}, one a layer")]
    WrongCount {
        /// The field.
        field: &'static str,
        /// Entries there are.
        found: usize,
        /// Entries there should be.
        expected: usize,
    },

    /// Layers with a window whose width is given nowhere.
    #[error("layer {layer} is `sliding_attention`, but no window is in force (`use_sliding_window`, `sliding_window`)")]
    NoWindow {
        /// The first of them.
        layer: usize,
    },
}

fn did_you_mean(near: &[String]) -> String {
    if near.is_empty() {
        return String::new();
    }
    format!("; did you mean {}?", quoted(near).replace("`, `", "` or `"))
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn lines<T: fmt::Display>(faults: &[T]) -> String {
    match faults {
        [only] => format!(" {only}"),
        several => several.iter().map(|fault| format!("\n  {fault}")).collect(),
    }
}
