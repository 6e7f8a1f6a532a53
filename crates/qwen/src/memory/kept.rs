//! Numbers a token that a layer keeps for its backward, as the kernels have it.

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
    pub(super) fn activations(activations: u64) -> Self {
        Self { activations, wide: 0 }
    }

    pub(super) fn wide(wide: u64) -> Self {
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

/// What of a layer learns, by the names of its modules.
pub(super) struct Learns<'a> {
    pub(super) layer: &'a LayerSpec,
    pub(super) tensors: &'a [&'a TensorSpec],
    pub(super) learned: &'a Learned,
}

impl Learns<'_> {
    /// Whether a tensor belongs to the feed-forward part.
    pub(super) fn is_ffn(&self, tensor: &TensorSpec) -> bool {
        tensor.name.contains(".mlp.") || tensor.name.contains(".post_attention_layernorm.")
    }

    /// Numbers between A and B of the adapters of one of the two parts.
    fn middles(&self, ffn: bool) -> u64 {
        let tensors = self.tensors.iter().filter(|tensor| self.is_ffn(tensor) == ffn);
        tensors.map(|tensor| self.learned.middles_of(self.layer, tensor)).sum()
    }

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

/// Numbers that a layer keeps for each token when its activations are kept: its input and the residual between its parts,
/// and what its two parts keep.
pub fn kept_by_layer(hidden: usize, layer: &LayerSpec, tensors: &[&TensorSpec], learned: &Learned) -> Numbers {
    let learns = Learns { layer, tensors, learned };
    let hidden = hidden as u64;
    Numbers::activations(2 * hidden) + kept_by_mixer(&learns) + kept_by_ffn(hidden, &learns)
}

/// What a mixer keeps beside the residual before it: the norm's factor, what its operations keep, and the adapters' middles.
/// What norms, gates and activations give is formed again.
pub(super) fn kept_by_mixer(learns: &Learns<'_>) -> Numbers {
    let numbers = match &learns.layer.mixer {
        MixerSpec::Attention(attention) => kept_by_attention(attention),
        MixerSpec::GatedDelta(delta) => kept_by_delta(delta, learns),
    };
    numbers + Numbers::wide(1 + learns.middles(false))
}

/// As [`kept_by_mixer`].
pub(super) fn kept_by_ffn(hidden: u64, learns: &Learns<'_>) -> Numbers {
    let numbers = match &learns.layer.ffn {
        FfnSpec::Dense { inner, .. } => kept_by_mlp(*inner as u64),
        FfnSpec::Sparse(sparse) => kept_by_experts(hidden, sparse, learns),
    };
    numbers + Numbers::wide(1 + learns.middles(true))
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
