//! Bytes that exist while a layer runs, as the kernels have it: of all moments that one where most is alive.
//!
//! A layer has two parts, each of which adds to the residual: a mixer, which sees sequences, and a feed-forward part, which
//! sees each token by itself and may take its tokens in chunks where nothing of it is kept. A product's left operand is
//! packed once for the whole product: as many bytes as it has itself. `tests/kept.rs` holds all of it against an allocator's
//! count.

use super::kept::{Learns, Numbers, kept_by_ffn, kept_by_mixer};
use super::{Extent, Forms, Learned, chunk_share};
use crate::{AttentionSpec, FfnSpec, GatedDeltaSpec, LayerSpec, MixerSpec, SparseSpec, TensorSpec};

/// Bytes of a token in one part of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Part {
    /// Kept for the backward, the part's input left out.
    kept: u64,
    /// Alive in a forward that keeps nothing, beside the residual.
    forward: u64,
    /// Alive in the backward, beside the gradient of the residual and what is still kept then.
    backward: u64,
    /// The same of each key that a strip of queries sees.
    of_key: u64,
}

/// What passes through a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Passing {
    /// A token's row of the residual.
    hidden: u64,
    mixer: Part,
    ffn: Part,
    /// The largest tensor of a token.
    largest: u64,
    /// Bytes of the gradients of what is trained in it, whatever the number of tokens: of the whole layer, of the
    /// feed-forward part, and of the last module of each part, which comes first in the backward.
    pub(super) gradients: u64,
    ffn_gradients: u64,
    last_gradients: [u64; 2],
}

impl Passing {
    pub(super) fn of(
        hidden: usize,
        layer: &LayerSpec,
        tensors: &[&TensorSpec],
        learned: &Learned,
        (activation_bytes, forms): (u64, Forms),
    ) -> Self {
        let (hidden, learns) = (hidden as u64, Learns { layer, tensors, learned });
        let bytes = |numbers: Numbers| numbers.bytes(activation_bytes);
        let [mixer_forward, mixer_backward, of_key] = match &layer.mixer {
            MixerSpec::Attention(spec) => attention(hidden, spec, forms),
            MixerSpec::GatedDelta(spec) => delta(hidden, spec),
        };
        let [ffn_forward, ffn_backward] = match &layer.ffn {
            FfnSpec::Dense { inner, .. } => mlp(hidden, *inner as u64),
            FfnSpec::Sparse(sparse) => experts(hidden, sparse),
        };
        let largest = match (&layer.mixer, &layer.ffn) {
            (_, FfnSpec::Sparse(sparse)) => sparse.active * (2 * sparse.inner).max(hidden as usize),
            (MixerSpec::GatedDelta(delta), FfnSpec::Dense { inner, .. }) => delta.convolved().max(*inner),
            (MixerSpec::Attention(attention), FfnSpec::Dense { inner, .. }) => attention.query_rows().max(*inner),
        };
        let gradients = |wanted: &dyn Fn(&TensorSpec) -> bool| {
            let tensors = tensors.iter().filter(|tensor| wanted(tensor));
            4 * tensors.map(|tensor| learned.numbers_of(tensor)).sum::<u64>()
        };
        let ends = |tensor: &TensorSpec, leaf: &str| tensor.module.as_deref().is_some_and(|name| name.ends_with(leaf));
        let is_last = |tensor: &TensorSpec| ["o_proj", "out_proj", "down_proj"].iter().any(|leaf| ends(tensor, leaf));
        Self {
            hidden: hidden * activation_bytes,
            mixer: Part {
                kept: bytes(kept_by_mixer(&learns)),
                forward: bytes(mixer_forward),
                backward: bytes(mixer_backward),
                of_key: bytes(of_key),
            },
            ffn: Part {
                kept: bytes(kept_by_ffn(hidden, &learns)),
                forward: bytes(ffn_forward),
                backward: bytes(ffn_backward),
                of_key: 0,
            },
            largest: largest as u64 * activation_bytes,
            gradients: gradients(&|_| true),
            ffn_gradients: gradients(&|tensor| learns.is_ffn(tensor)),
            last_gradients: [false, true]
                .map(|ffn| gradients(&|tensor| is_last(tensor) && learns.is_ffn(tensor) == ffn)),
        }
    }

    /// Kept between forward and backward: the input, the residual between the parts, and what they keep.
    pub(super) fn kept(&self) -> u64 {
        2 * self.hidden + self.mixer.kept + self.ffn.kept
    }

    /// A forward that keeps nothing, beside its input.
    pub(super) fn forward(&self, batch: Extent, chunk: Option<u64>) -> u64 {
        let Self { hidden, mixer, ffn, .. } = self;
        let share = chunk_share(batch.tokens, chunk);
        // Of chunks the rows that are done, and those of the residual that are cut out of it.
        let of_ffn = if share < batch.tokens {
            hidden * batch.tokens + (hidden + ffn.forward) * share
        } else {
            ffn.forward * batch.tokens
        };
        (mixer.forward * batch.tokens).max(hidden * batch.tokens + of_ffn)
    }

    /// The backward of a layer that kept everything, beside that, and its own gradients so far.
    pub(super) fn backward(&self, batch: Extent) -> u64 {
        let Self { hidden, ffn, .. } = self;
        let gone = (ffn.kept + hidden) * batch.tokens;
        let above = hidden * batch.tokens;
        (above + self.ffn_backward(batch.tokens)).max((above + self.mixer_backward(batch)).saturating_sub(gone))
    }

    /// Forward and backward of a layer that runs again, beside its input.
    pub(super) fn again(&self, batch: Extent, chunk: Option<u64>) -> u64 {
        let Self { hidden, mixer, ffn, .. } = self;
        let share = chunk_share(batch.tokens, chunk);
        if share == batch.tokens {
            return (self.kept() - hidden) * batch.tokens + self.backward(batch);
        }
        // The residual, its gradient above and what is done of that below; of a chunk the same, cut out or to be put together.
        let rows = 3 * hidden * batch.tokens + (3 * hidden + ffn.kept) * share;
        let of_ffn = self.ffn_gradients + rows + self.ffn_backward(share);
        let of_mixer = hidden * batch.tokens + self.mixer_backward(batch);
        mixer.kept * batch.tokens + of_ffn.max(of_mixer)
    }

    fn ffn_backward(&self, tokens: u64) -> u64 {
        self.last_gradients[1] + self.ffn.backward * tokens
    }

    fn mixer_backward(&self, batch: Extent) -> u64 {
        let Part { backward, of_key, .. } = self.mixer;
        self.ffn_gradients + self.last_gradients[0] + backward * batch.tokens + of_key * batch.seen_keys
    }

    /// Bytes of the largest tensor.
    pub(super) fn largest(&self, batch: Extent, chunk: Option<u64>) -> u64 {
        self.largest * chunk_share(batch.tokens, chunk)
    }
}

/// Numbers that pass through attention. Forward: the normed residual and its packed form beside queries, keys and values; these
/// before and after rotation; the output beside them. Backward: the output's gradient, queries and keys formed again, and the
/// queries' gradients; of each key that a strip sees its gradient and its value's in f32. On a GPU there are no strips, but all
/// of it is laid out anew, head by head, and the queries' gradients once more when they are put together.
fn attention(hidden: u64, spec: &AttentionSpec, forms: Forms) -> [Numbers; 3] {
    let [queries, keys] = [spec.heads, spec.kv_heads].map(|heads| (heads * spec.head_dim) as u64);
    let joined = spec.query_rows() as u64;
    let again = if spec.qk_norm.is_some() { queries + keys } else { 0 };
    let gate = joined - queries;
    let forward = [2 * hidden + joined + 2 * keys, joined + queries + 2 * keys, 2 * queries + 2 * keys + gate];
    let forward = forward.into_iter().max().unwrap_or(0);
    let of_keys = Numbers { activations: 0, wide: 2 * keys };
    let backward = match forms {
        Forms::Cpu => [Numbers::activations(2 * queries + again + gate), of_keys],
        Forms::Gpu => [Numbers::activations(4 * queries + 2 * keys + again + gate) + of_keys, Numbers::default()],
    };
    [Numbers::activations(forward), backward[0], backward[1]]
}

/// As [`attention`]: before and after the convolution, the output and its gate; the gradients of queries, keys and values,
/// each in a tensor of all channels before they are added, and those of the convolution's sums.
fn delta(hidden: u64, spec: &GatedDeltaSpec) -> [Numbers; 3] {
    let (channels, values) = (spec.convolved() as u64, spec.values() as u64);
    [
        Numbers::activations(hidden + 2 * channels + 2 * values),
        Numbers { activations: 2 * values + 3 * channels, wide: channels },
        Numbers::default(),
    ]
}

/// Numbers that pass through a SwiGLU. Forward: the normed residual and its packed form beside gate and up; these and the
/// activation. Backward: the activation's gradient and those of gate and up.
fn mlp(hidden: u64, inner: u64) -> [Numbers; 2] {
    [Numbers::activations((2 * hidden + 2 * inner).max(3 * inner)), Numbers::activations(3 * inner)]
}

/// As [`mlp`], on the rows of all experts. Their products pack a few rows at a time; of the gradients, those of the outputs
/// come while the outputs are there, the others when they are gone.
fn experts(hidden: u64, spec: &SparseSpec) -> [Numbers; 2] {
    let active = spec.active as u64;
    let [outer, inner] = [hidden, spec.inner as u64].map(|size| active * size);
    let experts = [(outer + 2 * inner).max(3 * inner), outer.max(inner).max((3 * inner).saturating_sub(outer))];
    let shared = spec.shared.map_or([Numbers::default(); 2], |inner| mlp(hidden, inner as u64));
    std::array::from_fn(|stage| Numbers::activations(experts[stage].max(hidden + shared[stage].activations)))
}
