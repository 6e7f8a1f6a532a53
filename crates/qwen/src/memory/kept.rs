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
/// with the norms' factors, what its two parts keep, and the adapters' middles.
pub fn kept_by_layer(hidden: usize, layer: &LayerSpec, tensors: &[&TensorSpec], learned: &Learned) -> Numbers {
    let hidden = hidden as u64;
    let learns = Learns { tensors, learned };
    let mixer = match &layer.mixer {
        MixerSpec::Attention(attention) => kept_by_attention(hidden, attention, &learns),
        MixerSpec::GatedDelta(delta) => kept_by_delta(hidden, delta, &learns),
    };
    let ffn = match &layer.ffn {
        FfnSpec::Dense { inner, .. } => kept_by_mlp(hidden, *inner as u64, "mlp", &learns),
        FfnSpec::Sparse(sparse) => kept_by_experts(hidden, sparse, &learns),
    };
    let middles = tensors.iter().map(|tensor| learned.middles_of(layer, tensor)).sum();
    Numbers { activations: 2 * hidden, wide: 2 } + mixer + ffn + Numbers::wide(middles)
}

/// The normed input, queries and keys before their own norms, rotated queries and keys, values, the gate, the output and
/// its log-sum-exp.
fn kept_by_attention(hidden: u64, spec: &AttentionSpec, learns: &Learns<'_>) -> Numbers {
    let [heads, kv_heads, size] = [spec.heads, spec.kv_heads, spec.head_dim].map(|n| n as u64);
    let placed = heads + kv_heads;
    let before_norms = match spec.qk_norm {
        Some(_) => Numbers { activations: placed * size, wide: placed },
        None => Numbers::default(),
    };
    // The gate, and the gated output that the last projection may need.
    let gate = if spec.output_gate {
        Numbers::activations(heads * size) + learns.input_of("self_attn", &["o_proj"], heads * size)
    } else {
        Numbers::default()
    };
    learns.input_of("self_attn", &["q_proj", "k_proj", "v_proj"], hidden)
        + before_norms
        + Numbers { activations: (2 * heads + 2 * kv_heads) * size, wide: heads }
        + gate
}

/// Numbers that a layer keeps at each border between chunks inside a sequence, whatever the number of tokens.
pub(super) fn kept_at_border(layer: &LayerSpec) -> u64 {
    match &layer.mixer {
        MixerSpec::Attention(_) => 0,
        MixerSpec::GatedDelta(spec) => (spec.value_heads * spec.key_dim * spec.value_dim) as u64,
    }
}

/// The normed input, the convolution's input and output, decays and write strengths, gate and output of the recurrence,
/// and what the last projection needs.
fn kept_by_delta(hidden: u64, spec: &GatedDeltaSpec, learns: &Learns<'_>) -> Numbers {
    let (values, heads) = (spec.values() as u64, spec.value_heads as u64);
    let inputs = ["in_proj_qkvz", "in_proj_ba", "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"];
    // The gradient of the decays' factor needs the steps it multiplies.
    let steps = if learns.tensor(".A_log") { heads } else { 0 };
    learns.input_of("linear_attn", &inputs, hidden)
        // Burn's sigmoids keep what they are taken of: write strengths twice, and the argument of the decays' steps beside
        // the decays; the third is the gated norm's.
        + Numbers { activations: 2 * spec.convolved() as u64 + 2 * heads + 2 * values, wide: 3 * heads + steps }
        + learns.input_of("linear_attn", &["out_proj"], values)
}

/// The normed input, gate and up, and their product.
fn kept_by_mlp(hidden: u64, inner: u64, part: &str, learns: &Learns<'_>) -> Numbers {
    learns.input_of(part, &["gate_proj", "up_proj"], hidden)
        + Numbers::activations(2 * inner)
        + learns.input_of(part, &["down_proj"], inner)
}

/// Probabilities, and for each expert that a token goes through gate, up and output; the shared expert as any other.
fn kept_by_experts(hidden: u64, spec: &SparseSpec, learns: &Learns<'_>) -> Numbers {
    let (active, inner) = (spec.active as u64, spec.inner as u64);
    let shared = spec.shared.map_or(Numbers::default(), |inner| {
        kept_by_mlp(0, inner as u64, "shared_expert", learns) + Numbers::activations(hidden + 1)
    });
    let normed =
        learns.any("mlp", &["gate", "shared_expert_gate"]) || learns.any("shared_expert", &["gate_proj", "up_proj"]);
    // Of every choice the expert, its row and back (eight bytes each), its weight; a sum and what it divides.
    let routing = 6 * active + if spec.renormalise { active + 1 } else { 0 };
    Numbers { activations: active * (2 * inner + hidden), wide: spec.experts as u64 + routing }
        + learns.input_of("experts", &["gate_up_proj"], active * hidden)
        + learns.input_of("experts", &["down_proj"], active * inner)
        + Numbers::activations(if normed { hidden } else { 0 })
        + shared
}

/// Numbers of a token that exist beside what is kept while one layer runs: of the forward alone, and in its backward.
pub(super) fn passing(hidden: usize, layer: &LayerSpec) -> (u64, u64) {
    let mixer = match &layer.mixer {
        MixerSpec::Attention(spec) => hidden + spec.query_rows() + (spec.heads + 2 * spec.kv_heads) * spec.head_dim,
        MixerSpec::GatedDelta(spec) => hidden + 2 * spec.convolved() + 2 * spec.values(),
    };
    let inner = match &layer.ffn {
        FfnSpec::Dense { inner, .. } => *inner,
        FfnSpec::Sparse(sparse) => sparse.active * (sparse.inner + hidden / 2) + sparse.shared.unwrap_or(0),
    };
    let forward = 2 * hidden + mixer.max(3 * inner);
    // The gradient of the activation becomes those of gate and up, while its own input has been given back.
    let backward = 3 * hidden + mixer.max(2 * inner);
    (forward as u64, backward as u64)
}

/// Numbers of a token that lie in holes while a layer runs: memory that was freed and that an allocator which keeps it, as
/// the program has it do, finds no use for. Buffers of experts come in sizes of their own, one after another, where those of
/// other parts are taken again by the next of the same size. Measured against the same runs with freed memory given
/// back, in which the other terms alone are right within a few hundredths.
pub(super) fn holes(hidden: usize, layer: &LayerSpec) -> u64 {
    match &layer.ffn {
        FfnSpec::Dense { .. } => 0,
        FfnSpec::Sparse(sparse) => (sparse.active * (9 * sparse.inner / 2 + hidden)) as u64,
    }
}
