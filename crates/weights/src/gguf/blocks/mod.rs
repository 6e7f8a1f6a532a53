//! Numbers to blocks and back, byte for byte as ggml does without an importance matrix.
//!
//! Rows are independent and blocks never cross them. Non-finite numbers give blocks of no particular content.
//!
//! One line of [`format`] and one file make a format.

mod plain;

use rayon::prelude::*;

use super::TensorType;
use crate::WeightError;

/// What is known of a format: either direction may be absent.
#[derive(Clone, Copy)]
struct Format {
    /// Whole blocks of numbers to whole blocks of bytes.
    encode: Option<fn(&[f32], &mut [u8])>,
    /// Whole blocks of bytes to whole blocks of numbers.
    decode: Option<fn(&[u8], &mut [f32])>,
}

impl Format {
    const fn both(encode: fn(&[f32], &mut [u8]), decode: fn(&[u8], &mut [f32])) -> Self {
        Self { encode: Some(encode), decode: Some(decode) }
    }
}

fn format(ty: TensorType) -> Format {
    match ty {
        TensorType::F32 => Format::both(plain::encode_f32, plain::decode_f32),
        TensorType::F16 => Format::both(plain::encode_f16, plain::decode_f16),
        TensorType::BF16 => Format::both(plain::encode_bf16, plain::decode_bf16),
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
