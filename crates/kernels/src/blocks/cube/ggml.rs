//! ggml's blocks on a GPU, as they lie in a file. A unit decodes eight numbers, which never lie under two scales.
//!
//! Bits are those of ggml's own decoders: steps of the K-quants are products of 11 by at most 8 bits, their products with a
//! quant exact or rounded once, so that it does not matter whether a device joins a product with the difference behind it.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use crate::blocks::Ggml;
use crate::gpu::tensor::{elem, elementwise, empty, vector_size};

/// Numbers a unit decodes.
const LANES: usize = 8;

/// Which numbers are wanted: so many from each of some starts on.
pub(super) enum Part<'a> {
    From(usize, usize),
    /// Rows of a matrix that begins at `first`, by index in u32.
    Rows {
        first: usize,
        width: usize,
        rows: &'a CubeTensor,
    },
}

/// Whether [`decoded`] takes these rows: of whole eighths.
pub(super) fn takes_rows(first: usize, width: usize) -> bool {
    width > 0 && first.is_multiple_of(LANES) && width.is_multiple_of(LANES)
}

/// The numbers in this type, one behind another.
pub(super) fn decoded(words: &CubeTensor, format: Ggml, part: &Part<'_>, dtype: DType) -> CubeTensor {
    let (first, count, width) = match part {
        Part::From(first, count) => (*first, *count, 0),
        Part::Rows { first, width, rows } => (*first, rows.meta.shape()[0] * width, *width),
    };
    let y = empty(words, [count], dtype);
    if count == 0 {
        return y;
    }
    // Where an end lies within eight numbers, each is looked at for itself.
    let aligned = first.is_multiple_of(LANES) && count.is_multiple_of(LANES);
    let vector = if aligned { vector_size(words, &[dtype], &[LANES]) } else { 1 };
    let units = (first + count).div_ceil(LANES) - first / LANES;
    let (cubes, dim) = elementwise(words, units);
    let rows = match part {
        Part::From(..) => words,
        Part::Rows { rows, .. } => rows,
    };
    // SAFETY: units beyond the last number end, and only numbers from `first` to `first + count` are written.
    #[expect(unsafe_code, reason = "a launch without checks of every index")]
    unsafe {
        ggml_numbers::launch_unchecked(
            &words.client,
            cubes,
            dim,
            vector,
            words.clone().into_buffer_arg(),
            rows.clone().into_buffer_arg(),
            y.clone().into_buffer_arg(),
            units,
            first,
            count,
            width / LANES,
            format,
            aligned,
            elem(dtype),
        );
    }
    y
}

#[cube(launch_unchecked)]
fn ggml_numbers<E: Float, N: Size>(
    words: &[u32],
    rows: &[u32],
    y: &mut [Vector<E, N>],
    units: usize,
    first: usize,
    count: usize,
    width: usize,
    #[comptime] format: Ggml,
    #[comptime] aligned: bool,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= units {
        terminate!();
    }
    let mut start = (first / 8 + ABSOLUTE_POS) * 8;
    if width > 0 {
        let row = ABSOLUTE_POS / width;
        start = first + (rows[row] as usize * width + (ABSOLUTE_POS - row * width)) * 8;
    }
    let mut numbers = Array::<f32>::new(8usize);
    decode(words, start, &mut numbers, format);
    if comptime!(aligned) {
        let size = N::value();
        #[unroll]
        for part in 0..comptime!(8 / size) {
            let mut vector = Vector::<E, N>::cast_from(Vector::<f32, N>::new(0.0f32));
            #[unroll]
            for lane in 0..size {
                vector.insert(lane, E::cast_from(numbers[comptime!(part * size + lane)]));
            }
            y[ABSOLUTE_POS * comptime!(8 / size) + part] = vector;
        }
    } else {
        #[unroll]
        for lane in 0..8 {
            let number = start + lane;
            if number >= first && number < first + count {
                y[number - first] = Vector::new(E::cast_from(numbers[lane]));
            }
        }
    }
}

/// The eight numbers from `start` on, a multiple of eight.
#[cube]
fn decode(words: &[u32], start: usize, numbers: &mut Array<f32>, #[comptime] format: Ggml) {
    let length = comptime!(format.block().0);
    let block = start / length;
    let at = start - block * length;
    let base = block * comptime!(format.block().1);
    if comptime!(matches!(format, Ggml::Q4_K | Ggml::Q5_K)) {
        fives_of_k(words, base, at, numbers, comptime!(format == Ggml::Q5_K));
    } else if comptime!(format == Ggml::Q6_K) {
        sixes_of_k(words, base, at, numbers);
    } else if comptime!(format == Ggml::Q8_0) {
        let step = half(words, base);
        let quants = base + 2 + at;
        #[unroll]
        for lane in 0..8 {
            numbers[lane] = signed(byte(words, quants + lane)) * step;
        }
    } else {
        fives(words, base, at, numbers, format);
    }
}

/// Q4_0, Q4_1, Q5_0 and Q5_1: number `j` shares a byte with number `j + 16`; the fifth bits lie before them.
#[cube]
fn fives(words: &[u32], base: usize, at: usize, numbers: &mut Array<f32>, #[comptime] format: Ggml) {
    let has_least = comptime!(matches!(format, Ggml::Q4_1 | Ggml::Q5_1));
    let has_fifth = comptime!(matches!(format, Ggml::Q5_0 | Ggml::Q5_1));
    let head = comptime!(if has_least { 4usize } else { 2usize });
    let step = half(words, base);
    let mut least = 0.0f32.runtime();
    if comptime!(has_least) {
        least = half(words, base + 2);
    }
    let mut fifth = 0u32.runtime();
    if comptime!(has_fifth) {
        fifth = four(words, base + head) >> (at as u32);
    }
    let pairs = base + comptime!(head + if has_fifth { 4 } else { 0 });
    let shift = (at / 16) as u32 * 4u32;
    let at = pairs + at % 16;
    #[unroll]
    for lane in 0..8 {
        let part = comptime!(lane / 4 * 4);
        let bits = comptime!(lane as u32 % 4 * 8);
        let low = (four(words, at + part) >> (shift + bits)) & 15u32;
        let quant = f32::cast_from(low | (((fifth >> comptime!(lane as u32)) & 1u32) << 4u32));
        if comptime!(has_least) {
            numbers[lane] = quant * step + least;
        } else {
            numbers[lane] = (quant - f32::new(comptime!(if has_fifth { 16.0f32 } else { 8.0f32 }))) * step;
        }
    }
}

/// Q4_K and Q5_K: eight times 32 numbers, each with a step and a difference of six bits.
#[cube]
fn fives_of_k(words: &[u32], base: usize, at: usize, numbers: &mut Array<f32>, #[comptime] fifths: bool) {
    let sub = at / 32;
    let scales = base + 4;
    let mut scale = byte(words, scales + sub) & 63u32;
    let mut least = byte(words, scales + sub % 4 + 4) & 63u32;
    if sub >= 4 {
        let low = byte(words, scales + sub + 4);
        scale = (low & 15u32) | ((byte(words, scales + sub - 4) >> 6u32) << 4u32);
        least = (low >> 4u32) | ((byte(words, scales + sub) >> 6u32) << 4u32);
    }
    let step = half(words, base) * f32::cast_from(scale);
    let difference = half(words, base + 2) * f32::cast_from(least);
    let column = at % 32;
    let shift = (sub % 2) as u32 * 4u32;
    let pairs = base + comptime!(if fifths { 48usize } else { 16usize }) + sub / 2 * 32 + column;
    #[unroll]
    for lane in 0..8 {
        let part = comptime!(lane / 4 * 4);
        let bits = comptime!(lane as u32 % 4 * 8);
        let mut quant = (four(words, pairs + part) >> (shift + bits)) & 15u32;
        if comptime!(fifths) {
            let fifth = (four(words, base + 16 + column + part) >> (sub as u32 + bits)) & 1u32;
            quant = quant | (fifth << 4u32);
        }
        numbers[lane] = step * f32::cast_from(quant) - difference;
    }
}

/// Q6_K: sixteen times 16 numbers, each with a step of eight bits; quants less 32.
#[cube]
fn sixes_of_k(words: &[u32], base: usize, at: usize, numbers: &mut Array<f32>) {
    let side = at / 128;
    let quarter = at % 128 / 32;
    let column = at % 32;
    let step = half(words, base + 208) * signed(byte(words, base + 192 + at / 16));
    let low = base + side * 64 + quarter % 2 * 32 + column;
    let high = base + 128 + side * 32 + column;
    let low_shift = (quarter / 2) as u32 * 4u32;
    let high_shift = quarter as u32 * 2u32;
    #[unroll]
    for lane in 0..8 {
        let part = comptime!(lane / 4 * 4);
        let bits = comptime!(lane as u32 % 4 * 8);
        let quant = ((four(words, low + part) >> (low_shift + bits)) & 15u32)
            | (((four(words, high + part) >> (high_shift + bits)) & 3u32) << 4u32);
        numbers[lane] = step * (f32::cast_from(quant) - 32.0f32);
    }
}

#[cube]
fn byte(words: &[u32], at: usize) -> u32 {
    (words[at / 4] >> ((at % 4) as u32 * 8u32)) & 255u32
}

/// A byte as a number with a sign.
#[cube]
fn signed(byte: u32) -> f32 {
    f32::cast_from(byte) - select(byte > 127u32, 256.0f32, 0.0f32)
}

/// Four bytes from an even place on; a word lies behind the last.
#[cube]
fn four(words: &[u32], at: usize) -> u32 {
    let word = at / 4;
    let low = words[word];
    select(at % 4 == 0, low, (low >> 16u32) | (words[word + 1] << 16u32))
}

/// The F16 at an even place, exactly; by whole numbers, for a device may have no F16, and none for which a small one is not
/// zero.
#[cube]
fn half(words: &[u32], at: usize) -> f32 {
    let bits = (words[at / 4] >> ((at % 4) as u32 * 8u32)) & 65535u32;
    let exponent = (bits >> 10u32) & 31u32;
    let fraction = bits & 1023u32;
    let sign = (bits >> 15u32) << 31u32;
    let normal = ((exponent + 112u32) << 23u32) | (fraction << 13u32);
    let special = 0x7f80_0000u32 | (fraction << 13u32);
    let small = u32::reinterpret(f32::cast_from(fraction) * 5.960_464_5e-8f32);
    let size = select(exponent == 0u32, small, select(exponent == 31u32, special, normal));
    f32::reinterpret(size | sign)
}
