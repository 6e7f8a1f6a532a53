//! The update and the norm on a GPU, of as many tensors a launch as it takes ([`crate::gpu::many`]).

mod norm;
mod update;

pub(super) use norm::{Total, total};
pub(super) use update::{Clip, adamw};
