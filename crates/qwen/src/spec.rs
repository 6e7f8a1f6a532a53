//! [`DecoderSpec`]: everything the forward pass, the planner and the exporters need to know about a
//! checkpoint, fully resolved from its `config.json`. A difference between families is a value here, never a branch on
//! the family's name elsewhere.

use serde::Serialize;

/// A causal decoder: embedding, `layers`, final norm, head.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DecoderSpec {
    /// `model_type` of the configuration, for people only; no code may branch on it.
    pub model_type: String,
    /// Rows of the embedding and of the head; may exceed the tokenizer's length (padding).
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// One entry a layer, bottom first.
    pub layers: Vec<LayerSpec>,
    /// Form and epsilon of the two layer norms and of the final norm.
    pub norm: NormSpec,
    /// Rotary position embedding shared by all attention layers.
    pub rope: RopeSpec,
    /// Whether the head is the embedding itself.
    pub head: HeadSpec,
    /// `max_position_embeddings`.
    pub max_positions: usize,
}

/// A pre-norm layer: `h = x + mixer(norm1(x))`, `y = h + ffn(norm2(h))`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerSpec {
    /// How tokens are mixed.
    pub mixer: MixerSpec,
    /// How channels are mixed.
    pub ffn: FfnSpec,
}

/// The token mixer of a layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum MixerSpec {
    /// Causal softmax attention with grouped key/value heads.
    Attention(AttentionSpec),
}

/// Softmax attention, `q_proj`, `k_proj`, `v_proj`, `o_proj`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Channels of a head; `heads * head_dim` need not be `hidden_size`.
    pub head_dim: usize,
    /// Biases on `q_proj`, `k_proj`, `v_proj`.
    pub qkv_bias: bool,
    /// Bias on `o_proj`.
    pub output_bias: bool,
    /// Per-head norms `q_norm`, `k_norm` before the rotary embedding.
    pub qk_norm: Option<NormSpec>,
    /// A token at position p sees keys j with `p - window < j <= p`; `None` sees all of its past.
    pub window: Option<usize>,
}

/// The feed-forward part of a layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum FfnSpec {
    /// `down(silu(gate(x)) * up(x))`.
    Dense {
        /// Channels between.
        inner: usize,
        /// Biases on all three projections.
        bias: bool,
    },
}

/// Root-mean-square norm.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct NormSpec {
    /// Added to the mean square before the root.
    pub eps: f64,
    /// The stored weight is an offset from one: `(1 + w) * x̂` instead of `w * x̂`.
    pub zero_centred: bool,
}

/// Rotary embedding in the half-split convention, resolved to frequencies.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RopeSpec {
    /// Angle per position for pair i, length `rotary_dim / 2`, scaling (linear, yarn, llama3) applied; computed in f32
    /// as transformers does.
    pub inv_freq: Vec<f32>,
    /// Leading channels of each head that rotate.
    pub rotary_dim: usize,
    /// Factor on cos and sin (yarn); 1 otherwise.
    pub attention_factor: f32,
    /// Name of the scaling for people: `default`, `linear`, `yarn`, `llama3`.
    pub scaling: String,
}

/// The output head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadSpec {
    /// `logits = h · embedᵀ`; the checkpoint has no `lm_head.weight`.
    Tied,
    /// `lm_head.weight` of its own.
    Own,
}
