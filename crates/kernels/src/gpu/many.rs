//! Many small flat tensors a launch: an adapter's are some hundreds, and a launch for each of them, for each thing done with
//! them, is thousands of launches a step that the host has to queue.
//!
//! Kernels take sequences of tensors, as torch's fused optimizers do; nothing is copied together and nothing moves.

use burn::Tensor;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::tensor::{dense, float_operand, vector_size};

/// An f32 tensor of a GPU without a tape, in C order.
pub(crate) fn plain(tensor: &Tensor<1>) -> Option<CubeTensor> {
    if tensor.dtype() != DType::F32 || tensor.is_tracked() {
        return None;
    }
    float_operand(tensor).map(|operand| dense(&operand))
}

/// What one launch takes.
pub(crate) struct Launch {
    /// Numbers that a unit reads at once: a size that divides all of the lengths.
    pub(crate) vector: usize,
    /// Which of the tensors.
    pub(crate) tensors: Vec<usize>,
}

/// Shares tensors of these lengths out among launches; empty ones are left out. Each tensor brings `buffers` of them, and
/// `others` come beside. A kernel holds the code for its tensors one after another: `most` keep it short.
pub(crate) fn launches(
    like: &CubeTensor,
    lengths: &[usize],
    most: usize,
    buffers: usize,
    others: usize,
) -> Vec<Launch> {
    let bindings = like.client.properties().hardware.max_bindings as usize;
    let most = (bindings.saturating_sub(others) / buffers).clamp(1, most);
    let vectors: Vec<usize> = lengths.iter().map(|&length| vector_size(like, &[DType::F32], &[length])).collect();
    let mut launches = Vec::new();
    for vector in [4, 2, 1] {
        let these: Vec<usize> = (0..lengths.len()).filter(|&at| lengths[at] > 0 && vectors[at] == vector).collect();
        launches.extend(these.chunks(most).map(|part| Launch { vector, tensors: part.to_vec() }));
    }
    launches
}

/// Where the vectors of each of a launch's tensors end, counted over all of them.
pub(crate) fn ends(launch: &Launch, lengths: &[usize]) -> Vec<usize> {
    let mut end = 0;
    let next = |&tensor: &usize| {
        end += lengths[tensor] / launch.vector;
        end
    };
    launch.tensors.iter().map(next).collect()
}
