//! What all of the compiler's targets have in common.

pub mod lowered_features;
