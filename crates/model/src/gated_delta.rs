//! The gated delta-rule mixer of Qwen3-Next and Qwen3.5: projections, a short causal convolution, the recurrence, a gated
//! norm. One body for both layouts of the projections, so adapters and exports stay in the checkpoint's own.
//!
//! T tokens, K query/key heads of dk channels, H value heads of dv channels, G = H / K value heads a key head,
//! C = 2·K·dk + H·dv convolved channels.

use burn::tensor::{Tensor, activation};
use qwen_tune_kernels::{self as kernels, Input};
use qwen_tune_qwen::spec::{GatedDeltaSpec, Projections};

use crate::build::{BuildError, Builder};
use crate::context::Context;
use crate::linear::Linear;
use crate::parameters::{Pass, Weight};

/// `out_proj(norm(delta(conv(q, k, v), decay(a), σ(b)), z))`.
#[derive(Debug, Clone)]
pub struct GatedDelta {
    inputs: Inputs,
    conv1d: Weight<3>,
    a_log: Weight<1>,
    dt_bias: Weight<1>,
    norm: Weight<1>,
    out_proj: Linear,
    spec: GatedDeltaSpec,
    layer: usize,
}

#[expect(clippy::large_enum_variant, reason = "one a layer, for as long as the model lives")]
#[derive(Debug, Clone)]
enum Inputs {
    Grouped { qkvz: Linear, ba: Linear },
    Separate { qkv: Linear, z: Linear, b: Linear, a: Linear },
}

/// What the projections give.
struct Projected {
    /// Queries, keys and values side by side, `[T, C]`.
    qkv_TC: Tensor<2>,
    z_THV: Tensor<3>,
    b_TH: Tensor<2>,
    a_TH: Tensor<2>,
}

impl GatedDelta {
    /// Loads the part below the cursor.
    ///
    /// # Errors
    /// As [`Builder::linear`].
    pub fn new(at: &Builder<'_>, hidden: usize, spec: &GatedDeltaSpec, layer: usize) -> Result<Self, BuildError> {
        let (keys, values, heads) = (spec.keys(), spec.values(), spec.value_heads);
        let linear = |name: &str, rows: usize| at.linear(name, hidden, rows, false);
        Ok(Self {
            inputs: match spec.projections {
                Projections::Grouped => Inputs::Grouped {
                    qkvz: linear("in_proj_qkvz", 2 * (keys + values))?,
                    ba: linear("in_proj_ba", 2 * heads)?,
                },
                Projections::Separate => Inputs::Separate {
                    qkv: linear("in_proj_qkv", spec.convolved())?,
                    z: linear("in_proj_z", values)?,
                    b: linear("in_proj_b", heads)?,
                    a: linear("in_proj_a", heads)?,
                },
            },
            conv1d: at.at("conv1d").tensor("weight", [spec.convolved(), 1, spec.kernel], false)?,
            a_log: at.tensor("A_log", [heads], false)?,
            dt_bias: at.tensor("dt_bias", [heads], false)?,
            norm: at.at("norm").tensor("weight", [spec.value_dim], false)?,
            out_proj: at.linear("out_proj", values, hidden, false)?,
            spec: spec.clone(),
            layer,
        })
    }

    /// Whether anything in it is trained.
    #[must_use]
    pub fn is_trained(&self) -> bool {
        let inputs = match &self.inputs {
            Inputs::Grouped { qkvz, ba } => qkvz.is_trained() || ba.is_trained(),
            Inputs::Separate { qkv, z, b, a } => [qkv, z, b, a].into_iter().any(Linear::is_trained),
        };
        let vectors = [&self.a_log, &self.dt_bias, &self.norm].into_iter().any(Weight::is_trained);
        inputs || vectors || self.conv1d.is_trained() || self.out_proj.is_trained()
    }

    /// `[T, hidden]` to the same.
    #[must_use]
    pub fn forward(&self, x: impl Into<Input<2>>, context: &Context, pass: &Pass<'_>) -> Tensor<2> {
        let x = x.into();
        let [tokens, _] = x.tensor().dims();
        let GatedDeltaSpec { key_heads, value_heads, key_dim, value_dim, kernel, .. } = self.spec;
        let Projected { qkv_TC, z_THV, b_TH, a_TH } = self.project(x, pass);
        let filter = pass.get(&self.conv1d).reshape([self.spec.convolved(), kernel]);
        let decay = |a_TH: Tensor<2>| {
            let dt_bias = pass.get(&self.dt_bias);
            // In f32 whatever the activations are: a decay is applied once a token, and its error with it.
            let a_TH = a_TH.cast(dt_bias.dtype()) + dt_bias.unsqueeze();
            // softplus(x) = -log σ(-x), which neither overflows nor loses its gradient at 0.
            let steps = activation::log_sigmoid(a_TH.neg());
            steps * pass.get(&self.a_log).exp().unsqueeze()
        };
        let (g_TH, beta_TH) = (decay(a_TH), activation::sigmoid(b_TH));
        let heads = |u_TC: Tensor<2>| {
            let keys = self.spec.keys();
            let part = |first: usize, width: usize| u_TC.clone().narrow(1, first, width);
            (
                part(0, keys).reshape([tokens, key_heads, key_dim]),
                part(keys, keys).reshape([tokens, key_heads, key_dim]),
                part(2 * keys, self.spec.values()).reshape([tokens, value_heads, value_dim]),
            )
        };
        let y_THV = match &context.cache {
            None => {
                let (q, k, v) = heads(kernels::causal_conv(qkv_TC, filter, None, &context.segments));
                kernels::gated_delta(q, k, v, g_TH, beta_TH, &context.segments)
            }
            Some(cache) => cache.recur(self.layer, &self.spec, (&qkv_TC.device(), qkv_TC.dtype()), |history, state| {
                let (u, history) = kernels::causal_conv_step(history, qkv_TC, filter, None);
                let (q, k, v) = heads(u);
                let (y, state) = kernels::gated_delta_step(state, q, k, v, g_TH, beta_TH);
                (y, history, state)
            }),
        };
        let y_THV = Input::gated_norm(y_THV, z_THV, pass.get(&self.norm), self.spec.norm_eps);
        self.out_proj.forward(y_THV.reshape([tokens, self.spec.values()]), pass)
    }

    fn project(&self, x: Input<2>, pass: &Pass<'_>) -> Projected {
        let [tokens, _] = x.tensor().dims();
        let GatedDeltaSpec { key_heads, value_heads, key_dim, value_dim, .. } = self.spec;
        match &self.inputs {
            Inputs::Separate { qkv, z, b, a } => {
                let [qkv_TC, z, b_TH, a_TH] = Linear::forward_all([qkv, z, b, a], x, pass);
                Projected { qkv_TC, z_THV: z.reshape([tokens, value_heads, value_dim]), b_TH, a_TH }
            }
            Inputs::Grouped { qkvz, ba } => {
                let group = value_heads / key_heads;
                let width = group * value_dim;
                let [qkvz, ba] = Linear::forward_all([qkvz, ba], x, pass);
                let qkvz_TKX: Tensor<3> = qkvz.reshape([tokens, key_heads, 2 * (key_dim + width)]);
                let part = |first: usize, width: usize| qkvz_TKX.clone().narrow(2, first, width);
                let flat = |part: Tensor<3>, width: usize| -> Tensor<2> { part.reshape([tokens, key_heads * width]) };
                let ba_TKX: Tensor<3> = ba.reshape([tokens, key_heads, 2 * group]);
                Projected {
                    qkv_TC: Tensor::cat(
                        vec![
                            flat(part(0, key_dim), key_dim),
                            flat(part(key_dim, key_dim), key_dim),
                            flat(part(2 * key_dim, width), width),
                        ],
                        1,
                    ),
                    z_THV: part(2 * key_dim + width, width).reshape([tokens, value_heads, value_dim]),
                    b_TH: ba_TKX.clone().narrow(2, 0, group).reshape([tokens, value_heads]),
                    a_TH: ba_TKX.narrow(2, group, group).reshape([tokens, value_heads]),
                }
            }
        }
    }
}
