//! The `[[export]]` section of a recipe.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ExportError;
use crate::gguf::{GgufError, Quant};

/// One thing to write when training has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportConfig {
    /// What to write: `"merged"` (a model directory like the base), `"adapter"` (a PEFT directory), `"gguf"` or
    /// `"adapter-gguf"`.
    pub to: ExportKind,
    /// For GGUF: the files to write, one a type: `f32`, `f16`, `bf16`, `q8_0`, `q6_k`, `q5_k_m`, `q5_k_s`, `q5_1`, `q5_0`,
    /// `q4_k_m`, `q4_k_s`, `q4_1`, `q4_0`, `iq4_nl`, `mxfp4_moe`. Without any, `q8_0`.
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
        f.pad(self.directory())
    }
}

impl ExportKind {
    /// Its name, and that of its directory below `export/` of a run.
    pub fn directory(self) -> &'static str {
        match self {
            ExportKind::Merged => "merged",
            ExportKind::Adapter => "adapter",
            ExportKind::Gguf => "gguf",
            ExportKind::AdapterGguf => "adapter-gguf",
        }
    }
}

impl ExportConfig {
    /// This form, with the other settings at their defaults.
    pub fn new(to: ExportKind) -> Self {
        Self { to, quant: Vec::new(), verify: true }
    }

    /// Refuses settings that would have no effect, and types that are none.
    pub fn check(&self) -> Result<(), ExportError> {
        if self.to != ExportKind::Gguf && !self.quant.is_empty() {
            return Err(ExportError::QuantIgnored { to: self.to });
        }
        self.quants().map(drop)
    }

    /// The GGUF files to write, each type once.
    pub fn quants(&self) -> Result<Vec<Quant>, ExportError> {
        let mut quants = Vec::new();
        for name in &self.quant {
            let quant = name.parse().map_err(|error: GgufError| ExportError::Quant { reason: error.to_string() })?;
            if !quants.contains(&quant) {
                quants.push(quant);
            }
        }
        if quants.is_empty() {
            quants.push(Quant::Q8_0);
        }
        Ok(quants)
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
    fn types_are_for_gguf_and_have_to_be_known() {
        let config = read(r#"{"to":"gguf","quant":["q8_0","Q4_K_M","q8_0"]}"#).unwrap();
        assert_eq!(config.quants().unwrap(), [Quant::Q8_0, Quant::Q4_K_M]);
        let config = read(r#"{"to":"gguf","quant":["q4_k"]}"#).unwrap();
        assert!(config.check().unwrap_err().to_string().contains("q4_k"));
        let config = read(r#"{"to":"merged","quant":["q8_0"]}"#).unwrap();
        assert_eq!(config.check().unwrap_err().to_string(), "`quant` has no effect on an export to `merged`");
    }
}
