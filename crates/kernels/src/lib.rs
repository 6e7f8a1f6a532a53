//! The operations a decoder is made of: reference form, fast form, backward.
//!
//! Every public function takes [`burn::Tensor`]s, plain or with autodiff, on any device; constants mix freely with
//! tracked tensors and get no gradient. Each operation has its own directory:
//!
//! | file | what it holds |
//! |---|---|
//! | `mod.rs` | the public function: shapes, formula, what is kept for the backward pass |
//! | `reference.rs` | plain tensor operations: the oracle, and the form for every device without an own one |
//! | `flex.rs` | the CPU form for tensors on burn-flex: vectorised, threaded, hand-written backward |
//! | `cube.rs` | the GPU form: kernels in CubeCL, for CUDA, Vulkan, Metal and DX12, hand-written backward |
//!
//! Letters in shapes: `T` tokens of all sequences on one flat axis, `N` query heads, `K` key/value heads, `d` head
//! size, `D` hidden size, `V` vocabulary, `r` adapter rank; in linear attention `C` channels of the convolution, `K` key
//! heads of size `dk`, `H` value heads of size `dv`.
//!
//! Where a CPU form takes bf16 tensors, arithmetic is f32 and each result is rounded once; statistics kept for backward and
//! gradients of f32 weights stay f32.
//!
//! Weights of products are tensors or, frozen, blocks of few bits ([`Blocks`]).
//!
//! The CPU forms give the same bits for the same inputs, whatever the number of threads.
#![allow(non_snake_case, reason = "shape suffixes: `scores_NLL` is [heads, length, length]")]

mod accumulate;
mod adamw;
mod adamw_compact;
mod add;
mod attention;
mod blocks;
mod causal_conv;
#[cfg(feature = "cpu")]
mod cpu;
mod dropout;
mod gated_delta;
mod gated_norm;
#[cfg(feature = "gpu")]
mod gpu;
mod grouped_linear;
mod host_copy;
mod input;
#[cfg(any(feature = "cpu", feature = "gpu"))]
mod kept;
mod linear;
mod norm_rope;
mod rms_norm;
mod rope;
mod routing;
mod seed;
mod segments;
mod sigmoid_gate;
mod softmax;
mod swiglu;
#[cfg(feature = "gpu")]
mod tape;
mod token_logp;

#[cfg(all(test, feature = "cpu"))]
mod oracle;

/// Every operation in plain tensor operations, for whoever compares: tests, benches, a new device.
pub mod reference {
    pub use crate::accumulate::reference::accumulate;
    pub use crate::adamw::reference::{adamw, global_norm};
    pub use crate::adamw_compact::reference::adamw_compact;
    pub use crate::add::reference::add;
    pub use crate::attention::reference::attention;
    pub use crate::causal_conv::reference::causal_conv;
    pub use crate::gated_delta::reference::{gated_delta, gated_delta_step};
    pub use crate::gated_norm::reference::gated_norm;
    pub use crate::grouped_linear::reference::grouped_linear;
    pub use crate::linear::reference::linear;
    pub use crate::norm_rope::reference::norm_rope;
    pub use crate::rms_norm::reference::rms_norm;
    pub use crate::rope::reference::rope;
    pub use crate::routing::reference::{combine, spread};
    pub use crate::seed::reference::seed;
    pub use crate::sigmoid_gate::reference::sigmoid_gate;
    pub use crate::softmax::reference::softmax;
    pub use crate::swiglu::reference::{swiglu, swiglu_joined};
    pub use crate::token_logp::reference::{head_loss, token_logp};
}

pub use accumulate::accumulate;
pub use adamw::{AdamW, Norm, NormCopy, Trained, adamw, adamw_clipped, clip, global_norm};
pub use adamw_compact::{BLOCK as CODE_BLOCK, Codes, CompactTrained, DynamicMap, Moment, adamw_compact};
pub use add::add;
pub use attention::attention;
pub use blocks::{Blocks, Ggml, HostNumbers, Int8, Nf4, Packed, Weight, decodes_ggml};
pub use causal_conv::{causal_conv, causal_conv_step};
#[cfg(feature = "cpu")]
pub use cpu::product::{Instructions, instructions};
pub use dropout::Dropout;
pub use gated_delta::{gated_delta, gated_delta_step};
pub use gated_norm::gated_norm;
pub use grouped_linear::{Groups, grouped_linear};
pub use host_copy::HostCopy;
pub use input::Input;
pub use linear::{Adapter, Projection, linear, projections};
pub use norm_rope::norm_rope;
pub use rms_norm::rms_norm;
pub use rope::rope;
pub use routing::{Routes, combine, spread};
pub use seed::seed;
pub use segments::Segments;
pub use sigmoid_gate::sigmoid_gate;
pub use softmax::softmax;
pub use swiglu::{swiglu, swiglu_joined};
pub use token_logp::{HeadLoss, chunk_tokens, head_loss, most_chunk_tokens, own_memory, token_logp};

/// Whether the linear maps of this device take a weight in bf16 beside activations in f32 where it lies, widening it on its
/// way into a product: exactly what they would make of its f32 copy, for half the memory.
#[must_use]
pub fn takes_bf16_weights(device: &burn::tensor::Device) -> bool {
    #[cfg(feature = "cpu")]
    return burn::Tensor::<1>::zeros([1], device).try_into_primitive::<burn::backend::Flex>().is_ok();
    #[cfg(not(feature = "cpu"))]
    {
        let _ = device;
        false
    }
}

/// Whether products of this device decode weights in blocks on their way; elsewhere each use decodes a weight whole, on the
/// host.
#[must_use]
pub fn decodes_blocks(device: &burn::tensor::Device) -> bool {
    // As of bf16: what is packed for the tiles may come from anything.
    takes_bf16_weights(device)
}

/// Runs `f` on a thread of the pool that the CPU forms share their work among, or where it is on such a thread already,
/// there. From outside, each operation would hand its work over and sleep until a thread of the pool has done it: thousands
/// of changes of threads a step.
pub fn on_pool<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| f())
}
