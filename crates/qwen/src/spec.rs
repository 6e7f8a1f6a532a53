//! [`DecoderSpec`]: everything the forward pass, the planner and the exporters need to know about a
//! checkpoint, fully resolved from its `config.json`. A difference between families is a value here, never a branch on
//! the family's name elsewhere.

use std::fmt;

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

impl DecoderSpec {
    /// The attention of the first layer that has one.
    pub fn attention(&self) -> Option<&AttentionSpec> {
        self.layers.iter().find_map(|layer| match &layer.mixer {
            MixerSpec::Attention(attention) => Some(attention),
            MixerSpec::GatedDelta(_) => None,
        })
    }

    /// The recurrence of the first layer that has one.
    pub fn gated_delta(&self) -> Option<&GatedDeltaSpec> {
        self.layers.iter().find_map(|layer| match &layer.mixer {
            MixerSpec::GatedDelta(delta) => Some(delta),
            MixerSpec::Attention(_) => None,
        })
    }

    /// The experts of the first layer that has any.
    pub fn sparse(&self) -> Option<&SparseSpec> {
        self.layers.iter().find_map(|layer| match &layer.ffn {
            FfnSpec::Sparse(sparse) => Some(sparse),
            FfnSpec::Dense { .. } => None,
        })
    }

    /// Inner channels, and whether there are biases, of the first layer that is dense.
    pub fn dense(&self) -> Option<(usize, bool)> {
        self.layers.iter().find_map(|layer| match layer.ffn {
            FfnSpec::Dense { inner, bias } => Some((inner, bias)),
            FfnSpec::Sparse(_) => None,
        })
    }

    /// Indices of the layers, those that are alike together, by their lowest.
    pub fn alike(&self) -> Vec<Vec<usize>> {
        let mut kinds: Vec<Vec<usize>> = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            match kinds.iter_mut().find(|kind| self.layers[kind[0]] == *layer) {
                Some(kind) => kind.push(index),
                None => kinds.push(vec![index]),
            }
        }
        kinds
    }
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
    /// A linear recurrence with a gated delta rule.
    GatedDelta(GatedDeltaSpec),
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
    /// The output is multiplied by the logistic of a gate: `q_proj` gives, for each head, `head_dim` channels of the
    /// query, then as many of its gate.
    pub output_gate: bool,
}

impl AttentionSpec {
    /// Rows of `q_proj`.
    pub fn query_rows(&self) -> usize {
        self.heads * self.head_dim * if self.output_gate { 2 } else { 1 }
    }
}

/// A gated delta-rule layer (Yang, Kautz and Hatamizadeh 2024, arXiv 2412.06464): a short causal convolution over
/// queries, keys and values, a recurrence with one state `[key_dim, value_dim]` a value head, a gated norm.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GatedDeltaSpec {
    /// Query and key heads; divides `value_heads`.
    pub key_heads: usize,
    /// Value heads; consecutive ones share a key head.
    pub value_heads: usize,
    /// Channels of a query or key head.
    pub key_dim: usize,
    /// Channels of a value head.
    pub value_dim: usize,
    /// Tokens that the convolution spans, the current one included.
    pub kernel: usize,
    /// How the checkpoint lays out the input projections.
    pub projections: Projections,
    /// Added to the mean square in the gated norm, whose weight is plain in every family.
    pub norm_eps: f64,
}

impl GatedDeltaSpec {
    /// Channels of all queries, and of all keys.
    pub fn keys(&self) -> usize {
        self.key_heads * self.key_dim
    }

    /// Channels of all values, and of the gate `z`.
    pub fn values(&self) -> usize {
        self.value_heads * self.value_dim
    }

    /// Channels of the convolution: queries, keys, values.
    pub fn convolved(&self) -> usize {
        2 * self.keys() + self.values()
    }
}

/// The input projections of a gated delta-rule layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Projections {
    /// `in_proj_qkvz` and `in_proj_ba`, rows grouped by key head: for each its q, k, then v and z of its value heads;
    /// b, then a of its value heads.
    Grouped,
    /// `in_proj_qkv` (all q, all k, all v), `in_proj_z`, `in_proj_b`, `in_proj_a`.
    Separate,
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
    /// A mixture of experts.
    Sparse(SparseSpec),
}

/// A mixture of experts: of each token's `experts` probabilities the largest `active` decide which experts run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SparseSpec {
    /// Routed experts.
    pub experts: usize,
    /// Experts that a token goes through.
    pub active: usize,
    /// Channels inside an expert.
    pub inner: usize,
    /// The chosen probabilities are divided by their sum.
    pub renormalise: bool,
    /// Channels inside the expert that every token goes through, where there is one; it has a gate of its own.
    pub shared: Option<usize>,
    /// `router_aux_loss_coef`: factor of the load-balancing loss, where a recipe asks for it.
    pub balance: f64,
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
    /// The numbers that the frequencies come from, for formats that hold these instead.
    #[serde(skip)]
    pub origin: RopeOrigin,
}

/// What the frequencies of a [`RopeSpec`] were computed from.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeOrigin {
    /// Base of the unscaled frequencies: pair i turns by `theta^(-2i/rotary_dim)`.
    pub theta: f64,
    /// The scaling, where there is one that changes anything.
    pub scaling: Option<RopeScaling>,
}

/// A stretching of rotary frequencies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// All by the same factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// YaRN.
    Yarn {
        /// How much the slow channels are stretched.
        factor: f64,
        /// Length the model was first trained at.
        original: usize,
        /// Turns over that length from which a channel is kept.
        beta_fast: f64,
        /// Turns over that length up to which a channel is stretched.
        beta_slow: f64,
        /// Whether the borders are rounded to whole channels.
        truncate: bool,
    },
    /// Llama 3.1's, by wave length.
    Llama3 {
        /// How much the long waves are stretched.
        factor: f64,
    },
}

impl RopeOrigin {
    /// The frequencies without any scaling, in f32 as transformers computes them.
    pub fn unscaled(&self, rotary_dim: usize) -> impl Iterator<Item = f32> + use<> {
        let (theta, dim) = (self.theta as f32, rotary_dim as f32);
        (0..rotary_dim / 2).map(move |pair| theta.powf((2 * pair) as f32 / dim).recip())
    }
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

/// For people: `attention 16/8 heads of 128, q/k norm; mlp 3072`.
impl fmt::Display for LayerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.mixer, self.ffn)
    }
}

impl fmt::Display for MixerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attention(a) => {
                let gated = if a.output_gate { "gated " } else { "" };
                write!(f, "{gated}attention {}/{} heads of {}", a.heads, a.kv_heads, a.head_dim)?;
                f.write_str(if a.qk_norm.is_some() { ", q/k norm" } else { "" })?;
                f.write_str(if a.qkv_bias { ", biases" } else { "" })?;
                a.window.map_or(Ok(()), |window| write!(f, ", window {window}"))
            }
            Self::GatedDelta(d) => {
                let (keys, values) = (d.key_heads, d.value_heads);
                write!(f, "gated delta rule {keys} key heads of {}, {values} value heads of {}", d.key_dim, d.value_dim)
            }
        }
    }
}

impl fmt::Display for FfnSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dense { inner, .. } => write!(f, "mlp {inner}"),
            Self::Sparse(s) => {
                write!(f, "{} of {} experts of {}", s.active, s.experts, s.inner)?;
                s.shared.map_or(Ok(()), |shared| write!(f, ", shared expert of {shared}"))
            }
        }
    }
}
