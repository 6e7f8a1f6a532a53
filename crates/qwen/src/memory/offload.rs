//! What waits in host memory for its turn on the device.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a run keeps in host memory instead of its device's. Each takes in those before it; no result changes by it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Offload {
    /// Nothing.
    #[default]
    None,
    /// The embedding, where the head has a matrix of its own: a step takes the rows of its tokens. Costs next to nothing.
    Embedding,
    /// Inputs of blocks that run again in the backward, too: two of them are on the device at a time.
    Inputs,
    /// Frozen weights of the blocks, too, which are brought for each use: slow where a batch is small. On a CPU those of
    /// them that lie in mapped files, which leave memory when a block has run.
    Weights,
}

impl Offload {
    /// All, from the least to the most.
    pub const ALL: [Self; 4] = [Self::None, Self::Embedding, Self::Inputs, Self::Weights];

    /// As a recipe has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Embedding => "embedding",
            Self::Inputs => "inputs",
            Self::Weights => "weights",
        }
    }
}
