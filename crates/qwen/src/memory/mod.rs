//! What training takes, by formula: parameters, bytes of memory, floating-point operations.
//!
//! Everything is a pure function of the specification, so a plan can be made before anything is allocated. Activations
//! are counted as the kernels' own backwards keep them; `tests/plans.rs` holds the sums against what a run takes.

mod chunk;
mod extent;
mod fit;
mod flops;
mod kept;
mod offload;
mod passing;
mod plan;

use std::collections::{BTreeMap, BTreeSet};

pub use chunk::{FEWEST_CHUNK_TOKENS, chunk_share, chunk_sizes};
pub use extent::Extent;
pub use fit::{DEVICE_PROGRAM, OneRow, usable};
pub use flops::{FlopInput, Flops, flops};
pub use kept::{Numbers, kept_by_layer};
pub use offload::Offload;
pub use plan::{Forms, MemoryInput, MemoryPlan, plan};

use crate::{DecoderSpec, FfnSpec, HeadSpec, LayerFilter, LayerSpec, LoraTargets, Role, Switches, TensorSpec};

/// Numbers of the model's own weights.
pub fn parameters(inventory: &[TensorSpec]) -> u64 {
    inventory.iter().map(TensorSpec::elements).sum()
}

/// Numbers of the weights in matrix products that run for a token: linear layers, the experts it goes through, and head;
/// not the look-up of embeddings.
pub fn product_parameters(spec: &DecoderSpec, inventory: &[TensorSpec]) -> u64 {
    inventory.iter().map(|tensor| product_numbers(spec, tensor)).sum::<u64>() + head_parameters(spec)
}

/// Numbers of a tensor that a token is multiplied with, the head left out.
fn product_numbers(spec: &DecoderSpec, tensor: &TensorSpec) -> u64 {
    if tensor.matrices().is_none() {
        return 0;
    }
    let (active, all) = ways(tensor.layer.map(|layer| &spec.layers[layer]), tensor);
    tensor.elements() / all * active
}

/// Numbers of the model that take part in the forward pass of one token.
pub fn active_parameters(spec: &DecoderSpec, inventory: &[TensorSpec]) -> u64 {
    let idle = |tensor: &TensorSpec| match tensor.role {
        Role::Experts => tensor.elements() - product_numbers(spec, tensor),
        _ => 0,
    };
    inventory.iter().map(|tensor| tensor.elements() - idle(tensor)).sum()
}

/// Numbers of the head's matrix, its own or the embedding's.
pub fn head_parameters(spec: &DecoderSpec) -> u64 {
    spec.vocab_size as u64 * spec.hidden_size as u64
}

/// What is trained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Learned {
    /// Adapters, and tensors of the base beside them.
    Adapters {
        /// Ranks of the adapters by module path, as the inventory has it.
        ranks: BTreeMap<String, usize>,
        /// Tensors of the base that are trained whole, by inventory name.
        whole: BTreeSet<String>,
    },
    /// Tensors of the base, by inventory name.
    Base(BTreeSet<String>),
}

impl Learned {
    /// Nothing is trained.
    pub fn nothing() -> Self {
        Self::Base(BTreeSet::new())
    }

    /// Adapters of one rank where a recipe that names no targets has them.
    pub fn adapters(inventory: &[TensorSpec], rank: usize) -> Self {
        let modules = LoraTargets::default()
            .resolve(Switches::default(), inventory, &LayerFilter::All)
            .expect("invariant: every decoder has linear layers");
        Self::Adapters { ranks: modules.into_iter().map(|module| (module, rank)).collect(), whole: BTreeSet::new() }
    }

    /// Trained numbers that belong to a tensor: of its adapter, or its own.
    pub fn numbers_of(&self, tensor: &TensorSpec) -> u64 {
        if self.is_base(tensor) { tensor.elements() } else { self.rank_of(tensor) * widths(tensor) }
    }

    /// The trained tensors that belong to a tensor: A and B of its adapter, or itself.
    fn shapes_of(&self, tensor: &TensorSpec) -> Vec<Vec<usize>> {
        if self.is_base(tensor) {
            return vec![tensor.shape.clone()];
        }
        match (self.rank_of(tensor) as usize, tensor.matrices()) {
            (0, _) | (_, None) => Vec::new(),
            (rank, Some(all)) => vec![vec![all.count, rank, all.columns], vec![all.count, all.rows, rank]],
        }
    }

    /// Bytes of values and moments of what is trained.
    fn held(&self, inventory: &[TensorSpec], formats: Formats) -> u64 {
        let of_tensor = |tensor: &TensorSpec| -> u64 {
            let is_narrow = self.is_base(tensor) && formats.narrow_values && tensor.is_product_matrix();
            let of_shape = |shape: Vec<usize>| {
                let numbers = shape.iter().product::<usize>() as u64;
                let moments = match formats.coded_moments && has_coded_moments(&shape) {
                    true => 2 * (numbers + 4 * numbers.div_ceil(CODE_BLOCK)),
                    false => 2 * 4 * numbers,
                };
                numbers * if is_narrow { 2 } else { 4 } + moments
            };
            self.shapes_of(tensor).into_iter().map(of_shape).sum()
        };
        inventory.iter().map(of_tensor).sum()
    }

    /// All trained numbers.
    pub fn numbers(&self, inventory: &[TensorSpec]) -> u64 {
        inventory.iter().map(|tensor| self.numbers_of(tensor)).sum()
    }

    /// Whether a tensor of the base learns itself.
    pub fn is_base(&self, tensor: &TensorSpec) -> bool {
        let (Self::Base(names) | Self::Adapters { whole: names, .. }) = self;
        names.contains(&tensor.name)
    }

    /// Numbers between A and B of a token's way through a tensor's adapter: its rank, for each expert that the token goes
    /// through.
    fn middles_of(&self, spec: &LayerSpec, tensor: &TensorSpec) -> u64 {
        self.rank_of(tensor) * ways(Some(spec), tensor).0
    }

    /// Rank of a tensor's adapter; 0 without one.
    fn rank_of(&self, tensor: &TensorSpec) -> u64 {
        match (self, &tensor.module) {
            (Self::Adapters { ranks, .. }, Some(module)) => ranks.get(module).map_or(0, |rank| *rank as u64),
            _ => 0,
        }
    }

    /// Numbers of adapters that a token is multiplied with.
    fn adapter_products(&self, spec: &DecoderSpec, inventory: &[TensorSpec]) -> u64 {
        let part = |tensor: &TensorSpec| {
            let (active, all) = ways(tensor.layer.map(|layer| &spec.layers[layer]), tensor);
            if self.is_base(tensor) { 0 } else { self.numbers_of(tensor) / all * active }
        };
        match self {
            Self::Adapters { .. } => inventory.iter().map(part).sum(),
            Self::Base(_) => 0,
        }
    }
}

/// How what is trained is held from update to update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Formats {
    /// Moments as 8-bit codes, where [`has_coded_moments`].
    pub coded_moments: bool,
    /// Matrices of the base in bf16.
    pub narrow_values: bool,
}

/// Numbers that share the scale of their codes.
const CODE_BLOCK: u64 = 256;

/// Whether an optimizer with 8-bit moments has codes for a tensor of this shape: a matrix of 4096 numbers or more. What is
/// smaller costs nothing in f32, as bitsandbytes and torchao have it; vectors scale whole channels, and their gradients are
/// of very different sizes.
pub fn has_coded_moments(shape: &[usize]) -> bool {
    shape.len() > 1 && shape.iter().product::<usize>() >= 4096
}

/// How much of the forward pass is kept for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Layers, counted from the top, whose activations are kept; those below keep one residual and are run again. All
    /// of them is `recompute = "none"`, zero is `recompute = "all"`.
    pub layers: usize,
}

/// Bytes of the frozen weights, by where they are used.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WeightBytes {
    /// The embedding's.
    pub embedding: u64,
    /// Each layer's.
    pub layers: Vec<u64>,
    /// The final norm's and the head's own.
    pub rest: u64,
}

impl WeightBytes {
    /// Of an inventory, each of whose tensors takes so many bytes; those that learn are not frozen.
    pub fn of(inventory: &[TensorSpec], learned: &Learned, bytes: impl Fn(&TensorSpec) -> u64) -> Self {
        let mut sum = Self::default();
        for tensor in inventory.iter().filter(|tensor| !learned.is_base(tensor)) {
            let place = match (tensor.layer, tensor.role) {
                (Some(layer), _) => {
                    let layers = sum.layers.len().max(layer + 1);
                    sum.layers.resize(layers, 0);
                    &mut sum.layers[layer]
                }
                (None, Role::Embedding) => &mut sum.embedding,
                (None, _) => &mut sum.rest,
            };
            *place += bytes(tensor);
        }
        sum
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.embedding + self.layers.iter().sum::<u64>() + self.rest
    }

    /// Those on the device at a time: of weights that wait elsewhere, one layer's.
    fn on_device(&self, spec: &DecoderSpec, offload: Offload) -> u64 {
        let embedding = if offload >= Offload::Embedding && spec.head == HeadSpec::Own { 0 } else { self.embedding };
        let layers = if offload >= Offload::Weights {
            self.layers.iter().copied().max().unwrap_or(0)
        } else {
            self.layers.iter().sum()
        };
        embedding + layers + self.rest
    }
}

fn is_head(spec: &DecoderSpec, tensor: &TensorSpec) -> bool {
    match spec.head {
        HeadSpec::Tied => tensor.role == Role::Embedding,
        HeadSpec::Own => tensor.role == Role::Head,
    }
}

/// The lowest layer with anything trained in it or below it; `None` if only what lies above the layers is trained.
fn lowest_trained(inventory: &[TensorSpec], learned: &Learned) -> Option<usize> {
    let trained = inventory.iter().filter(|tensor| learned.numbers_of(tensor) > 0);
    trained.filter_map(|tensor| if tensor.role == Role::Embedding { Some(0) } else { tensor.layer }).min()
}

/// Rows and columns of all matrices of a tensor together.
fn widths(tensor: &TensorSpec) -> u64 {
    tensor.matrices().map_or(0, |all| all.count as u64 * (all.rows + all.columns) as u64)
}

/// Of the matrices of a tensor, how many a token is multiplied with, and how many there are.
fn ways(layer: Option<&LayerSpec>, tensor: &TensorSpec) -> (u64, u64) {
    match (tensor.role, layer.map(|layer| &layer.ffn)) {
        (Role::Experts, Some(FfnSpec::Sparse(sparse))) => (sparse.active as u64, sparse.experts as u64),
        _ => (1, 1),
    }
}

#[cfg(test)]
mod tests;
