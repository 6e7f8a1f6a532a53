//! Writing a trained model out: as one merged checkpoint, or as an adapter beside its base.
//!
//! Exports are streams from file to file: some rows of one tensor in memory at a time, no device, no model built.

mod adapter;
mod config;
mod error;
mod merge;
mod rows;
mod whole;

pub use adapter::{adapter_config, check_pair, fit_adapter, save_adapter};
pub use config::{ExportConfig, ExportKind};
pub use error::ExportError;
pub use merge::{Change, Merged, merge, merge_into};
pub(crate) use rows::{MergedRows, merged_rows};
pub use whole::{modules_to_save, saved_names, whole_tensors};

#[cfg(test)]
mod tests;
