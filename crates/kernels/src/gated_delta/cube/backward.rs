//! Gradients of all chunks: what needs no gradient of a state at once, the states' from last to first, then the rest at once.

use burn::Tensor;
use burn_cubecl::tensor::CubeTensor;

use super::chunks::Chunks;
use super::kernels::{added, following, regressed};
use super::mix::mixed_backward;
use super::slots::Slots;
use super::{buffer, like};
use crate::gpu::Cube;
use crate::gpu::product::product;

/// Gradients of `q̂`, `k̂`, v, g and beta, in chunks.
pub(super) struct Change {
    pub(super) dq: Tensor<4>,
    pub(super) dk: Tensor<4>,
    pub(super) dv: Tensor<4>,
    pub(super) dg: Tensor<3>,
    pub(super) dbeta: Tensor<3>,
}

impl Chunks {
    /// With `dS'` the gradient of the state after a chunk: `dN = Pᵀ·dO + (F ⊙ k̂)·dS'`,
    /// `dS = e^G[last]·dS' + (e^G ⊙ q̂)ᵀ·dO - Wᵀ·dN`, one chunk of all sequences after another; then, with
    /// `dX = (I + M)⁻ᵀ·dN` for `X = beta ⊙ R`: `dM = -dX·Nᵀ`, `dP = dO·Nᵀ`, `dv = beta ⊙ dX`,
    /// `dk̂ = -e^G ⊙ beta ⊙ dX·Sᵀ + F ⊙ N·dS'ᵀ` and `dq̂ = e^G ⊙ dO·Sᵀ` beside what comes from M and P.
    pub(super) fn backward(self, slots: &Slots, states: Tensor<4>, dout: Tensor<4>) -> Change {
        let transposed = |x: &Tensor<4>| x.clone().swap_dims(2, 3);
        let writes = self.values.clone() - product(self.reads.clone(), states.clone());
        let dwrites = product(transposed(&self.weights), dout.clone());
        let scaled_q = self.q.clone() * self.reach.clone();
        let dstates = product(transposed(&scaled_q), dout.clone());
        self.sweep(slots, &buffer(dwrites.clone()), &buffer(dstates.clone()));

        let dlast = Tensor::<4>::from_primitive::<Cube>(following(&buffer(dstates), &slots.next));
        let dfaded = product(writes.clone(), transposed(&dlast));
        let derrors = product(transposed(&self.inverse), dwrites);
        let key_reads = product(self.k.clone(), states.clone()) * self.reach.clone();
        let query_reads = product(scaled_q, states.clone());
        let dv = derrors.clone() * self.beta_column.clone();
        let dbeta = (derrors.clone() * (self.v.clone() - key_reads.clone())).sum_dim(3);
        let read = (dout.clone() * query_reads - dv.clone() * key_reads).sum_dim(3);
        let fades = (dfaded.clone() * self.faded_keys.clone()).sum_dim(3);
        let whole = (states.clone() * dlast).sum_dim(3).sum_dim(2);

        let dmix = product(derrors, transposed(&writes));
        let dweights = product(dout.clone(), transposed(&writes));
        let reach = self.reach_buffer();
        let outputs = [like(&dmix), like(&dmix)];
        let gates = [like(&fades), like(&fades)];
        let inputs = [&dmix, &dweights, &self.kk, &self.qk, &read, &fades, &whole].map(|x| buffer(x.clone()));
        mixed_backward(&inputs, [&self.g, &self.beta, &reach], &outputs, &gates);
        let [dkk, dqk] = outputs.map(Tensor::<4>::from_primitive::<Cube>);
        let [dg, dbeta_of_mix] = gates.map(|gate| Tensor::<4>::from_primitive::<Cube>(gate).squeeze_dim::<3>(3));

        // k̂·k̂ᵀ depends on k̂ from both sides.
        let both = dkk.clone() + transposed(&dkk);
        let dk = product(both, self.k.clone()) + product(transposed(&dqk), self.q.clone())
            - product(dv.clone() * self.reach.clone(), transposed(&states))
            + dfaded * self.remains.clone();
        let dq = product(dqk, self.k.clone()) + product(dout * self.reach.clone(), transposed(&states));
        Change { dq, dk, dv, dg, dbeta: dbeta.squeeze_dim::<3>(3) + dbeta_of_mix }
    }

    /// Adds to `dwrites` and `dstates`, `[P, H, ..]`, what comes from the chunks behind.
    fn sweep(&self, slots: &Slots, dwrites: &CubeTensor, dstates: &CubeTensor) {
        let reach = self.reach_buffer();
        for (index, step) in slots.steps.iter().enumerate().rev() {
            let after = slots.going_on(index);
            let all = |buffer: &CubeTensor| Tensor::<4>::from_primitive::<Cube>(buffer.clone());
            if after > 0 {
                let dlast = all(dstates).narrow(0, step.end, after);
                let change = product(self.faded_keys.clone().narrow(0, step.start, after), dlast);
                added(&buffer(change), dwrites, step.start);
            }
            if index > 0 {
                let reads = self.reads.clone().narrow(0, step.start, step.len()).swap_dims(2, 3);
                let change = product(reads, all(dwrites).narrow(0, step.start, step.len()));
                regressed(&buffer(change), &reach, dstates, step.start, step.end, after);
            }
        }
    }
}
