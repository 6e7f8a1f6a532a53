//! [`inventory`]: the one list of a model's tensors, from which loading, adapters, planning and export all work.

use std::fmt;

use crate::{
    AttentionSpec, DecoderSpec, FfnSpec, GatedDeltaSpec, HeadSpec, LayerSpec, MixerSpec, Projections, SparseSpec,
};

/// A tensor that a specification calls for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name without the checkpoint's prefix, such as `layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Its shape; linear weights are `[out, in]`.
    pub shape: Vec<usize>,
    /// What it does.
    pub role: Role,
    /// The layer it belongs to.
    pub layer: Option<usize>,
    /// For matrices the module, such as `layers.0.self_attn.q_proj`.
    pub module: Option<String>,
}

impl TensorSpec {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&extent| extent as u64).product()
    }

    /// Whether it is a matrix that takes part in products, embedding and head included: what may be held in fewer bits. Norms,
    /// biases, convolutions and the vectors of recurrences are few, and stay f32 where they are trained.
    pub fn is_product_matrix(&self) -> bool {
        self.matrices().is_some() || matches!(self.role, Role::Embedding | Role::Head)
    }

    /// Whether it makes the keys or the values of attention by itself. Where heads share those, it is small, and its errors are
    /// those of every head that does.
    pub fn is_key_or_value(&self) -> bool {
        let last = self.module.as_deref().and_then(|module| module.rsplit('.').next());
        matches!((self.role, last), (Role::Linear(Part::Attention), Some("k_proj" | "v_proj")))
    }

    /// The matrices that an adapter would be put on; none of tensors that take no adapter.
    pub fn matrices(&self) -> Option<Matrices> {
        match (self.role, &self.shape[..]) {
            (Role::Linear(_) | Role::Router | Role::SharedGate, &[rows, columns]) => {
                Some(Matrices { count: 1, rows, columns })
            }
            (Role::Experts, &[count, rows, columns]) => Some(Matrices { count, rows, columns }),
            _ => None,
        }
    }
}

/// Matrices of one shape in one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matrices {
    /// How many: the experts of a mixture, or 1.
    pub count: usize,
    /// Outputs of each.
    pub rows: usize,
    /// Inputs of each.
    pub columns: usize,
}

impl fmt::Display for Matrices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, rows, columns } = self;
        match count {
            1 => write!(f, "[{rows}, {columns}]"),
            _ => write!(f, "{count} x [{rows}, {columns}]"),
        }
    }
}

/// What a tensor does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Rows by token id.
    Embedding,
    /// The matrix of a linear layer.
    Linear(Part),
    /// The bias of a linear layer.
    Bias(Part),
    /// A norm of the residual stream before a part of a layer.
    LayerNorm,
    /// A norm of each query or key head.
    HeadNorm,
    /// The matrix that scores experts.
    Router,
    /// The matrices of all routed experts, `[experts, out, in]`; a checkpoint may hold them in pieces.
    Experts,
    /// The row that gates the shared expert.
    SharedGate,
    /// The short convolution before a recurrence.
    Convolution,
    /// The decay of a recurrence: `A_log` and `dt_bias`.
    Decay,
    /// The gated norm behind a recurrence; its weight is plain in every family.
    GatedNorm,
    /// The norm after the last layer.
    FinalNorm,
    /// The output head, where it is not the embedding.
    Head,
}

/// The two parts of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// The token mixer, softmax attention or recurrence.
    Attention,
    /// The feed-forward part.
    Mlp,
}

/// Every tensor of the model, in the order of computation.
pub fn inventory(spec: &DecoderSpec) -> Vec<TensorSpec> {
    let mut list = List { tensors: Vec::new(), layer: None };
    let hidden = spec.hidden_size;
    list.push("embed_tokens.weight".to_owned(), vec![spec.vocab_size, hidden], Role::Embedding);
    for (index, layer) in spec.layers.iter().enumerate() {
        list.layer = Some(index);
        list.layer(&format!("layers.{index}"), hidden, layer);
    }
    list.layer = None;
    list.push("norm.weight".to_owned(), vec![hidden], Role::FinalNorm);
    if spec.head == HeadSpec::Own {
        list.push("lm_head.weight".to_owned(), vec![spec.vocab_size, hidden], Role::Head);
    }
    list.tensors
}

struct List {
    tensors: Vec<TensorSpec>,
    layer: Option<usize>,
}

impl List {
    fn push(&mut self, name: String, shape: Vec<usize>, role: Role) {
        let is_matrix = matches!(role, Role::Linear(_) | Role::Head | Role::Router | Role::Experts | Role::SharedGate);
        let module = is_matrix.then(|| name.strip_suffix(".weight").unwrap_or(&name).to_owned());
        self.tensors.push(TensorSpec { name, shape, role, layer: self.layer, module });
    }

    fn linear(&mut self, module: &str, out: usize, into: usize, bias: bool, part: Part) {
        self.push(format!("{module}.weight"), vec![out, into], Role::Linear(part));
        if bias {
            self.push(format!("{module}.bias"), vec![out], Role::Bias(part));
        }
    }

    fn layer(&mut self, path: &str, hidden: usize, layer: &LayerSpec) {
        self.push(format!("{path}.input_layernorm.weight"), vec![hidden], Role::LayerNorm);
        match &layer.mixer {
            MixerSpec::Attention(attention) => self.attention(&format!("{path}.self_attn"), hidden, attention),
            MixerSpec::GatedDelta(delta) => self.gated_delta(&format!("{path}.linear_attn"), hidden, delta),
        }
        self.push(format!("{path}.post_attention_layernorm.weight"), vec![hidden], Role::LayerNorm);
        let path = format!("{path}.mlp");
        match &layer.ffn {
            FfnSpec::Dense { inner, bias } => self.dense(&path, hidden, *inner, *bias),
            FfnSpec::Sparse(sparse) => self.sparse(&path, hidden, sparse),
        }
    }

    fn dense(&mut self, path: &str, hidden: usize, inner: usize, bias: bool) {
        self.linear(&format!("{path}.gate_proj"), inner, hidden, bias, Part::Mlp);
        self.linear(&format!("{path}.up_proj"), inner, hidden, bias, Part::Mlp);
        self.linear(&format!("{path}.down_proj"), hidden, inner, bias, Part::Mlp);
    }

    fn sparse(&mut self, path: &str, hidden: usize, spec: &SparseSpec) {
        let SparseSpec { experts, inner, shared, .. } = *spec;
        self.push(format!("{path}.gate.weight"), vec![experts, hidden], Role::Router);
        self.push(format!("{path}.experts.gate_up_proj"), vec![experts, 2 * inner, hidden], Role::Experts);
        self.push(format!("{path}.experts.down_proj"), vec![experts, hidden, inner], Role::Experts);
        if let Some(inner) = shared {
            self.dense(&format!("{path}.shared_expert"), hidden, inner, false);
            self.push(format!("{path}.shared_expert_gate.weight"), vec![1, hidden], Role::SharedGate);
        }
    }

    fn gated_delta(&mut self, path: &str, hidden: usize, spec: &GatedDeltaSpec) {
        let (keys, values, heads) = (spec.keys(), spec.values(), spec.value_heads);
        let projections = match spec.projections {
            Projections::Grouped => vec![("in_proj_qkvz", 2 * (keys + values)), ("in_proj_ba", 2 * heads)],
            Projections::Separate => vec![
                ("in_proj_qkv", 2 * keys + values),
                ("in_proj_z", values),
                ("in_proj_b", heads),
                ("in_proj_a", heads),
            ],
        };
        for (name, rows) in projections {
            self.linear(&format!("{path}.{name}"), rows, hidden, false, Part::Attention);
        }
        self.push(format!("{path}.conv1d.weight"), vec![spec.convolved(), 1, spec.kernel], Role::Convolution);
        self.push(format!("{path}.A_log"), vec![heads], Role::Decay);
        self.push(format!("{path}.dt_bias"), vec![heads], Role::Decay);
        self.push(format!("{path}.norm.weight"), vec![spec.value_dim], Role::GatedNorm);
        self.linear(&format!("{path}.out_proj"), hidden, values, false, Part::Attention);
    }

    fn attention(&mut self, path: &str, hidden: usize, spec: &AttentionSpec) {
        let (queries, keys) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        self.linear(&format!("{path}.q_proj"), spec.query_rows(), hidden, spec.qkv_bias, Part::Attention);
        self.linear(&format!("{path}.k_proj"), keys, hidden, spec.qkv_bias, Part::Attention);
        self.linear(&format!("{path}.v_proj"), keys, hidden, spec.qkv_bias, Part::Attention);
        self.linear(&format!("{path}.o_proj"), hidden, queries, spec.output_bias, Part::Attention);
        if spec.qk_norm.is_some() {
            self.push(format!("{path}.q_norm.weight"), vec![spec.head_dim], Role::HeadNorm);
            self.push(format!("{path}.k_norm.weight"), vec![spec.head_dim], Role::HeadNorm);
        }
    }
}
