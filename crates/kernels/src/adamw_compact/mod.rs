//! AdamW on less memory: moments as block-wise 8-bit codes (Dettmers, Lewis, Shleifer and Zettlemoyer 2022, arXiv
//! 2110.02861), values in bf16 that are rounded stochastically. Each tensor chooses for itself.
//!
//! | held as | bytes a number | f32 instead |
//! |---|---|---|
//! | moments as codes, one f32 scale a block of 256 | 2 · (1 + 4/256) | 8 |
//! | values in bf16 | 2 | 4 |

mod codebook;
#[cfg(feature = "cpu")]
mod flex;
pub(crate) mod reference;

use burn::Tensor;
use burn::tensor::{DType, Device, Int, TensorData};

pub use self::codebook::DynamicMap;
use crate::AdamW;

/// Numbers that share a scale.
pub const BLOCK: usize = 256;

/// Scales are at least this, so that a block of zeros can be divided by its own; as torchao has it.
const LEAST_SCALE: f32 = 1e-12;

/// Numbers as 8-bit codes: `x[i] = map[codes[i]] · scales[i / 256]`. The last block may be short.
#[derive(Debug, Clone)]
pub struct Codes {
    /// One a number, [`DType::U8`].
    pub codes: Tensor<1, Int>,
    /// One a block, f32: its largest magnitude.
    pub scales: Tensor<1>,
}

impl Codes {
    /// `elements` zeros.
    #[must_use]
    pub fn zeros(elements: usize, map: DynamicMap, device: &Device) -> Self {
        let zero = vec![map.codebook().zero(); elements];
        Self::new(zero, vec![0.0; elements.div_ceil(BLOCK)], device)
    }

    /// These codes and scales.
    ///
    /// # Panics
    /// If there is not one scale for each block.
    #[must_use]
    pub fn new(codes: Vec<u8>, scales: Vec<f32>, device: &Device) -> Self {
        let (elements, blocks) = (codes.len(), scales.len());
        assert_eq!(blocks, elements.div_ceil(BLOCK), "codes: one scale a block");
        Self {
            codes: Tensor::from_data(TensorData::new(codes, [elements]), (device, DType::U8)),
            scales: Tensor::from_data(TensorData::new(scales, [blocks]), (device, DType::F32)),
        }
    }
}

/// How a moment is held.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "one or two a trained tensor, for as long as it is trained")]
pub enum Moment {
    /// f32.
    Wide(Tensor<1>),
    /// 8-bit codes: the first moment over [`DynamicMap::Signed`], the second over [`DynamicMap::Unsigned`].
    Codes(Codes),
}

impl Moment {
    fn elements(&self) -> usize {
        match self {
            Self::Wide(tensor) => tensor.dims()[0],
            Self::Codes(codes) => codes.codes.dims()[0],
        }
    }
}

/// One trained tensor and what its update depends on; all flat, of the same length.
#[derive(Debug)]
pub struct CompactTrained<'a> {
    /// Values: f32, or bf16 that are rounded stochastically.
    pub value: &'a mut Tensor<1>,
    /// Gradient of the loss by the values, f32.
    pub gradient: &'a Tensor<1>,
    /// Exponential mean of gradients.
    pub first: &'a mut Moment,
    /// Exponential mean of squared gradients.
    pub second: &'a mut Moment,
    /// Decoupled weight decay of these values.
    pub weight_decay: f64,
    /// Key of the random numbers that round bf16 values: another one for each tensor and update. A number is a function of
    /// the key and the element's index, so neither a resumed run nor another number of threads changes a bit.
    pub key: u64,
}

/// One update of every tensor by the rule of [`crate::adamw`], in f32 whatever the tensors are held in. The value is
/// updated from the new moments before they are rounded to codes.
///
/// A value in bf16 goes up to the next one with the probability of the part that it lies above the one below, so that an
/// update much smaller than the distance between two of them still counts on average.
///
/// On a CPU values and moments change where they lie, unless another tensor shares their memory; it keeps what it had.
pub fn adamw_compact(trained: &mut [CompactTrained<'_>], rule: &AdamW) {
    for CompactTrained { value, gradient, first, second, .. } in trained.iter() {
        let sizes = [value.dims()[0], first.elements(), second.elements()];
        assert_eq!(sizes, [gradient.dims()[0]; 3], "adamw: value and moments must have the gradient's length");
    }
    #[cfg(feature = "cpu")]
    if flex::adamw_compact(trained, rule) {
        return;
    }
    reference::adamw_compact(trained, rule);
}

/// 16 random bits for each element from `first` on, of which the first lies in the lowest bits of a group of four.
///
/// Splitmix64 (Steele, Lea and Flood 2014) with the key as its state and the index of the group as its counter.
#[inline(always)]
pub(crate) fn random_bits(key: u64, group: u64) -> [u32; 4] {
    let mut z = key.wrapping_add(group.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    [z, z >> 16, z >> 32, z >> 48].map(|bits| (bits & 0xffff) as u32)
}

#[cfg(all(test, feature = "cpu"))]
mod tests;
