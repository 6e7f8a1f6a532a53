//! [`KeyLayout`]: the class of transformers whose module paths an adapter is written in.
//!
//! A base whose configuration has a `text_config` is loaded by two classes, in which the same decoder lies at different
//! paths. The names of its tensors do not tell them apart: transformers saves the text class of such a model with a flat
//! configuration and the other class's tensor names.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::verify::{HEAD_MODULE, PREFIXES};
use crate::family;

/// The class whose module paths an adapter is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeyLayout {
    /// `...ForCausalLM`: `model.layers.0`.
    Text,
    /// `...ForConditionalGeneration`: `model.language_model.layers.0`.
    Multimodal,
}

impl KeyLayout {
    /// As a recipe writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Multimodal => "multimodal",
        }
    }

    /// The path of a module of the inventory: `layers.0.self_attn.q_proj` to `model.layers.0.self_attn.q_proj`. The head
    /// lies outside the decoder in both classes.
    pub fn path(self, module: &str) -> String {
        match self {
            _ if module == HEAD_MODULE => module.to_owned(),
            Self::Text => format!("model.{module}"),
            Self::Multimodal => format!("model.language_model.{module}"),
        }
    }

    /// The layouts of the classes that load a configuration, and which of them the directory's own class has.
    pub(super) fn of(config: &Value, prefix: &str) -> (&'static [KeyLayout], KeyLayout) {
        if !family::is_nested(config) {
            return (&[Self::Text], Self::Text);
        }
        let class = config["architectures"][0].as_str().unwrap_or_default();
        let own = match class {
            _ if class.ends_with("ForConditionalGeneration") => Self::Multimodal,
            _ if class.ends_with("ForCausalLM") => Self::Text,
            // Without a word on the class, its tensors' names.
            _ if prefix.contains("language_model") => Self::Multimodal,
            _ => Self::Text,
        };
        (&[Self::Text, Self::Multimodal], own)
    }
}

/// A module's name in the inventory from its path in any class.
pub fn module_name(path: &str) -> &str {
    PREFIXES.iter().find_map(|prefix| path.strip_prefix(prefix)).unwrap_or(path)
}
