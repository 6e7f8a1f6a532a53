//! The gated activation of the feed-forward block (Shazeer, 2020).

#[cfg(feature = "gpu")]
mod cube;
#[cfg(feature = "cpu")]
mod flex;
pub(crate) mod reference;

use burn::Tensor;

use crate::Input;

/// `silu(gate) ⊙ up`, with `silu(g) = g/(1 + exp(-g))`. Both are `[T, F]`.
///
/// Kept for backward: `gate` and `up`.
pub fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    Input::swiglu(gate, up).into_tensor()
}

/// [`swiglu`] of a gate and an up projection side by side, `[T, 2F]`: what one product with both weights gives.
///
/// Kept for backward: `both`.
pub fn swiglu_joined(both: Tensor<2>) -> Tensor<2> {
    Input::swiglu_joined(both).into_tensor()
}

impl Input<2> {
    /// [`swiglu`].
    pub fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Self {
        assert_eq!(gate.dims(), up.dims(), "swiglu: gate and up must have one shape");
        assert_eq!(gate.dtype(), up.dtype(), "swiglu: gate and up must have one dtype");
        #[cfg(feature = "cpu")]
        if let Some(y) = flex::swiglu(&gate, &up) {
            return y;
        }
        #[cfg(feature = "gpu")]
        if let Some(y) = cube::swiglu(&gate, &up) {
            let (gate, up) = (gate.inner(), up.inner());
            return Self::formed_as(y, move || cube::swiglu(&gate, &up));
        }
        reference::swiglu(gate, up).into()
    }

    /// [`swiglu_joined`].
    pub fn swiglu_joined(both: Tensor<2>) -> Self {
        assert!(both.dims()[1].is_multiple_of(2), "swiglu_joined: two halves of {:?}", both.dims());
        #[cfg(feature = "cpu")]
        if let Some(y) = flex::swiglu_joined(&both) {
            return y;
        }
        #[cfg(feature = "gpu")]
        if let Some(y) = cube::swiglu_joined(&both) {
            let both = both.inner();
            return Self::formed_as(y, move || cube::swiglu_joined(&both));
        }
        reference::swiglu_joined(both).into()
    }
}

#[cfg(all(test, feature = "cpu"))]
mod tests;
