//! Tensors that are formed again for a backward pass instead of being kept.

use std::fmt;
use std::sync::Arc;

use burn::Tensor;

/// What an operation takes: a tensor, and where that is cheaper than keeping it for the backward pass, how it is formed again.
///
/// Made of a tensor, which is then kept where its values are needed, or by the operation that forms it: [`Input::rms_norm`],
/// [`Input::norm_rope`], [`Input::swiglu`], [`Input::swiglu_joined`], [`Input::sigmoid_gate`], [`Input::gated_norm`]. What it is
/// formed again from is what that operation keeps itself, and it has the same bits then.
#[derive(Clone)]
pub struct Input<const D: usize> {
    tensor: Tensor<D>,
    again: Option<Again<D>>,
}

/// Forms a plain tensor.
pub(crate) type Again<const D: usize> = Arc<dyn Fn() -> Tensor<D> + Send + Sync>;

impl<const D: usize> Input<D> {
    /// A tensor that `again` forms with the same bits.
    #[cfg(any(feature = "cpu", feature = "gpu"))]
    pub(crate) fn formed_by(tensor: Tensor<D>, again: impl Fn() -> Tensor<D> + Send + Sync + 'static) -> Self {
        Self { tensor, again: Some(Arc::new(again)) }
    }

    /// A tensor that `again` forms with the same bits, of operands that it takes because it took them before.
    #[cfg(feature = "gpu")]
    pub(crate) fn formed_as(tensor: Tensor<D>, again: impl Fn() -> Option<Tensor<D>> + Send + Sync + 'static) -> Self {
        Self::formed_by(tensor, move || again().expect("invariant: these operands were taken before"))
    }

    /// The tensor.
    pub fn tensor(&self) -> &Tensor<D> {
        &self.tensor
    }

    /// The tensor alone.
    pub fn into_tensor(self) -> Tensor<D> {
        self.tensor
    }

    #[cfg(any(feature = "cpu", feature = "gpu"))]
    pub(crate) fn again(&self) -> Option<&Again<D>> {
        self.again.as_ref()
    }

    /// The same elements in another shape.
    #[must_use]
    pub fn reshape<const E: usize>(self, shape: [usize; E]) -> Input<E> {
        let again = self.again.map(|again| -> Again<E> { Arc::new(move || again().reshape(shape)) });
        Input { tensor: self.tensor.reshape(shape), again }
    }
}

impl<const D: usize> From<Tensor<D>> for Input<D> {
    fn from(tensor: Tensor<D>) -> Self {
        Self { tensor, again: None }
    }
}

impl<const D: usize> fmt::Debug for Input<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Input")
            .field("tensor", &self.tensor.dims())
            .field("formed_again", &self.again.is_some())
            .finish()
    }
}

#[cfg(all(test, feature = "cpu"))]
mod tests;
