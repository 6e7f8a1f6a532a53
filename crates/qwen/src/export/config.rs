//! The `[[export]]` section of a recipe.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ExportError;

/// One thing to write when training has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportConfig {
    /// What to write: `"merged"` (a model directory like the base), `"adapter"` (a PEFT directory), `"gguf"` or
    /// `"adapter-gguf"`.
    pub to: ExportKind,
    /// For GGUF: the quantisations to write, such as `["q8_0", "q4_k_m"]`.
    #[serde(default)]
    pub quant: Vec<String>,
    /// Read the export back and compare it with the trained model before the run counts as done.
    #[serde(default = "yes")]
    pub verify: bool,
}

fn yes() -> bool {
    true
}

/// The forms a trained model can be written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ExportKind {
    /// A model directory like the base, with the adapter merged into its weights.
    Merged,
    /// A PEFT adapter directory.
    Adapter,
    /// GGUF files of the merged model.
    Gguf,
    /// A GGUF file of the adapter alone.
    AdapterGguf,
}

impl fmt::Display for ExportKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            ExportKind::Merged => "merged",
            ExportKind::Adapter => "adapter",
            ExportKind::Gguf => "gguf",
            ExportKind::AdapterGguf => "adapter-gguf",
        })
    }
}

impl ExportConfig {
    /// This form, with the other settings at their defaults.
    pub fn new(to: ExportKind) -> Self {
        Self { to, quant: Vec::new(), verify: true }
    }

    /// Refuses what cannot be written yet, and settings that would have no effect.
    pub fn check(&self) -> Result<(), ExportError> {
        match self.to {
            ExportKind::Gguf | ExportKind::AdapterGguf => Err(ExportError::NotYet { to: self.to }),
            ExportKind::Merged | ExportKind::Adapter if !self.quant.is_empty() => {
                Err(ExportError::QuantIgnored { to: self.to })
            }
            ExportKind::Merged | ExportKind::Adapter => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn read(json: &str) -> Result<ExportConfig, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_verify_and_unknown_keys_are_refused() {
        assert_eq!(read(r#"{"to":"merged"}"#), Ok(ExportConfig::new(ExportKind::Merged)));
        assert!(read(r#"{"to":"merged","quants":[]}"#).unwrap_err().starts_with("unknown field `quants`"));
        assert!(read(r#"{"to":"onnx"}"#).unwrap_err().starts_with("unknown variant `onnx`, expected one of `merged`"));
    }

    #[test]
    fn gguf_is_refused_by_name() {
        let config = read(r#"{"to":"adapter-gguf"}"#).unwrap();
        assert_eq!(config.check().unwrap_err().to_string(), "export to `adapter-gguf` is not there yet");
        let config = read(r#"{"to":"merged","quant":["q8_0"]}"#).unwrap();
        assert_eq!(config.check().unwrap_err().to_string(), "`quant` has no effect on an export to `merged`");
    }
}
