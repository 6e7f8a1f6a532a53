//! Stored bytes to `f32` and back, rounding once, to nearest with ties to even.
//!
//! Bytes of a mapped file need not be aligned for their element type, so elements are assembled from bytes; the compiler
//! turns that into plain wide loads.

use half::{bf16, f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;

use crate::{Dtype, TensorInfo, WeightError};

/// Elements handled by one thread at a time; below this, threads cost more than they bring.
const BLOCK: usize = 1 << 18;
/// Elements of the buffer in which halves are lined up for the hardware's conversion.
const LANE: usize = 512;

/// The elements of a whole tensor; `bytes` must be as long as `info` says.
pub fn decode(info: &TensorInfo, bytes: &[u8]) -> Result<Vec<f32>, WeightError> {
    let mut values = vec![0.0; bytes.len() / info.dtype.size()];
    decode_into(info, bytes, &mut values)?;
    Ok(values)
}

/// [`decode`] of some consecutive elements of the tensor `info`, into a buffer of that many.
pub fn decode_into(info: &TensorInfo, bytes: &[u8], values: &mut [f32]) -> Result<(), WeightError> {
    let convert = decoder(info)?;
    let width = info.dtype.size();
    same_length(info, values.len() * width, bytes.len())?;
    values
        .par_chunks_mut(BLOCK)
        .zip(bytes.par_chunks(BLOCK * width))
        .for_each(|(values, bytes)| convert(bytes, values));
    Ok(())
}

/// The stored form of a whole tensor in the element type of `info`.
pub fn encode(info: &TensorInfo, values: &[f32]) -> Result<Vec<u8>, WeightError> {
    same_length(info, info.bytes(), values.len().saturating_mul(info.dtype.size()))?;
    let mut bytes = vec![0; values.len() * info.dtype.size()];
    encode_into(info, values, &mut bytes)?;
    Ok(bytes)
}

/// [`encode`] of some consecutive elements of the tensor `info`, into a buffer of their size.
pub fn encode_into(info: &TensorInfo, values: &[f32], bytes: &mut [u8]) -> Result<(), WeightError> {
    let convert = encoder(info)?;
    let width = info.dtype.size();
    same_length(info, bytes.len(), values.len() * width)?;
    values
        .par_chunks(BLOCK)
        .zip(bytes.par_chunks_mut(BLOCK * width))
        .for_each(|(values, bytes)| convert(values, bytes));
    Ok(())
}

fn same_length(info: &TensorInfo, expected: usize, found: usize) -> Result<(), WeightError> {
    if expected == found {
        return Ok(());
    }
    Err(WeightError::WrongData { tensor: info.name.clone(), expected, found })
}

type Decoder = fn(&[u8], &mut [f32]);
type Encoder = fn(&[f32], &mut [u8]);

fn decoder(info: &TensorInfo) -> Result<Decoder, WeightError> {
    match info.dtype {
        Dtype::F32 => Ok(decode_f32),
        Dtype::BF16 => Ok(decode_bf16),
        Dtype::F16 => Ok(decode_f16),
        Dtype::F64 => Ok(decode_f64),
        dtype => Err(WeightError::UnsupportedDtype { tensor: info.name.clone(), dtype }),
    }
}

fn encoder(info: &TensorInfo) -> Result<Encoder, WeightError> {
    match info.dtype {
        Dtype::F32 => Ok(encode_f32),
        Dtype::BF16 => Ok(encode_bf16),
        Dtype::F16 => Ok(encode_f16),
        Dtype::F64 => Ok(encode_f64),
        dtype => Err(WeightError::UnsupportedDtype { tensor: info.name.clone(), dtype }),
    }
}

pub(crate) fn decode_f32(bytes: &[u8], values: &mut [f32]) {
    for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *value = f32::from_le_bytes(*bytes);
    }
}

fn decode_f64(bytes: &[u8], values: &mut [f32]) {
    for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *value = f64::from_le_bytes(*bytes) as f32;
    }
}

pub(crate) fn decode_bf16(bytes: &[u8], values: &mut [f32]) {
    for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *value = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
    }
}

pub(crate) fn decode_f16(bytes: &[u8], values: &mut [f32]) {
    let mut lane = [f16::ZERO; LANE];
    for (values, bytes) in values.chunks_mut(LANE).zip(bytes.chunks(2 * LANE)) {
        let lane = &mut lane[..values.len()];
        for (half, bytes) in lane.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *half = f16::from_le_bytes(*bytes);
        }
        lane.convert_to_f32_slice(values);
    }
}

pub(crate) fn encode_f32(values: &[f32], bytes: &mut [u8]) {
    for (value, bytes) in values.iter().zip(bytes.as_chunks_mut::<4>().0) {
        *bytes = value.to_le_bytes();
    }
}

fn encode_f64(values: &[f32], bytes: &mut [u8]) {
    for (value, bytes) in values.iter().zip(bytes.as_chunks_mut::<8>().0) {
        *bytes = f64::from(*value).to_le_bytes();
    }
}

pub(crate) fn encode_bf16(values: &[f32], bytes: &mut [u8]) {
    for (value, bytes) in values.iter().zip(bytes.as_chunks_mut::<2>().0) {
        *bytes = bf16::from_f32(*value).to_le_bytes();
    }
}

pub(crate) fn encode_f16(values: &[f32], bytes: &mut [u8]) {
    let mut lane = [f16::ZERO; LANE];
    for (values, bytes) in values.chunks(LANE).zip(bytes.chunks_mut(2 * LANE)) {
        let lane = &mut lane[..values.len()];
        lane.convert_from_f32_slice(values);
        for (half, bytes) in lane.iter().zip(bytes.as_chunks_mut::<2>().0) {
            *bytes = half.to_le_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn info(dtype: Dtype, elements: usize) -> TensorInfo {
        TensorInfo::new("t", dtype, vec![elements])
    }

    /// Nearest of the two neighbouring values that drop the low `16` bits, ties to the even one: bf16 by definition.
    fn bf16_by_definition(value: f32) -> f32 {
        let down = f32::from_bits(value.to_bits() & 0xffff_0000);
        let up = f32::from_bits((value.to_bits() & 0xffff_0000).wrapping_add(0x1_0000));
        let (below, above) = ((f64::from(value) - f64::from(down)).abs(), (f64::from(up) - f64::from(value)).abs());
        if below < above || (below == above && (down.to_bits() >> 16) & 1 == 0) { down } else { up }
    }

    proptest! {
        #[test]
        fn bf16_rounds_to_nearest_even(values in prop::collection::vec(-1e30f32..1e30, 1..2000)) {
            let info = info(Dtype::BF16, values.len());
            let back = decode(&info, &encode(&info, &values).unwrap()).unwrap();
            for (value, back) in values.iter().zip(back) {
                prop_assert_eq!(bf16_by_definition(*value), back);
            }
        }

        #[test]
        fn stored_halves_survive_a_round_trip(bits in prop::collection::vec(any::<u16>(), 1..2000)) {
            for dtype in [Dtype::F16, Dtype::BF16] {
                let info = info(dtype, bits.len());
                let bytes: Vec<u8> = bits.iter().flat_map(|half| half.to_le_bytes()).collect();
                let values = decode(&info, &bytes).unwrap();
                let again = decode(&info, &encode(&info, &values).unwrap()).unwrap();
                for (value, again) in values.iter().zip(again) {
                    prop_assert!(value.to_bits() == again.to_bits() || value.is_nan() && again.is_nan());
                }
            }
        }

        #[test]
        fn f32_is_stored_bit_for_bit(bits in prop::collection::vec(any::<u32>(), 0..200)) {
            let values: Vec<f32> = bits.iter().map(|&bits| f32::from_bits(bits)).collect();
            let info = info(Dtype::F32, values.len());
            let back = decode(&info, &encode(&info, &values).unwrap()).unwrap();
            prop_assert_eq!(bits, back.iter().map(|value| value.to_bits()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn f16_ties_go_to_even_and_overflow_to_infinity() {
        let info = info(Dtype::F16, 4);
        let bytes = encode(&info, &[2049.0, 2051.0, 65520.0, -0.0]).unwrap();
        assert_eq!(decode(&info, &bytes).unwrap(), [2048.0, 2052.0, f32::INFINITY, 0.0]);
    }

    #[test]
    fn integers_are_refused_by_name() {
        let error = decode(&info(Dtype::I64, 1), &[0; 8]).unwrap_err();
        assert_eq!(error.to_string(), "tensor `t` is I64; only F32, F16, BF16 and F64 convert to and from f32");
    }

    #[test]
    fn blocks_and_lanes_cover_every_element() {
        let count = BLOCK + LANE + 3;
        let values: Vec<f32> = (0..count).map(|index| (index % 2048) as f32).collect();
        for dtype in [Dtype::F16, Dtype::F32, Dtype::F64] {
            let info = info(dtype, count);
            assert_eq!(decode(&info, &encode(&info, &values).unwrap()).unwrap(), values);
        }
    }
}
