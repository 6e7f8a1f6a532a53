//! Numbers to blocks and back, byte for byte as ggml does without an importance matrix.
//!
//! Rows are independent and blocks never cross them. Non-finite numbers give blocks of no particular content.
//!
//! One line of `format` and one file make a format.

mod extremes;
mod fit;
mod iq4;
mod k;
mod multiversion;
mod mxfp4;
mod nibbles;
mod plain;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
#[cfg(test)]
mod reference;
mod rounding;
#[cfg(test)]
mod tests;

use rayon::prelude::*;

use super::TensorType;
use crate::WeightError;

/// Whole blocks of numbers to bytes.
type Encode = fn(&[f32], &mut [u8]);
/// Bytes of whole blocks to numbers.
pub type Decode = fn(&[u8], &mut [f32]);

/// What is known of a format: either direction may be absent.
#[derive(Clone, Copy)]
struct Format {
    encode: Option<Encode>,
    decode: Option<Decode>,
}

impl Format {
    const fn both(encode: Encode, decode: Decode) -> Self {
        Self { encode: Some(encode), decode: Some(decode) }
    }

    const fn read_only(decode: Decode) -> Self {
        Self { encode: None, decode: Some(decode) }
    }
}

fn format(ty: TensorType) -> Format {
    match ty {
        TensorType::F32 => Format::both(plain::encode_f32, plain::decode_f32),
        TensorType::F16 => Format::both(plain::encode_f16, plain::decode_f16),
        TensorType::BF16 => Format::both(plain::encode_bf16, plain::decode_bf16),
        TensorType::Q4_0 => Format::both(q4_0::encode, q4_0::decode),
        TensorType::Q4_1 => Format::both(q4_1::encode, q4_1::decode),
        TensorType::Q5_0 => Format::both(q5_0::encode, q5_0::decode),
        TensorType::Q5_1 => Format::both(q5_1::encode, q5_1::decode),
        TensorType::Q8_0 => Format::both(q8_0::encode, q8_0::decode),
        TensorType::Q2_K => Format::read_only(q2_k::decode),
        TensorType::Q3_K => Format::read_only(q3_k::decode),
        TensorType::Q4_K => Format::both(q4_k::encode, q4_k::decode),
        TensorType::Q5_K => Format::both(q5_k::encode, q5_k::decode),
        TensorType::Q6_K => Format::both(q6_k::encode, q6_k::decode),
        TensorType::IQ4_NL => Format::both(iq4::encode_nl, iq4::decode_nl),
        TensorType::IQ4_XS => Format::read_only(iq4::decode_xs),
        TensorType::MXFP4 => Format::both(mxfp4::encode, mxfp4::decode),
        _ => Format { encode: None, decode: None },
    }
}

/// Numbers handled by one thread at a time; below this, threads cost more than they bring.
const PIECE: usize = 1 << 16;

/// Whether numbers can be stored as this type.
pub fn can_encode(ty: TensorType) -> bool {
    format(ty).encode.is_some()
}

/// Whether numbers can be read from this type.
pub fn can_decode(ty: TensorType) -> bool {
    format(ty).decode.is_some()
}

/// What reads whole blocks of this type on the calling thread, as many as fit into both the bytes and the numbers it is
/// given; none of a type that cannot be read.
pub fn decoder(ty: TensorType) -> Option<Decode> {
    format(ty).decode
}

/// Numbers in rows of `row` as blocks. A row must be a whole number of blocks, `values` a whole number of rows.
pub fn encode(ty: TensorType, values: &[f32], row: usize) -> Result<Vec<u8>, WeightError> {
    let mut bytes = vec![0; values.len() / ty.block() * ty.block_bytes()];
    encode_into(ty, values, row, &mut bytes)?;
    Ok(bytes)
}

/// [`encode`] into a buffer of the size that the blocks take.
pub fn encode_into(ty: TensorType, values: &[f32], row: usize, bytes: &mut [u8]) -> Result<(), WeightError> {
    let convert = format(ty).encode.ok_or(WeightError::NoBlockFormat { ty, what: "stored as" })?;
    let whole = row.is_multiple_of(ty.block()) && values.len().is_multiple_of(row.max(1));
    check(ty, values.len(), row, bytes.len(), whole)?;
    // Rows are whole blocks and blocks are independent, so pieces need not end with rows.
    let blocks = PIECE / ty.block();
    values
        .par_chunks(blocks * ty.block())
        .zip(bytes.par_chunks_mut(blocks * ty.block_bytes()))
        .for_each(|(values, bytes)| convert(values, bytes));
    Ok(())
}

/// Blocks as numbers, into a buffer of their number.
pub fn decode(ty: TensorType, bytes: &[u8], values: &mut [f32]) -> Result<(), WeightError> {
    let convert = format(ty).decode.ok_or(WeightError::NoBlockFormat { ty, what: "read from" })?;
    check(ty, values.len(), values.len(), bytes.len(), true)?;
    let blocks = PIECE / ty.block();
    values
        .par_chunks_mut(blocks * ty.block())
        .zip(bytes.par_chunks(blocks * ty.block_bytes()))
        .for_each(|(values, bytes)| convert(bytes, values));
    Ok(())
}

fn check(ty: TensorType, values: usize, row: usize, bytes: usize, whole: bool) -> Result<(), WeightError> {
    if whole && ty.row_bytes(values) == Some(bytes) {
        return Ok(());
    }
    Err(WeightError::WrongBlocks { ty, values, row, bytes })
}
