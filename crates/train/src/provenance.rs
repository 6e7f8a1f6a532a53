//! What a run was made from, kept in every checkpoint: a resumed run is held against it, not against files that anyone
//! may have edited since.

use qwen_tune_weights::lock::Lock;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Recipe, base weights and data of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// Of the recipe with nothing left to decide, the keys that a resumed run has to have too.
    pub recipe: Value,
    /// The base model's files; absent where the recipe has `model.lock = false`.
    pub base: Option<Lock>,
    /// Files of rows, training and held out, and a template beside the model's own.
    pub data: Lock,
}
