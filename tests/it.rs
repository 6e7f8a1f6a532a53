//! Integration tests: one binary, so that the heavy dependencies are linked once.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod architecture;
mod cards;
mod cli;
mod clients;
mod equivalence;
mod golden;
mod hostile;
mod made_model;
mod parity;
mod plans;
mod runs;
