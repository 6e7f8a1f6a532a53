//! Tensors of the device: those a kernel reads made dense, those it writes made new.

use burn::Tensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;

use super::{Cube, Operand};

/// Units of a cube, where nothing else decides.
pub(crate) const CUBE_UNITS: u32 = 256;

/// The operand of a GPU form: an f32, bf16 or f16 tensor on a device of CubeCL, tracked or not.
pub(crate) fn float_operand<const D: usize>(tensor: &Tensor<D>) -> Option<Operand> {
    matches!(tensor.dtype(), DType::F32 | DType::BF16 | DType::F16).then(|| Operand::of(tensor)).flatten()
}

/// The tensor in C order: itself, or a copy where it is a strided view.
pub(crate) fn dense(operand: &Operand) -> CubeTensor {
    into_contiguous(operand.data())
}

/// A new tensor in C order on the device of `like`, not written yet.
pub(crate) fn empty(like: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    let shape = shape.into();
    let handle = like.client.empty(shape.num_elements() * dtype.size());
    CubeTensor::new_contiguous(like.client.clone(), like.device.clone(), shape, handle, dtype)
}

/// The same memory under another shape of as many elements; of a tensor in C order.
pub(crate) fn reshaped(tensor: CubeTensor, shape: impl Into<Shape>) -> CubeTensor {
    let CubeTensor { client, handle, device, dtype, .. } = tensor;
    CubeTensor::new_contiguous(client, device, shape.into(), handle, dtype)
}

/// What a kernel calls the type.
pub(crate) fn elem(dtype: DType) -> ElemType {
    ElemType::Float(match dtype {
        DType::F32 => FloatKind::F32,
        DType::BF16 => FloatKind::BF16,
        DType::F16 => FloatKind::F16,
        other => unreachable!("invariant: a tensor of {other:?} is no operand"),
    })
}

/// Elements a unit reads at once: as many as the narrowest of the types lets pass in 16 bytes, unless every length is not a
/// multiple of that.
pub(crate) fn vector_size(like: &CubeTensor, dtypes: &[DType], lengths: &[usize]) -> usize {
    let narrowest = dtypes.iter().map(|dtype| dtype.size()).min().unwrap_or(4);
    let most = (16 / narrowest).min(like.client.properties().hardware.max_vector_size).max(1);
    let fits = |size: &usize| lengths.iter().all(|length| length.is_multiple_of(*size));
    [8, 4, 2, 1].into_iter().filter(|size| *size <= most).find(fits).unwrap_or(1)
}

/// A unit an element (or vector).
pub(crate) fn elementwise(like: &CubeTensor, units: usize) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new_1d(CUBE_UNITS.min(like.client.properties().hardware.max_units_per_cube));
    (calculate_cube_count_elemwise(&like.client, units, dim), dim)
}

/// `[rows, columns]` summed over its rows, as `[columns]` of the type.
pub(crate) fn column_sums(sums: CubeTensor, dtype: DType) -> CubeTensor {
    primitive(Tensor::<2>::from_primitive::<Cube>(sums).sum_dim(0).squeeze_dim::<1>(0).cast(dtype))
}

/// The tensor behind a plain [`Tensor`] that was made of tensors of the device.
pub(crate) fn primitive<const D: usize>(tensor: Tensor<D>) -> CubeTensor {
    tensor.try_into_primitive::<Cube>().expect("invariant: made of tensors of this backend")
}
