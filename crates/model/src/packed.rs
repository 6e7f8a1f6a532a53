//! Weights that are held in blocks: those of a GGUF file where they lie, others quantised while they are loaded, some
//! numbers at a time.
//!
//! One line of [`format`] makes a value of `quantize` a format.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor};
use qwen_tune_kernels::{Ggml, Int8, Nf4, Packed, decodes_blocks, decodes_ggml};
use qwen_tune_qwen::gguf::GgufBlocks;
use qwen_tune_qwen::{HeadSpec, ModelDir, Role, TensorSpec};
use qwen_tune_weights::gguf::TensorType;
use qwen_tune_weights::{MappedBytes, WeightError};

use crate::config::Quantize;

/// Quantises a tensor; the mean squares of its input channels are given where they are known.
type Quantise = fn(&ModelDir, &TensorSpec, Option<&[f32]>) -> Result<Arc<dyn Packed>, WeightError>;

/// How a tensor becomes blocks.
struct Format {
    /// Numbers that a row has to be a multiple of.
    multiple: usize,
    /// Bytes of a tensor.
    bytes: fn(&TensorSpec) -> u64,
    /// Whether it makes use of how much input channels count.
    weighs: bool,
    quantise: Quantise,
}

fn format(quantize: Quantize) -> Option<Format> {
    Some(match quantize {
        Quantize::None => return None,
        Quantize::Nf4 => {
            Format { multiple: 1, bytes: |tensor| Nf4::bytes_of(tensor.elements()), weighs: true, quantise: nf4 }
        }
        Quantize::Int8 => Format { multiple: 1, bytes: int8_bytes, weighs: false, quantise: int8 },
        Quantize::Q4_0 => Format { multiple: Q4_0.block(), bytes: q4_0_bytes, weighs: false, quantise: q4_0 },
    })
}

const Q4_0: TensorType = TensorType::Q4_0;

/// Rows of all matrices of a tensor, and their width.
fn rows(tensor: &TensorSpec) -> (usize, usize) {
    let (&width, outer) = tensor.shape.split_last().expect("invariant: a matrix");
    (outer.iter().product(), width)
}

fn nf4(model: &ModelDir, tensor: &TensorSpec, importance: Option<&[f32]>) -> Result<Arc<dyn Packed>, WeightError> {
    let numbers = tensor.elements() as usize;
    let read = |first: usize, values: &mut [f32]| model.read_elements_f32(tensor, first, values);
    Ok(Arc::new(match importance {
        Some(importance) => Nf4::quantise_for(importance, numbers, read)?,
        None => Nf4::quantise(numbers, read)?,
    }))
}

fn int8(model: &ModelDir, tensor: &TensorSpec, _: Option<&[f32]>) -> Result<Arc<dyn Packed>, WeightError> {
    let (rows, width) = rows(tensor);
    Ok(Arc::new(Int8::quantise(rows, width, |first, values| model.read_elements_f32(tensor, first, values))?))
}

fn int8_bytes(tensor: &TensorSpec) -> u64 {
    Int8::bytes_of(tensor.elements(), rows(tensor).0 as u64)
}

fn q4_0(model: &ModelDir, tensor: &TensorSpec, _: Option<&[f32]>) -> Result<Arc<dyn Packed>, WeightError> {
    let (rows, width) = rows(tensor);
    let read = |first: usize, values: &mut [f32]| model.read_elements_f32(tensor, first, values);
    Ok(Arc::new(InFile(GgufBlocks::encode(Q4_0, rows, width, read)?)))
}

fn q4_0_bytes(tensor: &TensorSpec) -> u64 {
    tensor.elements() / Q4_0.block() as u64 * Q4_0.block_bytes() as u64
}

/// Blocks as GGUF files have them.
#[derive(Debug)]
struct InFile(GgufBlocks);

impl Packed for InFile {
    fn numbers(&self) -> usize {
        self.0.numbers()
    }

    fn bytes(&self) -> usize {
        self.0.bytes()
    }

    fn format(&self) -> &str {
        self.0.ty().name()
    }

    fn decode(&self, first: usize, values: &mut [f32]) {
        self.0.decode(first, values);
    }

    /// Blocks that wait in host memory go to a GPU as they are, a quarter of the bytes and fewer.
    fn numbers_on(&self, first: usize, count: usize, device: &Device, dtype: DType) -> Option<Tensor<1>> {
        let width = self.0.width().max(1);
        let rows = first / width..(first + count).div_ceil(width);
        self.of_rows(rows.clone(), device)?.numbers_on(first - rows.start * width, count, device, dtype)
    }

    fn on_device(&self, device: &Device) -> Option<Box<dyn Packed>> {
        self.of_rows(0..self.0.numbers() / self.0.width().max(1), device)
    }
}

impl InFile {
    fn of_rows(&self, rows: Range<usize>, device: &Device) -> Option<Box<dyn Packed>> {
        let format = on_gpu(&self.0).filter(|_| decodes_ggml(device))?;
        format.on(&self.0.raw(rows), device)
    }
}

/// The head, which a GPU would decode whole for each use: its blocks beside that are more than its numbers alone.
fn is_head(model: &ModelDir, tensor: &TensorSpec) -> bool {
    tensor.role == Role::Head || tensor.role == Role::Embedding && model.spec.head == HeadSpec::Tied
}

/// The format of blocks that a GPU decodes.
fn on_gpu(blocks: &GgufBlocks) -> Option<Ggml> {
    Ggml::named(blocks.one_type()?.name())
}

/// The format that a tensor is quantised to: linear layers and experts are. Embedding and head, whose rows and logits the
/// loss sees directly, routers, whose choices jump, and all that is no matrix stay as they are.
fn quantised(tensor: &TensorSpec, quantize: Quantize) -> Option<Format> {
    format(quantize.of(tensor)).filter(|format| {
        matches!(tensor.role, Role::Linear(_) | Role::Experts) && rows(tensor).1.is_multiple_of(format.multiple)
    })
}

/// Whether a tensor is quantised to a format that makes use of how much its input channels count.
pub(crate) fn weighs(tensor: &TensorSpec, quantize: Quantize) -> bool {
    tensor.shape.len() > 1 && quantised(tensor, quantize).is_some_and(|format| format.weighs)
}

/// The blocks of a file that a tensor is left in: where they have few bits, or none are asked for.
fn in_file(model: &ModelDir, tensor: &TensorSpec, quantize: Quantize, device: &Device) -> Option<GgufBlocks> {
    let halves = |blocks: &GgufBlocks| blocks.ty().block() == 1;
    let stays = |blocks: &GgufBlocks| !halves(blocks) || quantised(tensor, quantize).is_none();
    let decodes = |blocks: &GgufBlocks| {
        decodes_blocks(device) || decodes_ggml(device) && on_gpu(blocks).is_some() && !is_head(model, tensor)
    };
    model.blocks(tensor).filter(decodes).filter(stays)
}

/// A frozen tensor in blocks, if that is how it is held.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn packed(
    model: &ModelDir,
    tensor: &TensorSpec,
    quantize: Quantize,
    importance: Option<&[f32]>,
    device: &Device,
) -> Result<Option<Arc<dyn Packed>>, WeightError> {
    if let Some(blocks) = in_file(model, tensor, quantize, device) {
        return Ok(Some(Arc::new(InFile(blocks))));
    }
    let Some(format) = quantised(tensor, quantize) else { return Ok(None) };
    let made = (format.quantise)(model, tensor, importance)?;
    model.release(tensor);
    Ok(Some(made))
}

/// Bytes of a tensor that is quantised as it is loaded; nothing of one that is not.
#[must_use]
pub fn quantised_bytes(tensor: &TensorSpec, quantize: Quantize) -> Option<u64> {
    if tensor.shape.len() < 2 {
        return None;
    }
    quantised(tensor, quantize).map(|format| (format.bytes)(tensor))
}

/// What of mapped files the blocks of a tensor lie in, where it is held in a file's own.
pub(crate) fn pages_of_blocks(
    model: &ModelDir,
    tensor: &TensorSpec,
    quantize: Quantize,
    device: &Device,
) -> Option<Vec<MappedBytes>> {
    in_file(model, tensor, quantize, device).map(|blocks| blocks.pages().to_vec())
}

/// Bytes of a frozen tensor in blocks, if that is how it is held.
pub(crate) fn packed_bytes(model: &ModelDir, tensor: &TensorSpec, quantize: Quantize, device: &Device) -> Option<u64> {
    let file = in_file(model, tensor, quantize, device).map(|blocks| blocks.bytes() as u64);
    file.or_else(|| quantised_bytes(tensor, quantize))
}
