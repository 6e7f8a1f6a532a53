//! What a backward step of a CPU form reads of the forward pass.

use burn::Tensor;
use burn::backend::Flex;
use burn_flex::FlexTensor;

use super::operand::contiguous;
use crate::Input;

/// See [`crate::kept::Kept`].
pub(crate) type Kept = crate::kept::Kept<FlexTensor>;

impl Kept {
    /// The input, whose data is `data`.
    pub(crate) fn of<const D: usize>(input: &Input<D>, data: FlexTensor) -> Self {
        Self::new(input, data, |tensor| contiguous(plain(tensor)))
    }

    pub(crate) fn get(&self) -> &FlexTensor {
        self.tensor()
    }
}

/// A tensor off the tape that a CPU form has made.
fn plain<const D: usize>(tensor: Tensor<D>) -> FlexTensor {
    tensor.try_into_primitive::<Flex>().expect("invariant: formed by a CPU form, off the tape")
}
