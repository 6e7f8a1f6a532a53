//! Numbers a token that a layer keeps for its backward, and what passes through while it runs, as the kernels have it.

use std::iter::Sum;
use std::ops::Add;

use super::Learned;
use crate::{AttentionSpec, FfnSpec, GatedDeltaSpec, LayerSpec, MixerSpec, SparseSpec, TensorSpec};

/// Numbers that a token takes, by how they are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Numbers {
    /// In the format of the activations.
    pub activations: u64,
    /// In four bytes whatever the activations are: sums, factors and indices.
    pub wide: u64,
}

impl Numbers {
    fn activations(activations: u64) -> Self {
        Self { activations, wide: 0 }
    }

    fn wide(wide: u64) -> Self {
        Self { activations: 0, wide }
    }

    /// Bytes of all of them.
    pub fn bytes(self, activation_bytes: u64) -> u64 {
        self.activations * activation_bytes + self.wide * 4
    }
}

impl Add for Numbers {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { activations: self.activations + other.activations, wide: self.wide + other.wide }
    }
}

impl Sum for Numbers {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Add::add)
    }
}

/// What of a layer learns, by the last part of its modules' names.
struct Learns<'a> {
    tensors: &'a [&'a TensorSpec],
    learned: &'a Learned,
}

impl Learns<'_> {
    /// Whether any of these modules learns, which then needs its input.
    fn any(&self, part: &str, leaves: &[&str]) -> bool {
        let is_one = |module: &str| {
            module.rsplit_once('.').is_some_and(|(path, leaf)| path.ends_with(part) && leaves.contains(&leaf))
        };
        self.tensors
            .iter()
            .any(|tensor| tensor.module.as_deref().is_some_and(is_one) && self.learned.numbers_of(tensor) > 0)
    }

    /// Whether a tensor of such a name learns itself.
    fn tensor(&self, end: &str) -> bool {
        self.tensors.iter().any(|tensor| tensor.name.ends_with(end) && self.learned.numbers_of(tensor) > 0)
    }

    /// `numbers` activations if any of these modules learns.
    fn input_of(&self, part: &str, leaves: &[&str], numbers: u64) -> Numbers {
        Numbers::activations(if self.any(part, leaves) { numbers } else { 0 })
    }
}

/// Numbers that a layer keeps for each token when its activations are kept: its input and the residual between its parts
/// with the norms' factors, what its two parts keep, and the adapters' middles. What norms, gates and activations give is formed
/// again.
pub fn kept_by_layer(hidden: usize, layer: &LayerSpec, tensors: &[&TensorSpec], learned: &Learned) -> Numbers {
    let hidden = hidden as u64;
    let learns = Learns { tensors, learned };
    let mixer = match &layer.mixer {
        MixerSpec::Attention(attention) => kept_by_attention(attention),
        MixerSpec::GatedDelta(delta) => kept_by_delta(delta, &learns),
    };
    let ffn = kept_by_ffn(hidden, layer, &learns);
    let middles = tensors.iter().map(|tensor| learned.middles_of(layer, tensor)).sum();
    Numbers { activations: 2 * hidden, wide: 2 } + mixer + ffn + Numbers::wide(middles)
}

/// Queries and keys before their norms, of which they are formed again, or where they have none rotated; values, the gate,
/// the output and its log-sum-exp.
fn kept_by_attention(spec: &AttentionSpec) -> Numbers {
    let [heads, kv_heads, size] = [spec.heads, spec.kv_heads, spec.head_dim].map(|n| n as u64);
    let norms = if spec.qk_norm.is_some() { heads + kv_heads } else { 0 };
    let gate = if spec.output_gate { heads * size } else { 0 };
    Numbers { activations: (2 * heads + 2 * kv_heads) * size + gate, wide: heads + norms }
}

/// Numbers that a layer keeps at each border between chunks inside a sequence, whatever the number of tokens.
pub(super) fn kept_at_border(layer: &LayerSpec) -> u64 {
    match &layer.mixer {
        MixerSpec::Attention(_) => 0,
        MixerSpec::GatedDelta(spec) => (spec.value_heads * spec.key_dim * spec.value_dim) as u64,
    }
}

/// The convolution's input and output, decays and write strengths, gate and output of the recurrence.
fn kept_by_delta(spec: &GatedDeltaSpec, learns: &Learns<'_>) -> Numbers {
    let (values, heads) = (spec.values() as u64, spec.value_heads as u64);
    // The gradient of the decays' factor needs the steps it multiplies.
    let steps = if learns.tensor(".A_log") { heads } else { 0 };
    // Burn's sigmoids keep what they are taken of: write strengths twice, and the argument of the decays' steps beside the
    // decays; the third is the gated norm's.
    Numbers { activations: 2 * spec.convolved() as u64 + 2 * heads + 2 * values, wide: 3 * heads + steps }
}

fn kept_by_ffn(hidden: u64, layer: &LayerSpec, learns: &Learns<'_>) -> Numbers {
    match &layer.ffn {
        FfnSpec::Dense { inner, .. } => kept_by_mlp(*inner as u64),
        FfnSpec::Sparse(sparse) => kept_by_experts(hidden, sparse, learns),
    }
}

/// Gate and up.
fn kept_by_mlp(inner: u64) -> Numbers {
    Numbers::activations(2 * inner)
}

/// Probabilities, and for each expert that a token goes through gate, up and output; the shared expert as any other.
fn kept_by_experts(hidden: u64, spec: &SparseSpec, learns: &Learns<'_>) -> Numbers {
    let (active, inner) = (spec.active as u64, spec.inner as u64);
    let shared =
        spec.shared.map_or(Numbers::default(), |inner| kept_by_mlp(inner as u64) + Numbers::activations(hidden + 1));
    // Of every choice the expert, its row and back (eight bytes each), its weight; a sum and what it divides.
    let routing = 6 * active + if spec.renormalise { active + 1 } else { 0 };
    Numbers { activations: active * (2 * inner + hidden), wide: spec.experts as u64 + routing }
        + learns.input_of("experts", &["gate_up_proj"], active * hidden)
        + shared
}

/// Bytes of a token that exist beside what is kept while one layer runs, at most. A product's left operand is packed once
/// for the whole product: as many bytes as it has itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Passing {
    /// In a forward that keeps nothing.
    pub(super) without_tape: u64,
    /// In the backward, which gives back what was kept as it goes.
    pub(super) backward: u64,
    /// The largest of the tensors.
    pub(super) largest: u64,
}

pub(super) fn passing(
    hidden: usize,
    layer: &LayerSpec,
    tensors: &[&TensorSpec],
    learned: &Learned,
    activation_bytes: u64,
) -> Passing {
    let (hidden, learns) = (hidden as u64, Learns { tensors, learned });
    let mixer = match &layer.mixer {
        MixerSpec::Attention(spec) => attention_passing(hidden, spec),
        MixerSpec::GatedDelta(spec) => delta_passing(hidden, spec),
    };
    let ffn = match &layer.ffn {
        FfnSpec::Dense { inner, .. } => mlp_passing(*inner as u64),
        FfnSpec::Sparse(sparse) => experts_passing(hidden, sparse),
    };
    let largest = match (&layer.mixer, &layer.ffn) {
        (_, FfnSpec::Sparse(sparse)) => sparse.active * (2 * sparse.inner).max(hidden as usize),
        (MixerSpec::GatedDelta(delta), FfnSpec::Dense { inner, .. }) => delta.convolved().max(*inner),
        (MixerSpec::Attention(attention), FfnSpec::Dense { inner, .. }) => attention.query_rows().max(*inner),
    };
    let [mixer, ffn] = [mixer, ffn].map(|stages| stages.map(|numbers| numbers.bytes(activation_bytes)));
    let of_ffn = kept_by_ffn(hidden, layer, &learns).bytes(activation_bytes);
    let hidden = hidden * activation_bytes;
    Passing {
        // The residual and its normed form; the output.
        without_tape: 2 * hidden + mixer[0].max(ffn[0]),
        // The gradients of both sides of the residual. What the feed-forward part kept is gone when the mixer's turn comes.
        largest: largest as u64 * activation_bytes,
        backward: 2 * hidden + ffn[1].max(mixer[1].saturating_sub(of_ffn)),
    }
}

/// Numbers in the two cases of [`Passing`]: those of the heads before and after rotation; the output's
/// gradient and the heads' own, before the parts of several tasks are added and after, beside the heads formed again.
fn attention_passing(hidden: u64, spec: &AttentionSpec) -> [Numbers; 2] {
    let (queries, joined) = ((spec.heads * spec.head_dim) as u64, spec.query_rows() as u64);
    let all = queries + 2 * (spec.kv_heads * spec.head_dim) as u64;
    // Queries and gate of one projection are cut apart, and their gradients put together again.
    let cut = if spec.output_gate { joined } else { 0 };
    let again = if spec.qk_norm.is_some() { ((spec.heads + spec.kv_heads) * spec.head_dim) as u64 } else { 0 };
    [Numbers::activations(hidden + joined + all), Numbers { activations: queries + all + cut + again, wide: all }]
}

/// As [`attention_passing`]: before and after the convolution, the output and its gate; the gradients of queries, keys and
/// values, each in a tensor of all channels before they are added, and those of the convolution's sums.
fn delta_passing(hidden: u64, spec: &GatedDeltaSpec) -> [Numbers; 2] {
    let (channels, values) = (spec.convolved() as u64, spec.values() as u64);
    [
        Numbers::activations(hidden + 2 * channels + 2 * values),
        Numbers { activations: 2 * values + 3 * channels, wide: channels },
    ]
}

/// As [`attention_passing`]: gate, up and activation; its gradient and those of gate and up.
fn mlp_passing(inner: u64) -> [Numbers; 2] {
    [3 * inner; 2].map(Numbers::activations)
}

/// As [`attention_passing`], on the rows of all experts. Their products pack a few rows at a time; of the gradients, those
/// of the outputs come while the outputs are there, the others when they are gone.
fn experts_passing(hidden: u64, spec: &SparseSpec) -> [Numbers; 2] {
    let active = spec.active as u64;
    let [outer, inner] = [hidden, spec.inner as u64].map(|size| active * size);
    let experts = [(outer + 2 * inner).max(3 * inner), outer.max(inner).max((3 * inner).saturating_sub(outer))];
    let shared = spec.shared.map_or([Numbers::default(); 2], |inner| mlp_passing(inner as u64));
    std::array::from_fn(|stage| Numbers::activations(experts[stage].max(hidden + shared[stage].activations)))
}
