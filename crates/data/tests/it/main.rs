//! The crate from the outside: files on disk to steps of batches.
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value, missing_docs)]

mod audit;
mod encoding;
mod files;
mod fixture;
mod stream;
mod templates;
