//! The gated delta rule on a GPU: everything inside chunks at once, as batched products, and the states from chunk to chunk of
//! all sequences side by side.
//!
//! With the names of `chunk.rs` beside this: `U = (I + M)⁻¹·(beta ⊙ v)` and `W = (I + M)⁻¹·(beta ⊙ e^G ⊙ k̂)` need no
//! state, so that of a chunk `N = U - W·S` and the state after it, `e^G[last]·S + (F ⊙ k̂)ᵀ·N` with `F = e^(G[last] - G)`, are
//! all that is computed one after another (Yang, Wang, Zhang, Shen and Kim, 2024): two products and two kernels for each
//! 64 tokens of the longest sequence, whatever the batch.
//!
//! Products of f32 numbers. A token and value head of `dk = dv = 128` takes about 0.5 M operations forwards and 1.3 M backwards,
//! and its chunks move about 12 KiB forwards and 30 KiB backwards through memory, most of it states: bound by memory, and
//! where sequences are few by the time of a launch.

mod backward;
mod chunks;
mod kernels;
mod mix;
mod slots;

use std::sync::Arc;

use burn::Tensor;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::EPS;
use crate::Segments;
use crate::gpu::norm::{Behind, Norm};
use crate::gpu::tensor::{dense, empty, float_operand, primitive};
use crate::gpu::{Cube, Operand};
use crate::tape::record;
use chunks::Chunks;
use slots::Slots;

/// Tokens of a chunk.
const CHUNK: usize = 64;

/// `None` when an operand is not a tensor of a GPU, or q, k and v differ in their type.
pub(super) fn gated_delta(
    q: &Tensor<3>,
    k: &Tensor<3>,
    v: &Tensor<3>,
    g: &Tensor<2>,
    beta: &Tensor<2>,
    segments: &Arc<Segments>,
) -> Option<Tensor<3>> {
    if q.dtype() != v.dtype() || k.dtype() != v.dtype() || v.dims()[0] == 0 {
        return None;
    }
    let parents = [float_operand(q)?, float_operand(k)?, float_operand(v)?, float_operand(g)?, float_operand(beta)?];
    let data = parents.each_ref().map(dense);
    let rule = Rule { slots: Slots::new(segments, &data[0]), data };
    let chunks = rule.chunks();
    let (states, out) = chunks.forward(&rule.slots);
    let out = rule.slots.gather_back(&out, rule.value_heads(), rule.data[2].dtype);
    Some(record(Step, parents, out, || Saved { rule, states }))
}

/// q, k, v, g and beta in C order, and where their tokens lie in chunks.
#[derive(Clone, Debug)]
struct Rule {
    data: [CubeTensor; 5],
    slots: Slots,
}

impl Rule {
    fn value_heads(&self) -> usize {
        self.data[2].meta.shape()[1]
    }

    fn key_heads(&self) -> usize {
        self.data[1].meta.shape()[1]
    }

    /// Numbers the queries are multiplied by once their length is 1.
    fn scale(&self) -> f64 {
        (self.data[0].meta.shape()[2] as f64).powf(-0.5)
    }

    /// q or k, in f32, to be brought to the length `scale`: a norm whose mean is a sum.
    fn unit(&self, heads: &CubeTensor, scale: f64) -> Norm {
        let size = heads.meta.shape()[2];
        let x = Tensor::<3>::from_primitive::<Cube>(heads.clone()).cast(DType::F32);
        let weight = Tensor::<1>::full([size], scale / (size as f64).sqrt(), &x.device());
        Norm { x: primitive(x), weight: primitive(weight), offset: 0.0, behind: Behind::Nothing }
    }

    /// The norms of q and k.
    fn units(&self) -> [Norm; 2] {
        [self.unit(&self.data[0], self.scale()), self.unit(&self.data[1], 1.0)]
    }

    /// What is added to the mean of a head's squares.
    fn eps(&self) -> f64 {
        EPS / self.data[0].meta.shape()[2] as f64
    }

    fn chunks(&self) -> Chunks {
        let [q, k] = self.units().map(|unit| unit.forward(self.eps()).0);
        let heads = self.value_heads();
        let [q, k, v] =
            [&q, &k, &self.data[2]].map(|x| Tensor::<4>::from_primitive::<Cube>(self.slots.gather(x, heads)));
        let [g, beta] = [&self.data[3], &self.data[4]].map(|x| self.slots.gather(x, heads));
        Chunks::new(q, k, v, g, beta)
    }
}

#[derive(Debug)]
struct Step;

#[derive(Clone, Debug)]
struct Saved {
    rule: Rule,
    /// The state before each chunk, `[P, H, dk, dv]`.
    states: Tensor<4>,
}

impl Backward<Cube, 5> for Step {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 5>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dout = dense(&Operand::constant(grads.consume::<Cube>(&ops.node)));
        let Saved { rule, states } = ops.state;
        let dout = Tensor::<4>::from_primitive::<Cube>(rule.slots.gather(&dout, rule.value_heads()));
        let change = rule.chunks().backward(&rule.slots, states, dout);
        let heads = |gradient: &Tensor<4>, heads| rule.slots.gather_back(gradient, heads, DType::F32);
        let units = rule.units();
        let of_unit = |norm: &Norm, gradient: &Tensor<4>, dtype| {
            let gradient = heads(gradient, rule.key_heads());
            let (_, rstd) = norm.forward(rule.eps());
            let gradient = norm.input_gradient(&gradient, &rstd).0;
            primitive(Tensor::<3>::from_primitive::<Cube>(gradient).cast(dtype))
        };
        let dtypes = rule.data.each_ref().map(|data| data.dtype);
        let gate = |gradient: &Tensor<3>, dtype| {
            let gradient: Tensor<4> = gradient.clone().unsqueeze_dim(3);
            rule.slots.gather_back(&gradient, rule.value_heads(), dtype)
        };
        let gradients = [
            of_unit(&units[0], &change.dq, dtypes[0]),
            of_unit(&units[1], &change.dk, dtypes[1]),
            rule.slots.gather_back(&change.dv, rule.value_heads(), dtypes[2]),
            gate(&change.dg, dtypes[3]),
            gate(&change.dbeta, dtypes[4]),
        ];
        for ((node, gradient), like) in ops.parents.into_iter().zip(gradients).zip(&rule.data) {
            if let Some(node) = node {
                let shape = like.meta.shape().clone();
                grads.register::<Cube>(node.id, crate::gpu::tensor::reshaped(gradient, shape));
            }
        }
    }
}

/// A new tensor of the shape and type of a plain one.
fn like<const D: usize>(tensor: &Tensor<D>) -> CubeTensor {
    let tensor = primitive(tensor.clone());
    empty(&tensor, tensor.meta.shape().clone(), tensor.dtype)
}

/// Dense, as kernels read it.
fn buffer<const D: usize>(tensor: Tensor<D>) -> CubeTensor {
    dense(&Operand::constant(primitive(tensor)))
}
