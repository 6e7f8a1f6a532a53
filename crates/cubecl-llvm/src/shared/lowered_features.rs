//! What a device may be said to do when LLVM compiles for it.

use cubecl_ir::DeviceProperties;

/// The kind of GPU that is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GpuTarget {
    /// NVIDIA, through PTX.
    Nvptx,
}

/// Leaves `properties` as they are: no kernel compiles here, so there is nothing to restrict.
pub fn restrict_features(_properties: &mut DeviceProperties, _target: GpuTarget) {}
