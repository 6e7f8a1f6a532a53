//! What a backward step reads of the forward pass, and weights as it keeps them.

use burn::Tensor;

use super::Operand;
use super::tensor::float_operand;
use crate::Input;
use crate::blocks::{Blocks, Weight};

/// See [`crate::kept::Kept`].
pub(crate) type Kept<const D: usize> = crate::kept::Kept<Tensor<D>>;

impl<const D: usize> Kept<D> {
    /// The input, which is `plain` off the tape.
    pub(crate) fn of(input: &Input<D>, plain: Tensor<D>) -> Self {
        Self::new(input, plain, |tensor| tensor)
    }

    pub(crate) fn get(&self) -> Tensor<D> {
        self.tensor().clone()
    }
}

/// A weight of products, with the operand that gets its gradient; none for blocks.
pub(crate) fn weight_operand<const D: usize>(weight: &Weight<D>) -> Option<(Option<Blocks<D>>, Option<Operand>)> {
    match weight {
        Weight::Dense(tensor) => Some((None, Some(float_operand(tensor)?))),
        Weight::Blocks(blocks) => Some((Some(blocks.clone()), None)),
    }
}

/// A weight off the tape, in the type of its products.
#[derive(Clone, Debug)]
pub(crate) enum Held<const D: usize> {
    Dense(Tensor<D>),
    /// Decoded for each use and given back behind it.
    Blocks(Blocks<D>),
}

impl<const D: usize> Held<D> {
    /// Its shape.
    pub(crate) fn dims(&self) -> [usize; D] {
        match self {
            Self::Dense(tensor) => tensor.dims(),
            Self::Blocks(blocks) => blocks.dims(),
        }
    }

    /// Its numbers on the device of `x`, in the type of `x`.
    pub(crate) fn beside<const E: usize>(&self, x: &Tensor<E>) -> Tensor<D> {
        match self {
            Self::Dense(tensor) => tensor.clone(),
            Self::Blocks(blocks) => blocks.dense(&x.device().without_autodiff(), x.dtype()),
        }
    }
}
