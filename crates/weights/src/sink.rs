//! [`TensorSink`]: a place that tensors are written to, one after another.

use std::path::PathBuf;

use crate::{TensorInfo, WeightError};

/// Takes tensors in an order announced beforehand: file formats put the header first.
///
/// Dropping a sink that was not finished leaves nothing behind.
pub trait TensorSink {
    /// Announces every tensor, in the order they will be written. Called once, first.
    fn declare(&mut self, plan: &[TensorInfo]) -> Result<(), WeightError>;

    /// Writes the next tensor: the name that is due, and its bytes, little-endian in C order.
    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), WeightError>;

    /// Writes the next bytes of the tensor that is due: whole rows of its last axis. The tensor is written when all of
    /// them are, so that no more than a part of a large one need be in memory.
    fn write_part(&mut self, name: &str, bytes: &[u8]) -> Result<(), WeightError>;

    /// Makes what was written durable and gives it its final name.
    fn finish(self: Box<Self>) -> Result<Written, WeightError>;
}

/// What a finished sink has written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Written {
    /// The files, in the order they were written.
    pub files: Vec<PathBuf>,
    /// Tensors in them.
    pub tensors: usize,
    /// Bytes of tensor data, headers not counted.
    pub bytes: u64,
}
