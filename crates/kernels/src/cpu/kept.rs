//! What a backward step reads of the forward pass.

use std::fmt;
use std::sync::{Arc, OnceLock};

use burn::Tensor;
use burn::backend::Flex;
use burn_flex::FlexTensor;

use super::operand::contiguous;
use crate::Input;

/// A tensor that was held since the forward pass, or is formed when the first of its readers asks for it and given back with
/// the last.
#[derive(Clone, Debug)]
pub(crate) enum Kept {
    Held(FlexTensor),
    Formed(Arc<Formed>),
}

pub(crate) struct Formed {
    again: Box<dyn Fn() -> FlexTensor + Send + Sync>,
    tensor: OnceLock<FlexTensor>,
}

impl Kept {
    /// The input, whose data is `data`; clones of one are formed once for all.
    pub(crate) fn of<const D: usize>(input: &Input<D>, data: FlexTensor) -> Self {
        match input.again().cloned() {
            None => Self::Held(data),
            Some(again) => {
                let again = move || plain(again());
                Self::Formed(Arc::new(Formed { again: Box::new(again), tensor: OnceLock::new() }))
            }
        }
    }

    pub(crate) fn get(&self) -> &FlexTensor {
        match self {
            Self::Held(tensor) => tensor,
            Self::Formed(formed) => formed.tensor.get_or_init(|| contiguous((formed.again)())),
        }
    }
}

/// A tensor off the tape that a CPU form has made.
fn plain<const D: usize>(tensor: Tensor<D>) -> FlexTensor {
    tensor.try_into_primitive::<Flex>().expect("invariant: formed by a CPU form, off the tape")
}

impl fmt::Debug for Formed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Formed").field("tensor", &self.tensor).finish_non_exhaustive()
    }
}
