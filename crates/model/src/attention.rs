//! Softmax attention of every dense family: grouped queries, optional biases (Qwen2), per-head norms of queries and keys
//! (Qwen3), optional window (Mistral), optional gate on the output (Qwen3-Next). One body; the specification decides.
//!
//! T tokens of all sequences on one axis, N query heads, K key/value heads, H channels of a head.

use burn::tensor::Tensor;
use qwen_tune_kernels::{self as kernels, Input};
use qwen_tune_qwen::spec::AttentionSpec;

use crate::build::{BuildError, Builder};
use crate::context::Context;
use crate::linear::Linear;
use crate::norm::RmsNorm;
use crate::parameters::Pass;

/// `o_proj(attention(rope(norm(q_proj x)), rope(norm(k_proj x)), v_proj x))`.
#[derive(Debug, Clone)]
pub struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    q_norm: Option<RmsNorm>,
    k_norm: Option<RmsNorm>,
    spec: AttentionSpec,
    layer: usize,
}

impl Attention {
    /// Loads the part below the cursor.
    ///
    /// # Errors
    /// As [`Builder::linear`].
    pub fn new(at: &Builder<'_>, hidden: usize, spec: &AttentionSpec, layer: usize) -> Result<Self, BuildError> {
        let (queries, keys) = (spec.query_rows(), spec.kv_heads * spec.head_dim);
        let head_norm = |name| spec.qk_norm.map(|norm| at.norm(name, spec.head_dim, norm)).transpose();
        Ok(Self {
            q_proj: at.linear("q_proj", hidden, queries, spec.qkv_bias)?,
            k_proj: at.linear("k_proj", hidden, keys, spec.qkv_bias)?,
            v_proj: at.linear("v_proj", hidden, keys, spec.qkv_bias)?,
            o_proj: at.linear("o_proj", spec.heads * spec.head_dim, hidden, spec.output_bias)?,
            q_norm: head_norm("q_norm")?,
            k_norm: head_norm("k_norm")?,
            spec: spec.clone(),
            layer,
        })
    }

    /// Whether anything in it is trained.
    #[must_use]
    pub fn is_trained(&self) -> bool {
        [&self.q_proj, &self.k_proj, &self.v_proj, &self.o_proj].into_iter().any(Linear::is_trained)
            || [&self.q_norm, &self.k_norm].into_iter().flatten().any(RmsNorm::is_trained)
    }

    /// `[T, hidden]` to the same.
    #[must_use]
    pub fn forward(&self, x: impl Into<Input<2>>, context: &Context, pass: &Pass<'_>) -> Tensor<2> {
        let x = x.into();
        let [tokens, _] = x.tensor().dims();
        let AttentionSpec { heads, kv_heads, head_dim, window, output_gate, .. } = self.spec;
        let [q, k, v] = Linear::forward_all([&self.q_proj, &self.k_proj, &self.v_proj], x, pass);
        let (q_TNH, gate_TNH) = if output_gate {
            let both: Tensor<3> = q.reshape([tokens, heads, 2 * head_dim]);
            (both.clone().narrow(2, 0, head_dim), Some(both.narrow(2, head_dim, head_dim)))
        } else {
            (q.reshape([tokens, heads, head_dim]), None)
        };
        let k_TKH: Tensor<3> = k.reshape([tokens, kv_heads, head_dim]);
        let v_TKH: Tensor<3> = v.reshape([tokens, kv_heads, head_dim]);
        let placed = |norm: &Option<RmsNorm>, heads: Tensor<3>| match norm {
            Some(norm) => context.norm_rotate(norm, heads, pass),
            None => context.rotate(heads).into(),
        };
        let (q_TNH, k_TKH) = (placed(&self.q_norm, q_TNH), placed(&self.k_norm, k_TKH));
        let scale = 1.0 / (head_dim as f32).sqrt();
        let y_TNH = match &context.cache {
            None => kernels::attention(q_TNH, k_TKH, v_TKH, &context.segments, scale, window),
            Some(cache) => cache.attend(self.layer, q_TNH.into_tensor(), k_TKH.into_tensor(), v_TKH, scale, window),
        };
        let y_TNH = match gate_TNH {
            Some(gate) => Input::sigmoid_gate(y_TNH, gate),
            None => y_TNH.into(),
        };
        self.o_proj.forward(y_TNH.reshape([tokens, heads * head_dim]), pass)
    }
}
