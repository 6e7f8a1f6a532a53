//! Tensors on their way into a file, one after another: no copy of all of them is ever held.

use std::path::Path;

use burn::tensor::{DType, Int, Tensor};
use qwen_tune_weights::{Dtype, Metadata, SafetensorsWriter, TensorInfo, TensorSink, WeightError, encoding};

/// A tensor and its place in a file.
pub(crate) struct Stored<'a> {
    info: TensorInfo,
    values: Values<'a>,
}

enum Values<'a> {
    Floats(&'a Tensor<1>),
    Codes(&'a Tensor<1, Int>),
}

impl<'a> Stored<'a> {
    /// Numbers in the format they are held in, f32 or bf16.
    pub(crate) fn floats(name: String, shape: Vec<usize>, tensor: &'a Tensor<1>) -> Self {
        let dtype = if tensor.dtype() == DType::BF16 { Dtype::BF16 } else { Dtype::F32 };
        Self { info: TensorInfo::new(name, dtype, shape), values: Values::Floats(tensor) }
    }

    /// Codes of eight bits.
    pub(crate) fn codes(name: String, shape: Vec<usize>, tensor: &'a Tensor<1, Int>) -> Self {
        Self { info: TensorInfo::new(name, Dtype::U8, shape), values: Values::Codes(tensor) }
    }

    fn bytes(&self) -> Result<Vec<u8>, WeightError> {
        match &self.values {
            Values::Floats(tensor) => encoding::encode(&self.info, &host(tensor)),
            Values::Codes(tensor) => {
                let codes = (*tensor).clone().into_data().convert::<u8>().try_to_vec();
                Ok(codes.expect("invariant: converted to u8"))
            }
        }
    }
}

pub(super) fn write_tensors(path: &Path, tensors: &[Stored<'_>]) -> Result<(), WeightError> {
    let plan: Vec<TensorInfo> = tensors.iter().map(|tensor| tensor.info.clone()).collect();
    let mut writer = SafetensorsWriter::create(path, Metadata::default())?;
    writer.declare(&plan)?;
    for tensor in tensors {
        writer.write(&tensor.info.name, &tensor.bytes()?)?;
    }
    writer.close()?;
    Ok(())
}

/// The numbers in f32.
pub(super) fn host(tensor: &Tensor<1>) -> Vec<f32> {
    tensor.clone().into_data().convert::<f32>().try_to_vec().expect("invariant: converted to f32")
}
