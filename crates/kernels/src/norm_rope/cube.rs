//! Norm and rotation on a GPU: one kernel in each direction.

use burn::Tensor;

use crate::gpu::norm::Behind;
use crate::gpu::tensor::{dense, float_operand};
use crate::rms_norm::cube::normed;
use crate::rope::cube::f32_angles;

/// `None` when an operand is not a tensor of a GPU, or the angles are not f32.
pub(super) fn norm_rope(
    x: &Tensor<3>,
    weight: &Tensor<1>,
    angles: [&Tensor<2>; 2],
    eps: f64,
    zero_centred: bool,
) -> Option<Tensor<3>> {
    let parents = [float_operand(x)?, float_operand(weight)?];
    let [cos, sin] = f32_angles(angles)?;
    Some(normed(parents, eps, zero_centred, Behind::Rotation(dense(&cos), dense(&sin))))
}
