//! NVIDIA's PTX.

pub mod ptx_version;
