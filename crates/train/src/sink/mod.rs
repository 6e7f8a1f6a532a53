//! Listeners that write files.

mod jsonl;

pub use jsonl::Jsonl;
