//! What the GPU forms of all operations stand on: kernels in CubeCL, which become CUDA C++ on `cuda`, WGSL on `wgpu` and
//! SPIR-V on `vulkan`.
//!
//! Arithmetic is f32; tensors lie in memory as f32, bf16 or f16. Nothing here waits for the device: a kernel is queued and
//! its outputs are handles. Every kernel is told how its rows are spread over units ([`group::Group`]); which of the
//! candidates is best is a matter of the device's planes and vectors, never of the numbers.

pub(crate) mod combine;
pub(crate) mod dropout;
pub(crate) mod float;
pub(crate) mod gather;
pub(crate) mod group;
pub(crate) mod kept;
pub(crate) mod many;
pub(crate) mod norm;
pub(crate) mod pack;
pub(crate) mod places;
pub(crate) mod product;
pub(crate) mod tensor;

/// The backend of all GPUs.
pub(crate) use burn::backend::Cube;

/// An operand of a GPU form.
pub(crate) type Operand = crate::tape::Operand<Cube>;
