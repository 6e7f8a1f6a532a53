//! LoRA adapters in the directories that PEFT reads and writes.
//!
//! `adapter_config.json` says rank and scale, `adapter_model.safetensors` holds `lora_A [r, in]` and `lora_B [out, r]`
//! for each adapted module. What a key of the configuration asks for and this program does not do is refused by name:
//! an adapter applied wrongly is worse than one not applied.

mod adapter;
mod config;
mod error;
mod experts;
mod key;
mod pattern;

pub use adapter::{Adapter, CONFIG_FILE, FullTensor, LoraPair, WEIGHTS_FILE};
pub use config::{AdapterConfig, Scaling, TargetModules};
pub use error::AdapterError;
pub use pattern::Patterns;

#[cfg(test)]
mod tests;
