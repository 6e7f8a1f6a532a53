//! F32, F16 and BF16: one number, one element.

pub(super) use crate::encoding::{decode_bf16, decode_f16, decode_f32, encode_bf16, encode_f16, encode_f32};
