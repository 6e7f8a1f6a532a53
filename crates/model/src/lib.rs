//! The forward pass on Burn: modules, adapters, building from weights, generation.
//!
//! Modules hold frozen tensors or slots of [`Parameters`]; a [`Pass`] says with which values, with or without a tape and
//! with or without adapters one forward runs. So there is one forward function per module, and the reference model of a
//! preference objective is the same model with adapters off.

#![expect(non_snake_case, reason = "tensors carry their axes as suffixes, `q_TNH`; each file has a legend")]

mod attention;
mod build;
mod config;
mod context;
mod decoder;
mod frozen;
mod gated_delta;
mod generate;
mod importance;
mod linear;
mod mlp;
mod norm;
mod packed;
mod parameters;
mod sparse;
mod training;

pub use attention::Attention;
pub use build::{BuildError, Builder, mix};
pub use burn::tensor::Device;
pub use config::{ComputeDtype, FullConfig, LoraConfig, Master, ModelConfig, Quantize};
pub use context::{Cache, Context};
pub use decoder::{Block, Decoder, ModelPart};
pub use frozen::Storage;
pub use gated_delta::GatedDelta;
pub use generate::{Generation, Sampling, StopReason, generate};
pub use importance::Importance;
pub use linear::{Linear, Lora};
pub use mlp::Mlp;
pub use norm::RmsNorm;
pub use packed::quantised_bytes;
pub use parameters::{Matrix, Parameter, Parameters, Pass, Weight};
pub use sparse::{Experts, Routing, Sparse, Spread};
pub use training::{FullPlan, LoraModule, LoraPlan, Training};
