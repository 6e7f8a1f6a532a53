//! What a backward step reads of the forward pass, and weights as it keeps them.

use std::fmt;
use std::sync::{Arc, OnceLock};

use burn::Tensor;

use super::Operand;
use super::tensor::float_operand;
use crate::Input;
use crate::blocks::{Blocks, Weight};
use crate::input::Again;

/// A plain tensor that was held since the forward pass, or is formed when the first of its readers asks for it and given
/// back with the last.
#[derive(Clone, Debug)]
pub(crate) enum Kept<const D: usize> {
    Held(Tensor<D>),
    Formed(Arc<Formed<D>>),
}

pub(crate) struct Formed<const D: usize> {
    again: Again<D>,
    tensor: OnceLock<Tensor<D>>,
}

impl<const D: usize> Kept<D> {
    /// The input, which is `plain` off the tape; clones of one are formed once for all.
    pub(crate) fn of(input: &Input<D>, plain: Tensor<D>) -> Self {
        match input.again() {
            None => Self::Held(plain),
            Some(again) => Self::Formed(Arc::new(Formed { again: again.clone(), tensor: OnceLock::new() })),
        }
    }

    pub(crate) fn get(&self) -> Tensor<D> {
        match self {
            Self::Held(tensor) => tensor.clone(),
            Self::Formed(formed) => formed.tensor.get_or_init(|| (formed.again)()).clone(),
        }
    }
}

impl<const D: usize> fmt::Debug for Formed<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Formed").field("tensor", &self.tensor).finish_non_exhaustive()
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
