//! Numbers as they are that wait in host memory, perhaps in a mapped file, and are brought to the device for each use.

use burn::Tensor;
use burn::tensor::{AllocationProperty, Bytes, DType, Device, TensorData, bf16};
use bytes::Bytes as Shared;

use super::Packed;

/// Dense numbers in f32 or bf16.
#[derive(Debug)]
pub struct HostNumbers {
    bytes: Shared,
    dtype: DType,
}

impl HostNumbers {
    /// Numbers of this format, in the machine's byte order.
    ///
    /// # Panics
    /// If they are neither f32 nor bf16, or a part of one is left over.
    #[must_use]
    pub fn new(bytes: Shared, dtype: DType) -> Self {
        assert!(matches!(dtype, DType::F32 | DType::BF16), "host numbers: f32 or bf16, not {dtype:?}");
        assert!(bytes.len().is_multiple_of(dtype.size()), "host numbers: whole numbers");
        Self { bytes, dtype }
    }
}

impl Packed for HostNumbers {
    fn numbers(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    fn bytes(&self) -> usize {
        self.bytes.len()
    }

    fn format(&self) -> &str {
        self.dtype.name()
    }

    fn decode(&self, first: usize, values: &mut [f32]) {
        let size = self.dtype.size();
        let bytes = &self.bytes[first * size..(first + values.len()) * size];
        // Not as slices of numbers: a file need not align them.
        match self.dtype {
            DType::BF16 => values.iter_mut().zip(bytes.as_chunks::<2>().0).for_each(|(value, bytes)| {
                *value = bf16::from_ne_bytes(*bytes).to_f32();
            }),
            _ => values.iter_mut().zip(bytes.as_chunks::<4>().0).for_each(|(value, bytes)| {
                *value = f32::from_ne_bytes(*bytes);
            }),
        }
    }

    fn numbers_on(&self, first: usize, count: usize, device: &Device, _: DType) -> Option<Tensor<1>> {
        let size = self.dtype.size();
        let bytes = self.bytes.slice(first * size..(first + count) * size);
        // A tensor on the CPU would lie there, and numbers out of place cannot be read as such.
        if !(bytes.as_ptr() as usize).is_multiple_of(size) {
            return None;
        }
        let bytes = Bytes::from_shared(bytes, AllocationProperty::File);
        let data = TensorData::from_bytes(bytes, vec![count], self.dtype);
        Some(Tensor::from_data(data, (device, self.dtype)))
    }
}
