//! Blocks that lie on a GPU and are decoded there, into the type of the product that wants them.
//!
//! A number costs half a byte in NF4 (one in int8) in, its type's bytes out, and a handful of operations: bound by memory,
//! 2.5 bytes a weight in bf16 for each use.

use burn::Tensor;
use burn::tensor::{DType, Device};
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

mod ggml;

use super::{Ggml, Int8, Nf4, Packed, nf4};
use crate::gpu::Cube;
use crate::gpu::places::words;
use crate::gpu::tensor::{elem, elementwise, empty, primitive};

/// A format's parts on a device.
#[derive(Debug)]
enum Parts {
    /// Words of eight codes; words of four scales' codes, their ranges, what scales' codes stand for and what codes stand for.
    Nf4 {
        codes: CubeTensor,
        scales: CubeTensor,
        ranges: CubeTensor,
        scale_values: CubeTensor,
        values: CubeTensor,
        mean: f32,
    },
    /// Words of four codes; of each row of `width` what a step is worth.
    Int8 { codes: CubeTensor, steps: CubeTensor, width: usize },
    /// Words of four bytes of the file's blocks.
    Ggml { words: CubeTensor, format: Ggml },
}

/// Blocks on a GPU.
#[derive(Debug)]
struct OnDevice {
    numbers: usize,
    bytes: usize,
    format: &'static str,
    parts: Parts,
}

/// The same blocks on a device; `None` where that is no GPU.
pub(super) fn nf4_on(blocks: &Nf4, device: &Device) -> Option<Box<dyn Packed>> {
    let like = anything(device)?;
    let (codes, scales, ranges, mean) = blocks.parts();
    let parts = Parts::Nf4 {
        codes: bytes(codes, &like),
        scales: bytes(scales, &like),
        ranges: floats(ranges, device),
        scale_values: floats(nf4::scale_values(), device),
        values: floats(&nf4::VALUES, device),
        mean,
    };
    Some(Box::new(OnDevice { numbers: blocks.numbers(), bytes: blocks.bytes(), format: "nf4", parts }))
}

/// The same blocks on a device; `None` where that is no GPU.
pub(super) fn int8_on(blocks: &Int8, device: &Device) -> Option<Box<dyn Packed>> {
    let like = anything(device)?;
    let (codes, steps, width) = blocks.parts();
    let codes: Vec<u8> = codes.iter().map(|code| code.cast_unsigned()).collect();
    let parts = Parts::Int8 { codes: bytes(&codes, &like), steps: floats(steps, device), width };
    Some(Box::new(OnDevice { numbers: blocks.numbers(), bytes: blocks.bytes(), format: "int8", parts }))
}

/// The same blocks on a device; `None` where that is no GPU.
pub(super) fn ggml_on(format: Ggml, blocks: &[u8], device: &Device) -> Option<Box<dyn Packed>> {
    let like = anything(device)?;
    // In whole words, and one more that reads beside the last may touch.
    let mut padded = Vec::with_capacity(blocks.len().next_multiple_of(4) + 4);
    padded.extend_from_slice(blocks);
    padded.resize(blocks.len().next_multiple_of(4) + 4, 0);
    let parts = Parts::Ggml { words: bytes(&padded, &like), format };
    let (numbers, of_block) = format.block();
    let numbers = blocks.len() / of_block * numbers;
    Some(Box::new(OnDevice { numbers, bytes: blocks.len(), format: format.name(), parts }))
}

/// Whether there is a GPU behind a device.
pub(super) fn is_gpu(device: &Device) -> bool {
    anything(device).is_some()
}

/// A tensor of the device, to make others on.
fn anything(device: &Device) -> Option<CubeTensor> {
    Tensor::<1>::zeros([1], &device.clone().without_autodiff()).try_into_primitive::<Cube>().ok()
}

/// Bytes in words of four, the first in the lowest place.
fn bytes(bytes: &[u8], like: &CubeTensor) -> CubeTensor {
    let (whole, rest) = bytes.as_chunks::<4>();
    let mut all: Vec<u32> = whole.iter().map(|four| u32::from_le_bytes(*four)).collect();
    // A buffer of nothing has no name on some devices.
    if !rest.is_empty() || all.is_empty() {
        all.push(rest.iter().rev().fold(0, |word, &byte| word << 8 | u32::from(byte)));
    }
    words(&all, like)
}

fn floats(values: &[f32], device: &Device) -> CubeTensor {
    let values = if values.is_empty() { &[0.0] } else { values };
    primitive(Tensor::<1>::from_floats(values, &device.clone().without_autodiff()))
}

impl OnDevice {
    fn decoded(&self, first: usize, count: usize, dtype: DType) -> CubeTensor {
        assert!(first + count <= self.numbers, "blocks: numbers behind the last");
        let codes = match &self.parts {
            Parts::Nf4 { codes, .. } | Parts::Int8 { codes, .. } => codes,
            Parts::Ggml { words, format } => {
                return ggml::decoded(words, *format, &ggml::Part::From(first, count), dtype);
            }
        };
        let y = empty(codes, [count], dtype);
        if count == 0 {
            return y;
        }
        let of_word = if matches!(self.parts, Parts::Nf4 { .. }) { 8 } else { 4 };
        let units = (first + count).div_ceil(of_word) - first / of_word;
        let (cubes, dim) = elementwise(codes, units);
        // SAFETY: units beyond the last word end, and only numbers from `first` to `first + count` are written.
        #[expect(unsafe_code, reason = "launches without checks of every index")]
        unsafe {
            match &self.parts {
                Parts::Nf4 { codes, scales, ranges, scale_values, values, mean } => nf4_numbers::launch_unchecked(
                    &codes.client,
                    cubes,
                    dim,
                    codes.clone().into_buffer_arg(),
                    scales.clone().into_buffer_arg(),
                    ranges.clone().into_buffer_arg(),
                    scale_values.clone().into_buffer_arg(),
                    values.clone().into_buffer_arg(),
                    y.clone().into_buffer_arg(),
                    units,
                    first,
                    count,
                    *mean,
                    elem(dtype),
                ),
                Parts::Int8 { codes, steps, width } => int8_numbers::launch_unchecked(
                    &codes.client,
                    cubes,
                    dim,
                    codes.clone().into_buffer_arg(),
                    steps.clone().into_buffer_arg(),
                    y.clone().into_buffer_arg(),
                    units,
                    first,
                    count,
                    *width,
                    elem(dtype),
                ),
                Parts::Ggml { .. } => unreachable!("invariant: decoded above"),
            }
        }
        y
    }
}

impl Packed for OnDevice {
    fn numbers(&self) -> usize {
        self.numbers
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn format(&self) -> &str {
        self.format
    }

    /// Reads back what the device makes of them: for looking at, not for products.
    fn decode(&self, first: usize, values: &mut [f32]) {
        let decoded = Tensor::<1>::from_primitive::<Cube>(self.decoded(first, values.len(), DType::F32));
        values.copy_from_slice(&decoded.into_data().try_to_vec::<f32>().expect("invariant: decoded to f32"));
    }

    fn numbers_on(&self, first: usize, count: usize, _: &Device, dtype: DType) -> Option<Tensor<1>> {
        Some(Tensor::from_primitive::<Cube>(self.decoded(first, count, dtype)))
    }

    fn rows_on(&self, first: usize, width: usize, rows: &[u32], _: &Device, dtype: DType) -> Option<Tensor<1>> {
        let Parts::Ggml { words: blocks, format } = &self.parts else { return None };
        if !ggml::takes_rows(first, width) || rows.is_empty() {
            return None;
        }
        let rows = words(rows, blocks);
        let part = ggml::Part::Rows { first, width, rows: &rows };
        Some(Tensor::from_primitive::<Cube>(ggml::decoded(blocks, *format, &part, dtype)))
    }
}

#[cube(launch_unchecked)]
fn nf4_numbers<E: Float>(
    codes: &[u32],
    scales: &[u32],
    ranges: &[f32],
    scale_values: &[f32],
    values: &[f32],
    y: &mut [E],
    units: usize,
    first: usize,
    count: usize,
    mean: f32,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= units {
        terminate!();
    }
    let word = first / 8 + ABSOLUTE_POS;
    let code = codes[word];
    // Eight numbers never lie under two scales.
    let block = word / 8;
    let shift = (block % 4) as u32 * 8u32;
    let scale_code = (scales[block / 4] >> shift) & 255u32;
    let scale = scale_values[scale_code as usize] * ranges[block / 256] + mean;
    #[unroll]
    for lane in 0..8 {
        let number = word * 8 + lane;
        if number >= first && number < first + count {
            // Of two in a byte the first is in the upper half.
            let place = comptime!((lane / 2 * 8 + (1 - lane % 2) * 4) as u32);
            let value = values[((code >> place) & 15u32) as usize];
            y[number - first] = E::cast_from(value * scale);
        }
    }
}

#[cube(launch_unchecked)]
fn int8_numbers<E: Float>(
    codes: &[u32],
    steps: &[f32],
    y: &mut [E],
    units: usize,
    first: usize,
    count: usize,
    width: usize,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= units {
        terminate!();
    }
    let word = first / 4 + ABSOLUTE_POS;
    let four = codes[word];
    #[unroll]
    for lane in 0..4 {
        let number = word * 4 + lane;
        if number >= first && number < first + count {
            let place = comptime!(lane as u32 * 8);
            let byte = (four >> place) & 255u32;
            let code = f32::cast_from(byte) - select(byte > 127u32, 256.0f32, 0.0f32);
            y[number - first] = E::cast_from(code * steps[number / width]);
        }
    }
}
