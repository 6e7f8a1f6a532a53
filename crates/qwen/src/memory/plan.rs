//! Bytes that training needs, by purpose and at the worst moment.

use super::kept::kept_at_border;
use super::passing::Passing;
use super::{Extent, Formats, Kept, Learned, Offload, WeightBytes, head_parameters, is_head, lowest_trained};
use crate::{DecoderSpec, Role, TensorSpec};

/// Columns of the logits' gradients that a product packs at a time.
const PACKED_LOGITS: u64 = 8192;

/// Rows of the head whose logits exist at a time where losses go along its blocks, and tokens they exist for.
const HEAD_BLOCK: u64 = 4096;
const HEAD_TOKENS: u64 = 512;

/// Whose forms of the operations run: they hold different things while they do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forms {
    /// Products pack their left operands; losses go along blocks of the head's rows. Held against measurements.
    Cpu,
    /// Losses have the logits of some tokens at a time. By reading; nothing has been measured yet.
    Gpu,
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
    /// Whether it finds the gradients of another of its step.
    pub accumulates: bool,
    /// Layers whose activations are kept.
    pub kept: Kept,
    /// Tokens that go through a feed-forward part together where nothing of it is kept; `None` for all.
    pub ffn_chunk: Option<u64>,
    /// Those of its tokens with a target, whose logits are formed.
    pub head_tokens: u64,
    /// Tokens whose logits exist at a time, where those of the whole vocabulary do.
    pub head_rows: u64,
    /// What runs.
    pub forms: Forms,
    /// The largest batch of an evaluation; nothing without one.
    pub eval: Extent,
    /// Whether an update changes values and moments where they lie, instead of making new ones.
    pub update_in_place: bool,
    /// What waits in host memory.
    pub offload: Offload,
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
    /// Residuals and activations kept from the forward pass, and the angles of all positions.
    pub kept: u64,
    /// What the backward of one layer takes, with its activations where it is run again.
    pub layer: u64,
    /// Logits of one chunk, hidden states before and after the final norm with their gradient, and that of a trained head.
    pub head: u64,
    /// What an evaluation takes, without tapes.
    pub eval: u64,
    /// The update of the largest trained tensor, where it takes anything.
    pub update: u64,
    /// What a step holds when it holds most: gradients come while activations go.
    pub step: u64,
    /// What then lies idle between buffers.
    pub holes: u64,
    /// What waits in host memory, which is no part of the total.
    pub host: u64,
}

impl MemoryPlan {
    /// Everything that is alive at the worst moment.
    pub fn alive(&self) -> u64 {
        self.weights + self.trained + self.step.max(self.eval)
    }

    /// The same with what lies idle.
    pub fn total(&self) -> u64 {
        self.weights + self.trained + (self.step + self.holes).max(self.eval)
    }
}

/// A moment of a step: bytes that are alive, and that lie idle.
#[derive(Debug, Clone, Copy, Default)]
struct Moment {
    alive: u64,
    idle: u64,
}

/// Bytes that training needs.
pub fn plan(input: &MemoryInput<'_>) -> MemoryPlan {
    let MemoryInput { spec, inventory, learned, batch, ffn_chunk, .. } = *input;
    let (size, tokens) = (input.activation_bytes, batch.tokens);
    let row = spec.hidden_size as u64 * size;
    let layers: Vec<Passing> = spec
        .layers
        .iter()
        .enumerate()
        .map(|(index, layer)| {
            let tensors: Vec<&TensorSpec> = inventory.iter().filter(|tensor| tensor.layer == Some(index)).collect();
            Passing::of(spec.hidden_size, layer, &tensors, learned, (size, input.forms))
        })
        .collect();
    let states = |index: usize| 4 * kept_at_border(&spec.layers[index]) * batch.borders;
    let again = layers.len() - input.kept.layers.min(layers.len());
    // Below everything trained nothing is kept and no gradient flows.
    let lowest = lowest_trained(inventory, learned).unwrap_or(layers.len());
    let trained = 4 * learned.numbers(inventory);

    // From the bottom up: what is kept of the layers so far, and what the backward of the uppermost adds.
    let angles = 8 * spec.rope.inv_freq.len() as u64 * tokens;
    let (mut kept, mut away, mut below) = (angles, Vec::new(), 0);
    let (mut layer, mut holes, mut moments) = (0, 0, Vec::new());
    for (index, passing) in layers.iter().enumerate().skip(lowest) {
        below += passing.gradients;
        let (alive, idle);
        if index < again {
            if input.offload >= Offload::Inputs {
                away.push(row * tokens);
            } else {
                kept += row * tokens;
            }
            alive = passing.again(batch, ffn_chunk) + states(index);
            // What the forward gave back is cut up by the residuals, too small for the largest tensor of the second one; and
            // the head finds no room in it.
            idle = passing.largest(batch, ffn_chunk);
            holes = holes.max(passing.forward(batch, ffn_chunk));
        } else {
            kept += passing.kept() * tokens + states(index);
            (alive, idle) = (passing.backward(batch), 0);
        }
        layer = layer.max(alive);
        // Of what is trained above it there are gradients already.
        let gradients = if input.accumulates { trained } else { trained - below };
        moments.push(Moment { alive: gradients + kept + here(&away) + alive, idle });
    }
    kept += here(&away);

    let head = head(input);
    let head_gradients = if input.accumulates { trained } else { 0 };
    moments.push(Moment { alive: head_gradients + kept + head, idle: holes });
    let embedding = inventory.iter().filter(|tensor| tensor.role == Role::Embedding);
    let embedding: u64 = embedding.map(|tensor| 4 * learned.numbers_of(tensor)).sum();
    moments.push(Moment { alive: trained + embedding + if embedding > 0 { row * tokens } else { 0 }, idle: 0 });
    let update = update(input);
    moments.push(Moment { alive: trained + update, idle: 0 });
    let worst = moments.into_iter().max_by_key(|moment| moment.alive + moment.idle).unwrap_or_default();

    let weights = input.weights.on_device(spec, input.offload);
    let waiting = away.iter().sum::<u64>() - here(&away);
    MemoryPlan {
        weights,
        trained: learned.held(inventory, input.formats),
        gradients: trained,
        kept,
        layer,
        head,
        eval: eval(input, &layers),
        update,
        step: worst.alive,
        holes: worst.idle,
        host: input.weights.total() - weights + waiting,
    }
}

/// Of inputs that wait elsewhere the one that runs again, and the one that comes meanwhile.
fn here(away: &[u64]) -> u64 {
    away.iter().rev().take(2).sum()
}

/// The last hidden states, normed, with their gradient; beside them logits, and the gradient of a head that learns.
fn head(input: &MemoryInput<'_>) -> u64 {
    let MemoryInput { spec, inventory, learned, batch, head_tokens, .. } = *input;
    let learns = inventory.iter().any(|tensor| is_head(spec, tensor) && learned.numbers_of(tensor) > 0);
    let gradient = if learns { 4 * head_parameters(spec) } else { 0 };
    let states = 3 * spec.hidden_size as u64 * input.activation_bytes * batch.tokens;
    states + gradient + logits(input, head_tokens, learns, true)
}

/// What an evaluation takes.
fn eval(input: &MemoryInput<'_>, layers: &[Passing]) -> u64 {
    let MemoryInput { spec, eval, ffn_chunk, .. } = *input;
    let row = spec.hidden_size as u64 * input.activation_bytes;
    if eval.tokens == 0 {
        return 0;
    }
    let angles = 8 * spec.rope.inv_freq.len() as u64 * eval.tokens;
    let layer = layers.iter().map(|layer| layer.forward(eval, ffn_chunk)).max().unwrap_or(0);
    angles + row * eval.tokens + layer.max(row * eval.tokens + logits(input, eval.tokens, false, false))
}

/// Logits of so many tokens with a target, as many as exist at a time, with what surrounds them.
fn logits(input: &MemoryInput<'_>, tokens: u64, learns: bool, trains: bool) -> u64 {
    let (size, hidden) = (input.activation_bytes, input.spec.hidden_size as u64);
    let vocabulary = input.spec.vocab_size as u64;
    let rows = tokens.min(input.head_rows);
    match input.forms {
        // A chunk's logits, the part of their gradients that a product packs at a time, hidden states and their gradients.
        Forms::Cpu if learns => rows * 4 * (vocabulary + vocabulary.min(PACKED_LOGITS) + 2 * hidden),
        // A block's logits and their packed form; of each token the hidden state, gathered and packed, and the sum it becomes.
        Forms::Cpu => {
            let (block, sum) = (HEAD_BLOCK.min(vocabulary), if trains { 4 } else { 0 });
            tokens.min(HEAD_TOKENS) * (block * (4 + if trains { size } else { 0 }) + hidden * (sum + 2 * size))
        }
        // The same in the products' format beside them, with the hidden state and its gradient.
        Forms::Gpu => rows * (vocabulary * (4 + if trains { size } else { 0 }) + 2 * hidden * size),
    }
}

/// Values and moments of the largest trained tensor beside the old ones, where an update makes new ones.
fn update(input: &MemoryInput<'_>) -> u64 {
    let largest = input.inventory.iter().map(|tensor| input.learned.numbers_of(tensor)).max().unwrap_or(0);
    match (input.update_in_place, input.formats == Formats::default()) {
        (true, _) => 0,
        (false, true) => 4 * largest * 4,
        // In f32 beside the new ones.
        (false, false) => 8 * largest * 4,
    }
}
