//! What training takes, by formula: parameters, bytes of memory, floating-point operations.
//!
//! Everything is a pure function of the specification, so a plan can be made before anything is allocated. Activations
//! are counted as the kernels' own backwards keep them; `tests/plans.rs` holds the sums against what a run takes.

mod fit;
mod flops;
mod kept;
mod offload;

use std::collections::{BTreeMap, BTreeSet};

pub use fit::{DEVICE_PROGRAM, OneRow, usable};
pub use flops::{FlopInput, Flops, flops};
pub use kept::{Numbers, kept_by_layer};
use kept::{Passing, kept_at_border, passing};
pub use offload::Offload;

use crate::{DecoderSpec, FfnSpec, HeadSpec, LayerSpec, Role, TensorSpec};

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

/// Tokens that a recurrence takes together; it keeps its state between these.
const CHUNK: usize = 64;

/// Columns of the logits' gradients that a product packs at a time.
const PACKED_LOGITS: u64 = 8192;

/// Rows of a frozen head whose logits exist at a time while a loss is formed, and tokens they exist for.
const HEAD_BLOCK: u64 = 4096;
const HEAD_TOKENS: u64 = 512;

/// Tokens that run in one forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Extent {
    /// Their number.
    pub tokens: u64,
    /// Borders between chunks of their sequences, at which recurrences keep their states: none in a short sequence.
    pub borders: u64,
}

impl Extent {
    /// Sequences of these lengths.
    pub fn of(lengths: impl IntoIterator<Item = usize>) -> Self {
        lengths.into_iter().fold(Self::default(), |sum, length| Self {
            tokens: sum.tokens + length as u64,
            borders: sum.borders + length.saturating_sub(1).div_euclid(CHUNK) as u64,
        })
    }
}

/// What a plan of memory depends on.
#[derive(Debug, Clone, Copy)]
pub struct MemoryInput<'a> {
    /// The model.
    pub spec: &'a DecoderSpec,
    /// Its tensors.
    pub inventory: &'a [TensorSpec],
    /// What is trained.
    pub learned: &'a Learned,
    /// How that is held.
    pub formats: Formats,
    /// Bytes of the frozen weights.
    pub weights: &'a WeightBytes,
    /// Bytes of an activation.
    pub activation_bytes: u64,
    /// The largest micro-batch.
    pub batch: Extent,
    /// Layers whose activations are kept.
    pub kept: Kept,
    /// Those of its tokens with a target, whose logits are formed.
    pub head_tokens: u64,
    /// Rows of logits that exist at a time.
    pub head_rows: u64,
    /// Tokens of the largest batch of an evaluation; 0 without one.
    pub eval_tokens: u64,
    /// Whether an update changes values and moments where they lie, instead of making new ones.
    pub update_in_place: bool,
    /// What waits in host memory.
    pub offload: Offload,
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

    /// These bytes of each layer are there for one layer at a time.
    #[must_use]
    pub fn given_back(mut self, by_layer: &[u64]) -> Self {
        for (held, given_back) in self.layers.iter_mut().zip(by_layer) {
            *held -= given_back;
        }
        self.rest += by_layer.iter().max().unwrap_or(&0);
        self
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

/// Bytes by purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryPlan {
    /// The base's frozen weights.
    pub weights: u64,
    /// Trained numbers and their two moments.
    pub trained: u64,
    /// Their gradients, f32.
    pub gradients: u64,
    /// Residuals and activations kept from the forward pass.
    pub kept: u64,
    /// What the backward of one layer takes, with its activations where it is run again.
    pub layer: u64,
    /// What the forward of a layer that is run again took. It lies between residuals, where the head finds no room; a layer that
    /// is kept gives its largest pieces back last, and the head takes them.
    pub holes: u64,
    /// Logits of one chunk, hidden states before and after the final norm with their gradient, and that of a trained head.
    pub head: u64,
    /// What an evaluation takes, without tapes.
    pub eval: u64,
    /// The update of the largest trained tensor, where it takes anything.
    pub update: u64,
    /// What waits in host memory, which is no part of the total.
    pub host: u64,
}

impl MemoryPlan {
    /// Everything that is held at the worst moment: the head's chunk and a layer's backward never live together, an
    /// evaluation and an update find no activations.
    pub fn total(&self) -> u64 {
        let step = self.gradients + (self.kept + self.layer.max(self.holes + self.head)).max(self.update);
        self.weights + self.trained + step.max(self.eval)
    }
}

/// Bytes that training needs.
pub fn plan(input: &MemoryInput<'_>) -> MemoryPlan {
    let MemoryInput { spec, inventory, learned, batch: Extent { tokens, borders }, .. } = *input;
    let hidden = spec.hidden_size as u64;
    let lowest = lowest_trained(inventory, learned);
    let size = input.activation_bytes;
    let layers: Vec<(u64, Passing)> = spec
        .layers
        .iter()
        .enumerate()
        .map(|(index, layer)| {
            let tensors: Vec<&TensorSpec> = inventory.iter().filter(|tensor| tensor.layer == Some(index)).collect();
            let kept = kept_by_layer(spec.hidden_size, layer, &tensors, learned).bytes(size);
            let states = 4 * kept_at_border(layer) * borders;
            (kept * tokens + states, passing(spec.hidden_size, layer, &tensors, learned, size))
        })
        .collect();
    let again = layers.len() - input.kept.layers.min(layers.len());
    // Below everything trained nothing is kept and no gradient flows.
    let (mut kept, mut layer, mut holes) = (0, 0, 0);
    let mut away = Vec::new();
    for (index, (all, passing)) in layers.iter().enumerate().skip(lowest.unwrap_or(layers.len())) {
        let (residual, run_again, gave_back) = if index < again {
            // What the forward gave back is cut up by the residuals, too small for the largest tensor of the second one.
            (hidden * size * tokens, *all + passing.largest * tokens, passing.without_tape)
        } else {
            (*all, 0, 0)
        };
        if index < again && input.offload >= Offload::Inputs {
            away.push(residual);
        } else {
            kept += residual;
        }
        layer = layer.max(passing.backward * tokens + run_again);
        holes = holes.max(gave_back * tokens);
    }
    // The one that runs again, and the one that comes meanwhile.
    let here: u64 = away.iter().take(2).sum();
    kept += here;
    let weights = input.weights.on_device(spec, input.offload);
    let without_tape = layers.iter().map(|(_, passing)| passing.without_tape).max().unwrap_or(0);
    let trained = learned.numbers(inventory);
    let largest = inventory.iter().map(|tensor| learned.numbers_of(tensor)).max().unwrap_or(0);
    let head_trained = inventory.iter().any(|tensor| is_head(spec, tensor) && learned.numbers_of(tensor) > 0);
    // A chunk's logits, the part of their gradients that a product packs at a time, hidden states and their gradients.
    let chunk = |tokens: u64| {
        let vocabulary = spec.vocab_size as u64;
        tokens.min(input.head_rows) * 4 * (vocabulary + vocabulary.min(PACKED_LOGITS) + 2 * hidden)
    };
    let head = if head_trained {
        chunk(input.head_tokens) + head_parameters(spec) * 4
    } else {
        // A block's logits and their packed form; of each token the hidden state, gathered and packed, and the sum it becomes.
        let block = HEAD_BLOCK.min(spec.vocab_size as u64);
        input.head_tokens.min(HEAD_TOKENS) * (block * (4 + size) + hidden * (4 + 2 * size))
    };
    MemoryPlan {
        weights,
        trained: learned.held(inventory, input.formats),
        gradients: trained * 4,
        kept,
        layer,
        holes,
        head: 3 * hidden * size * tokens + head,
        eval: match input.eval_tokens {
            0 => 0,
            tokens => (without_tape * tokens).max(3 * hidden * size * tokens + chunk(tokens)),
        },
        update: match (input.update_in_place, input.formats == Formats::default()) {
            (true, _) => 0,
            (false, true) => 4 * largest * 4,
            // Values and moments in f32 beside the new ones.
            (false, false) => 8 * largest * 4,
        },
        host: input.weights.total() - weights + away.iter().sum::<u64>() - here,
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
