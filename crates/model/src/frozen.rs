//! Frozen tensors on their device: the file mapping itself where the checkpoint holds them as the model does, else a copy.

use burn::tensor::{AllocationProperty, Bytes, DType, Device, Tensor, TensorData};
use qwen_tune_kernels::{HostNumbers, takes_bf16_weights};
use qwen_tune_qwen::memory::Offload;
use qwen_tune_qwen::{HeadSpec, ModelDir, Role, TensorSpec};
use qwen_tune_weights::{Dtype, MappedBytes, WeightError};

use crate::config::Quantize;
use crate::packed::{packed_bytes, pages_of_blocks, quantised_bytes};

/// How a model holds what is frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Storage {
    /// Number format of products, and of weights that are not in blocks.
    pub dtype: DType,
    /// What linear layers are quantised to.
    pub quantize: Quantize,
    /// What waits in host memory.
    pub offload: Offload,
    /// Frozen weights of blocks that lie in mapped files leave memory when a block has run: the next use has them from the
    /// file again.
    pub gives_back: bool,
}

impl From<DType> for Storage {
    fn from(dtype: DType) -> Self {
        Self { dtype, quantize: Quantize::None, offload: Offload::None, gives_back: false }
    }
}

impl Storage {
    /// Bytes of a frozen tensor on the device.
    #[must_use]
    pub fn bytes_of(self, model: &ModelDir, tensor: &TensorSpec, device: &Device) -> u64 {
        let is_matrix = tensor.shape.len() > 1;
        let blocks = if is_matrix { packed_bytes(model, tensor, self.quantize, device) } else { None };
        blocks.unwrap_or_else(|| tensor.elements() * weight_dtype(model, tensor, device, self.dtype).size() as u64)
    }

    /// What of mapped files a frozen tensor lies in as it is held on the CPU; nothing where it is a copy.
    #[must_use]
    pub fn pages_of(self, model: &ModelDir, tensor: &TensorSpec, device: &Device) -> Vec<MappedBytes> {
        if let Some(pages) = pages_of_blocks(model, tensor, self.quantize, device) {
            return pages;
        }
        if quantised_bytes(tensor, self.quantize).is_some() {
            return Vec::new();
        }
        let is_matrix = tensor.shape.len() > 1;
        let dtype = if is_matrix { weight_dtype(model, tensor, device, self.dtype) } else { DType::F32 };
        mapped_bytes(model, tensor, dtype).into_iter().collect()
    }
}

/// The format in which a frozen weight of products is held by a model of `dtype`: its own where that is exact and smaller.
pub(crate) fn weight_dtype(model: &ModelDir, tensor: &TensorSpec, device: &Device, dtype: DType) -> DType {
    let widened = dtype == DType::F32 && model.is_bf16(tensor) && takes_bf16_weights(device);
    if widened { DType::BF16 } else { dtype }
}

/// Whether a frozen matrix waits in host memory until it is used.
pub(crate) fn waits(model: &ModelDir, tensor: &TensorSpec, offload: Offload) -> bool {
    match (tensor.role, tensor.layer) {
        // Where it is the head's own matrix too, all of it is used in every step.
        (Role::Embedding, _) => offload >= Offload::Embedding && model.spec.head == HeadSpec::Own,
        (_, Some(_)) => offload >= Offload::Weights,
        _ => false,
    }
}

/// A tensor of the inventory in host memory, in the format in which products take it.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn host_numbers(model: &ModelDir, tensor: &TensorSpec, dtype: DType) -> Result<HostNumbers, WeightError> {
    let stored = if dtype == DType::BF16 { Dtype::BF16 } else { Dtype::F32 };
    if cfg!(target_endian = "little")
        && let Some(bytes) = model.mapped(tensor, stored)
    {
        return Ok(HostNumbers::new(bytes::Bytes::from_owner(bytes), dtype));
    }
    let data = copied(model, tensor, &tensor.shape, dtype)?.convert_dtype(dtype);
    Ok(HostNumbers::new(data.as_bytes().to_vec().into(), dtype))
}

/// A tensor of the inventory, held as `dtype`.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn frozen<const D: usize>(
    model: &ModelDir,
    tensor: &TensorSpec,
    shape: [usize; D],
    device: &Device,
    dtype: DType,
) -> Result<Tensor<D>, WeightError> {
    let data = match mapped(model, tensor, &shape, dtype) {
        Some(data) => data,
        None => copied(model, tensor, &shape, dtype)?,
    };
    Ok(Tensor::from_data(data, (device, dtype)))
}

/// Files are little-endian; elsewhere their bytes are no numbers yet.
fn mapped(model: &ModelDir, tensor: &TensorSpec, shape: &[usize], dtype: DType) -> Option<TensorData> {
    mapped_bytes(model, tensor, dtype).map(|bytes| in_place(bytes, shape, dtype))
}

fn mapped_bytes(model: &ModelDir, tensor: &TensorSpec, dtype: DType) -> Option<MappedBytes> {
    let stored = match dtype {
        DType::F32 => Dtype::F32,
        DType::BF16 => Dtype::BF16,
        _ => return None,
    };
    model.mapped(tensor, stored).filter(|_| cfg!(target_endian = "little"))
}

/// Data in the mapping. The first write to it, if there ever is one, copies it: see [`Bytes::from_shared`].
fn in_place(bytes: MappedBytes, shape: &[usize], dtype: DType) -> TensorData {
    let bytes = Bytes::from_shared(bytes::Bytes::from_owner(bytes), AllocationProperty::File);
    TensorData::from_bytes(bytes, shape.to_vec(), dtype)
}

fn copied(model: &ModelDir, tensor: &TensorSpec, shape: &[usize], dtype: DType) -> Result<TensorData, WeightError> {
    if dtype == DType::BF16
        && let Some(halves) = model.read_bf16(tensor)
    {
        return Ok(TensorData::from_bytes(Bytes::from_elems(halves), shape.to_vec(), dtype));
    }
    Ok(TensorData::new(model.read_f32(tensor)?, shape.to_vec()))
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use burn::backend::Flex;
    use qwen_tune_weights::{Checkpoint, Metadata, SafetensorsWriter, TensorInfo, TensorSink, TensorSource, encoding};

    use super::*;

    const VALUES: [f32; 6] = [1.5, -2.0, 3.25, 0.0, -0.5, 8.0];

    fn write(path: &Path, dtype: Dtype) -> Checkpoint {
        let info = TensorInfo::new("w", dtype, [2, 3]);
        let mut writer = SafetensorsWriter::create(path, Metadata::default()).unwrap();
        writer.declare(std::slice::from_ref(&info)).unwrap();
        writer.write("w", &encoding::encode(&info, &VALUES).unwrap()).unwrap();
        writer.close().unwrap();
        Checkpoint::open(path).unwrap()
    }

    fn address<const D: usize>(tensor: &Tensor<D>) -> *const u8 {
        tensor.clone().try_into_primitive::<Flex>().unwrap().bytes().as_ptr()
    }

    fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
        tensor.clone().cast(DType::F32).into_data().try_to_vec().unwrap()
    }

    #[test]
    fn a_tensor_lies_in_the_mapping_and_outlives_the_checkpoint() {
        let home = tempfile::tempdir().unwrap();
        for (stored, dtype) in [(Dtype::F32, DType::F32), (Dtype::BF16, DType::BF16)] {
            let checkpoint = write(&home.path().join("model.safetensors"), stored);
            let bytes = checkpoint.mapped("w").unwrap();
            let place = bytes.as_ref().as_ptr();
            let data = in_place(bytes, &[2, 3], dtype);
            let tensor = Tensor::<2>::from_data(data, (&Device::default(), dtype));
            assert_eq!(address(&tensor), place);
            drop(checkpoint);
            assert_eq!(values(&tensor), VALUES);
        }
    }

    /// Operations that write where their input lies when nobody else holds it: neither the mapping, nor the file, nor
    /// another tensor of the same bytes changes.
    #[test]
    fn a_write_copies_first() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("model.safetensors");
        let checkpoint = write(&path, Dtype::F32);
        let before = std::fs::read(&path).unwrap();
        let tensor = || {
            let data = in_place(checkpoint.mapped("w").unwrap(), &[2, 3], DType::F32);
            Tensor::<2>::from_data(data, (&Device::default(), DType::F32))
        };
        let witness = tensor();
        let doubled: Vec<f32> = VALUES.iter().map(|v| v * 2.0).collect();
        assert_eq!(values(&tensor().mul_scalar(2.0)), doubled);
        assert_eq!(values(&(tensor() + witness.clone())), doubled);
        assert_eq!(values(&tensor().slice_fill([0..2, 0..3], 0.0)), [0.0; 6]);
        // The lowest level there is: a mutable view of the only handle.
        let mut sole = tensor().try_into_primitive::<Flex>().unwrap();
        assert!(sole.is_unique());
        sole.storage_mut::<f32>().fill(7.0);
        assert_ne!(sole.bytes().as_ptr(), address(&witness));
        assert_eq!(values(&Tensor::<2>::from_primitive::<Flex>(sole)), [7.0; 6]);

        assert_eq!(values(&witness), VALUES);
        assert_eq!(values(&tensor()), VALUES);
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }
}
