//! A gate between 0 and 1: on the output of attention (Qwen3-Next), on the shared expert.

#[cfg(feature = "gpu")]
mod cube;
#[cfg(feature = "cpu")]
mod flex;
pub(crate) mod reference;

use burn::Tensor;

use crate::Input;

/// `x ⊙ σ(gate)`, with `σ(g) = 1/(1 + exp(-g))`. `gate` has the shape of `x`, or a last axis of 1: one gate a row.
///
/// Kept for backward: `x` and `gate`.
pub fn sigmoid_gate<const D: usize>(x: Tensor<D>, gate: Tensor<D>) -> Tensor<D> {
    Input::sigmoid_gate(x, gate).into_tensor()
}

impl<const D: usize> Input<D> {
    /// [`sigmoid_gate`].
    pub fn sigmoid_gate(x: Tensor<D>, gate: Tensor<D>) -> Self {
        let (dims, gates) = (x.dims(), gate.dims());
        assert!(
            dims[..D - 1] == gates[..D - 1] && (gates[D - 1] == dims[D - 1] || gates[D - 1] == 1),
            "sigmoid_gate: x is {dims:?}, gate {gates:?}"
        );
        assert_eq!(x.dtype(), gate.dtype(), "sigmoid_gate: x and gate must have one dtype");
        #[cfg(feature = "cpu")]
        if let Some(y) = flex::sigmoid_gate(&x, &gate) {
            return y;
        }
        #[cfg(feature = "gpu")]
        if let Some(y) = cube::sigmoid_gate(&x, &gate) {
            let (x, gate) = (x.inner(), gate.inner());
            return Self::formed_as(y, move || cube::sigmoid_gate(&x, &gate));
        }
        reference::sigmoid_gate(x, gate).into()
    }
}

#[cfg(all(test, feature = "cpu"))]
mod tests;
