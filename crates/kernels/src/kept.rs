//! What a backward step reads of the forward pass.

use std::fmt;
use std::sync::{Arc, OnceLock};

use burn::Tensor;

use crate::Input;

/// A tensor in the form of its device that was held since the forward pass, or is formed when the first of its readers
/// asks for it and given back with the last.
#[derive(Clone, Debug)]
pub(crate) enum Kept<T> {
    /// Held.
    Held(T),
    /// Formed again; clones form it once for all.
    Formed(Arc<Formed<T>>),
}

pub(crate) struct Formed<T> {
    again: Box<dyn Fn() -> T + Send + Sync>,
    tensor: OnceLock<T>,
}

impl<T> Kept<T> {
    /// The input, which is `held` off the tape; `taken` makes the same of what it is formed to.
    pub(crate) fn new<const D: usize>(input: &Input<D>, held: T, taken: fn(Tensor<D>) -> T) -> Self
    where
        T: 'static,
    {
        match input.again().cloned() {
            None => Self::Held(held),
            Some(again) => {
                let again = Box::new(move || taken(again()));
                Self::Formed(Arc::new(Formed { again, tensor: OnceLock::new() }))
            }
        }
    }

    /// The tensor.
    pub(crate) fn tensor(&self) -> &T {
        match self {
            Self::Held(tensor) => tensor,
            Self::Formed(formed) => formed.tensor.get_or_init(&formed.again),
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Formed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Formed").field("tensor", &self.tensor).finish_non_exhaustive()
    }
}
