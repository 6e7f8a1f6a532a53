//! NF4: four bits a number, sixteen values spaced as a normal distribution is, under a scale for each 64 numbers; the scales
//! themselves in eight bits (Dettmers et al. 2023, QLoRA, arXiv 2305.14314).
//!
//! The layout is that of bitsandbytes' `quantize_4bit(blocksize=64, quant_type="nf4", compress_statistics=True)`, and so is
//! every byte of [`Nf4::quantise`]; [`Nf4::quantise_for`] chooses other scales, which decode alike. The first of
//! two numbers is in the upper half of a byte, blocks go along the flat tensor whatever its rows. The scales less their mean
//! are quantised in blocks of 256 to the nearest value of an 8-bit map with a moving exponent. That library's own CPU build
//! takes a neighbour of the nearest value now and then where both are about as near; its numbers decode here bit for bit all
//! the same (`scripts/make_nf4_golden.py`).

mod scale;

use std::sync::LazyLock;

#[cfg(feature = "gpu")]
use burn::tensor::Device;
use rayon::prelude::*;

use super::lookup;
use super::{Packed, for_blocks};

/// Numbers under one scale.
const BLOCK: usize = 64;
/// Scales under one range.
const SCALES: usize = 256;
/// Numbers that are read at a time.
const PIECE: usize = 1 << 20;
/// Stands for the scale of a block of zeros, so that nothing is divided by nothing.
const LEAST: f32 = 1e-38;

/// The values of the sixteen codes: quantiles of a normal distribution, scaled to ±1, with a zero of its own; table 4 of the
/// paper (appendix E).
#[expect(clippy::excessive_precision, reason = "as published")]
pub(super) const VALUES: [f32; 16] = [
    -1.0,
    -0.696_192_800_998_687_7,
    -0.525_073_051_452_636_7,
    -0.394_917_488_098_144_53,
    -0.284_441_381_692_886_35,
    -0.184_773_430_228_233_34,
    -0.091_050_036_251_544_95,
    0.0,
    0.079_580_299_556_255_34,
    0.160_930_201_411_247_25,
    0.246_112_301_945_686_34,
    0.337_915_241_718_292_24,
    0.440_709_829_330_444_34,
    0.562_617_003_917_694_1,
    0.722_956_836_223_602_3,
    1.0,
];

/// The values of the 256 codes of scales, ascending: of each power of ten from 10⁻⁶ on twice as many as of the one before,
/// spread evenly over it (Dettmers 2016, arXiv 1511.04561).
static SCALE_VALUES: LazyLock<[f32; 256]> = LazyLock::new(|| {
    let mut values = vec![0.0, 1.0];
    for exponent in 0..7 {
        let parts = 1 << exponent;
        let step = (1.0 - 0.1_f32) / parts as f32;
        // As torch's `linspace` has them: from the nearer end, rounded once.
        let border = |i: i32| match 2 * i < parts {
            true => step.mul_add(i as f32, 0.1),
            false => (-step).mul_add((parts - i) as f32, 1.0),
        };
        let power = 10_f64.powi(exponent - 6) as f32;
        values.extend((0..parts).flat_map(|i| {
            let value = power * ((border(i) + border(i + 1)) / 2.0);
            [value, -value]
        }));
    }
    values.sort_by(f32::total_cmp);
    values.try_into().expect("invariant: 2 + 2·127 of them")
});

/// A tensor in NF4 with scales in eight bits: 4.13 bits a number.
#[derive(Debug)]
pub struct Nf4 {
    numbers: usize,
    /// Two codes a byte.
    codes: Vec<u8>,
    /// Of each block the code of its scale.
    scales: Vec<u8>,
    /// Of each [`SCALES`] scales the largest distance from the mean.
    ranges: Vec<f32>,
    /// Mean of all scales.
    mean: f32,
}

impl Nf4 {
    /// Bytes that so many numbers take.
    #[must_use]
    pub fn bytes_of(numbers: u64) -> u64 {
        let blocks = numbers.div_ceil(BLOCK as u64);
        numbers.div_ceil(2) + blocks + 4 * blocks.div_ceil(SCALES as u64) + 4
    }

    /// Quantises numbers that `read(first, values)` gives piece by piece, each block under its largest magnitude: the bytes of
    /// bitsandbytes.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn quantise<E>(numbers: usize, read: impl FnMut(usize, &mut [f32]) -> Result<(), E>) -> Result<Self, E> {
        Self::under(numbers, |_, _, largest| largest, read)
    }

    /// As [`Nf4::quantise`] the rows of a matrix, or of several, each block under the scale that loses least where an error
    /// at a channel counts as much as `importance` says, the mean square of that input, `[width]`. With equal numbers it is
    /// the scale of least squares.
    ///
    /// # Errors
    /// Those of `read`.
    ///
    /// # Panics
    /// If the rows are not whole.
    pub fn quantise_for<E>(
        importance: &[f32],
        numbers: usize,
        read: impl FnMut(usize, &mut [f32]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let width = importance.len();
        assert!(numbers.is_multiple_of(width.max(1)), "nf4: {numbers} numbers in rows of {width}");
        let scale = |first: usize, values: &[f32], largest: f32| {
            let mut weights = [0.0; BLOCK];
            let mut channel = first % width;
            for weight in &mut weights[..values.len()] {
                *weight = importance[channel];
                channel = if channel + 1 == width { 0 } else { channel + 1 };
            }
            scale::weighted(values, &weights[..values.len()], largest)
        };
        Self::under(numbers, scale, read)
    }

    /// Under the scales that `scale(first, values, largest)` gives blocks.
    fn under<E>(
        numbers: usize,
        scale: impl Fn(usize, &[f32], f32) -> f32 + Sync,
        mut read: impl FnMut(usize, &mut [f32]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut codes = vec![0; numbers.div_ceil(2)];
        let mut chosen = vec![0.0; numbers.div_ceil(BLOCK)];
        let mut values = vec![0.0; numbers.min(PIECE)];
        let pieces = codes.chunks_mut(PIECE / 2).zip(chosen.chunks_mut(PIECE / BLOCK));
        for (index, (codes, chosen)) in pieces.enumerate() {
            let first = index * PIECE;
            let values = &mut values[..PIECE.min(numbers - first)];
            read(first, values)?;
            let blocks = values.par_chunks(BLOCK).zip(codes.par_chunks_mut(BLOCK / 2)).zip(chosen).enumerate();
            blocks.with_min_len(64).for_each(|(block, ((values, codes), chosen))| {
                let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
                *chosen = quantise_block(values, scale(first + block * BLOCK, values, largest), codes);
            });
        }
        let mean = (chosen.iter().map(|&scale| f64::from(scale)).sum::<f64>() / chosen.len().max(1) as f64) as f32;
        let mut scales = vec![0; chosen.len()];
        let ranges = chosen.chunks(SCALES).zip(scales.chunks_mut(SCALES));
        let ranges = ranges.map(|(chosen, codes)| quantise_scales(chosen, mean, codes)).collect();
        Ok(Self { numbers, codes, scales, ranges, mean })
    }

    /// From its parts, which have the layout of bitsandbytes' `QuantState`: packed codes, codes of scales, `state2.absmax` and
    /// `offset`.
    ///
    /// # Panics
    /// If they are not those of so many numbers.
    #[must_use]
    pub fn from_parts(numbers: usize, codes: Vec<u8>, scales: Vec<u8>, ranges: Vec<f32>, mean: f32) -> Self {
        let blocks = numbers.div_ceil(BLOCK);
        let lengths = [codes.len(), scales.len(), ranges.len()];
        assert_eq!(lengths, [numbers.div_ceil(2), blocks, blocks.div_ceil(SCALES)], "nf4: parts of {numbers} numbers");
        Self { numbers, codes, scales, ranges, mean }
    }

    /// Packed codes, codes of scales, their ranges and the mean scale; as [`Nf4::from_parts`].
    #[must_use]
    pub fn parts(&self) -> (&[u8], &[u8], &[f32], f32) {
        (&self.codes, &self.scales, &self.ranges, self.mean)
    }

    fn scale(&self, values: &[f32; 256], block: usize) -> f32 {
        values[usize::from(self.scales[block])] * self.ranges[block / SCALES] + self.mean
    }
}

/// What the codes of scales stand for.
#[cfg(feature = "gpu")]
pub(super) fn scale_values() -> &'static [f32; 256] {
    &SCALE_VALUES
}

impl Packed for Nf4 {
    #[cfg(feature = "gpu")]
    fn on_device(&self, device: &Device) -> Option<Box<dyn Packed>> {
        super::cube::nf4_on(self, device)
    }

    fn numbers(&self) -> usize {
        self.numbers
    }

    fn bytes(&self) -> usize {
        self.codes.len() + self.scales.len() + 4 * self.ranges.len() + 4
    }

    fn format(&self) -> &str {
        "nf4"
    }

    fn decode(&self, first: usize, values: &mut [f32]) {
        assert!(first + values.len() <= self.numbers, "nf4: numbers behind the last");
        let scales: &[f32; 256] = &SCALE_VALUES;
        if first.is_multiple_of(BLOCK) && values.len().is_multiple_of(BLOCK) {
            let blocks = first / BLOCK..(first + values.len()) / BLOCK;
            let codes = &self.codes[blocks.start * BLOCK / 2..blocks.end * BLOCK / 2];
            return lookup::decode(&VALUES, codes, |block| self.scale(scales, blocks.start + block), values);
        }
        for_blocks(first, BLOCK, values, |block, skipped, values| {
            let (scale, start) = (self.scale(scales, block), block * BLOCK + skipped);
            if values.len() == BLOCK {
                return lookup::decode(&VALUES, &self.codes[start / 2..][..BLOCK / 2], |_| scale, values);
            }
            for (value, at) in values.iter_mut().zip(start..) {
                let pair = self.codes[at / 2];
                let code = if at % 2 == 0 { pair >> 4 } else { pair & 15 };
                *value = VALUES[usize::from(code)] * scale;
            }
        });
    }
}

/// Writes the codes of a block under a scale; the scale to decode them under.
fn quantise_block(values: &[f32], scale: f32, codes: &mut [u8]) -> f32 {
    let (divisor, factor) = (scale.max(LEAST), 1.0 / scale.max(LEAST));
    let code = |value: f32| {
        // The last block of a tensor, if it is not whole, is divided; the others are multiplied.
        let share = if values.len() == BLOCK { value * factor } else { value / divisor };
        let share = share.clamp(-1.0, 1.0);
        VALUES.windows(2).map(|two| u8::from(share > (two[0] + two[1]) / 2.0)).sum::<u8>()
    };
    for (codes, pair) in codes.iter_mut().zip(values.chunks(2)) {
        // Nothing behind the last number counts as zero.
        *codes = code(pair[0]) << 4 | code(pair.get(1).copied().unwrap_or(0.0));
    }
    if values.len() == BLOCK { scale } else { divisor }
}

/// Writes the codes of some scales less their mean; the largest distance from it.
fn quantise_scales(scales: &[f32], mean: f32, codes: &mut [u8]) -> f32 {
    let range = scales.iter().fold(0.0_f32, |range, scale| range.max((scale - mean).abs()));
    let values: &[f32; 256] = &SCALE_VALUES;
    let factor = if range > 0.0 { 1.0 / range } else { 0.0 };
    for (code, scale) in codes.iter_mut().zip(scales) {
        let share = ((scale - mean) * factor).clamp(-1.0, 1.0);
        let above = values.partition_point(|&value| value < share).clamp(1, 255);
        let (low, high) = (share - values[above - 1], values[above] - share);
        *code = if high < low { above as u8 } else { (above - 1) as u8 };
    }
    range
}

#[cfg(all(test, feature = "cpu"))]
mod tests;
