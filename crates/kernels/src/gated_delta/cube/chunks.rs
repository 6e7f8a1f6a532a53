//! The products of all chunks, and the states between them.

use burn::Tensor;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::kernels::{advance, written};
use super::mix::mixed;
use super::slots::Slots;
use super::{buffer, like};
use crate::gpu::Cube;
use crate::gpu::product::product;
use crate::gpu::tensor::primitive;

/// What a batch's chunks are before their states are known: `[P, H, 64, ..]`, all f32.
pub(super) struct Chunks {
    /// `q̂` and `k̂`.
    pub(super) q: Tensor<4>,
    pub(super) k: Tensor<4>,
    pub(super) v: Tensor<4>,
    /// `[P, H, 64]`.
    pub(super) g: CubeTensor,
    pub(super) beta: CubeTensor,
    /// `k̂·k̂ᵀ` and `q̂·k̂ᵀ`.
    pub(super) kk: Tensor<4>,
    pub(super) qk: Tensor<4>,
    /// `(I + M)⁻¹` and `P`.
    pub(super) inverse: Tensor<4>,
    pub(super) weights: Tensor<4>,
    /// `e^G`, `F` and beta as columns, `[P, H, 64, 1]`.
    pub(super) reach: Tensor<4>,
    pub(super) remains: Tensor<4>,
    pub(super) beta_column: Tensor<4>,
    /// U, which becomes N.
    pub(super) values: Tensor<4>,
    /// W.
    pub(super) reads: Tensor<4>,
    /// `F ⊙ k̂`.
    pub(super) faded_keys: Tensor<4>,
}

impl Chunks {
    pub(super) fn new(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, g: CubeTensor, beta: CubeTensor) -> Self {
        let kk = product(k.clone(), k.clone().swap_dims(2, 3));
        let qk = product(q.clone(), k.clone().swap_dims(2, 3));
        let outputs = [like(&kk), like(&kk)];
        let gates = [0; 2].map(|_| crate::gpu::tensor::empty(&g, g.meta.shape().clone(), DType::F32));
        mixed([&buffer(kk.clone()), &buffer(qk.clone()), &g, &beta], &outputs, &gates);
        let [inverse, weights] = outputs.map(Tensor::<4>::from_primitive::<Cube>);
        let column = |gate: CubeTensor| Tensor::<3>::from_primitive::<Cube>(gate).unsqueeze_dim::<4>(3);
        let [reach, remains] = gates.map(column);
        let beta_column = column(beta.clone());
        let values = product(inverse.clone(), v.clone() * beta_column.clone());
        let reads = product(inverse.clone(), k.clone() * (beta_column.clone() * reach.clone()));
        let faded_keys = k.clone() * remains.clone();
        Self { q, k, v, g, beta, kk, qk, inverse, weights, reach, remains, beta_column, values, reads, faded_keys }
    }

    /// `[P, H, dk, dv]`.
    fn state_shape(&self) -> [usize; 4] {
        let ([chunks, heads, _, key], [.., value]) = (self.k.dims(), self.v.dims());
        [chunks, heads, key, value]
    }

    /// `e^G` of each chunk's last token: what remains of a state. `[P, H, 64]`, the last column.
    pub(super) fn reach_buffer(&self) -> CubeTensor {
        buffer(self.reach.clone())
    }

    /// The states before each chunk, and the output.
    pub(super) fn forward(self, slots: &Slots) -> (Tensor<4>, Tensor<4>) {
        let states = Tensor::<4>::zeros(self.state_shape(), &self.q.device());
        let (reach, all_states, all_writes) =
            (self.reach_buffer(), primitive(states.clone()), buffer(self.values.clone()));
        for (index, step) in slots.steps.iter().enumerate() {
            let part = |all: &Tensor<4>, len| all.clone().narrow(0, step.start, len);
            if index > 0 {
                let read = product(part(&self.reads, step.len()), part(&states, step.len()));
                written(&buffer(read), &all_writes, step.start);
            }
            let after = slots.going_on(index);
            if after > 0 {
                let writes = Tensor::<4>::from_primitive::<Cube>(all_writes.clone());
                let added = product(part(&self.faded_keys, after).swap_dims(2, 3), part(&writes, after));
                advance(&buffer(added), &reach, &all_states, step.start, step.end);
            }
        }
        let writes = Tensor::<4>::from_primitive::<Cube>(all_writes);
        let own = product(self.weights, writes);
        let past = product(self.q * self.reach, states.clone());
        (states, own + past)
    }
}
