//! Writing a trained model out: as one merged checkpoint, or as an adapter beside its base.
//!
//! Exports are streams from file to file: one tensor in memory at a time, no device, no model built.

mod adapter;
mod config;
mod error;
mod merge;

pub use adapter::{adapter_config, fit_adapter, fit_config, save_adapter};
pub use config::{ExportConfig, ExportKind};
pub use error::ExportError;
pub use merge::{Change, Merged, merge, merge_into};

#[cfg(test)]
mod tests;
