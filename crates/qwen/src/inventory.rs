//! [`inventory`]: the one list of a model's tensors, from which loading, adapters, planning and export all work.

use crate::{AttentionSpec, DecoderSpec, FfnSpec, HeadSpec, LayerSpec, MixerSpec};

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
    /// For linear weights the module, such as `layers.0.self_attn.q_proj`.
    pub module: Option<String>,
    /// Whether an adapter may be put on it.
    pub adaptable: bool,
}

impl TensorSpec {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&extent| extent as u64).product()
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
    /// The norm after the last layer.
    FinalNorm,
    /// The output head, where it is not the embedding.
    Head,
}

/// The two parts of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// The token mixer.
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
        let is_matrix = matches!(role, Role::Linear(_) | Role::Head);
        let module = name.strip_suffix(".weight").filter(|_| is_matrix).map(str::to_owned);
        self.tensors.push(TensorSpec {
            name,
            shape,
            role,
            layer: self.layer,
            module,
            adaptable: matches!(role, Role::Linear(_)),
        });
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
        }
        self.push(format!("{path}.post_attention_layernorm.weight"), vec![hidden], Role::LayerNorm);
        match layer.ffn {
            FfnSpec::Dense { inner, bias } => {
                self.linear(&format!("{path}.mlp.gate_proj"), inner, hidden, bias, Part::Mlp);
                self.linear(&format!("{path}.mlp.up_proj"), inner, hidden, bias, Part::Mlp);
                self.linear(&format!("{path}.mlp.down_proj"), hidden, inner, bias, Part::Mlp);
            }
        }
    }

    fn attention(&mut self, path: &str, hidden: usize, spec: &AttentionSpec) {
        let (queries, keys) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        self.linear(&format!("{path}.q_proj"), queries, hidden, spec.qkv_bias, Part::Attention);
        self.linear(&format!("{path}.k_proj"), keys, hidden, spec.qkv_bias, Part::Attention);
        self.linear(&format!("{path}.v_proj"), keys, hidden, spec.qkv_bias, Part::Attention);
        self.linear(&format!("{path}.o_proj"), hidden, queries, spec.output_bias, Part::Attention);
        if spec.qk_norm.is_some() {
            self.push(format!("{path}.q_norm.weight"), vec![spec.head_dim], Role::HeadNorm);
            self.push(format!("{path}.k_norm.weight"), vec![spec.head_dim], Role::HeadNorm);
        }
    }
}
