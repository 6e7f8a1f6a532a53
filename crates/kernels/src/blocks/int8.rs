//! Eight bits a number under a scale for each row: `round(127·w / max|row|)`, as LLM.int8 stores weights (Dettmers et al.
//! 2022, arXiv 2208.07339). A scale a row costs nothing and is the same for a whole output, whose sum it could as well
//! multiply; with eight bits, blocks of a row gain little.

#[cfg(feature = "gpu")]
use burn::tensor::Device;
use rayon::prelude::*;

use super::{Packed, for_blocks};

/// Numbers that are read at a time, if rows are shorter.
const PIECE: usize = 1 << 20;

/// Adding and taking it away rounds a small number to an integer.
const ROUND: f32 = 12_582_912.0;

/// Rows of eight-bit integers.
#[derive(Debug)]
pub struct Int8 {
    codes: Vec<i8>,
    /// Of each row, what a step of a code is worth.
    steps: Vec<f32>,
    width: usize,
}

impl Int8 {
    /// Bytes that so many numbers in so many rows take.
    #[must_use]
    pub fn bytes_of(numbers: u64, rows: u64) -> u64 {
        numbers + 4 * rows
    }

    /// Codes, what a step is worth in each row, and the width of a row.
    #[cfg(feature = "gpu")]
    pub(super) fn parts(&self) -> (&[i8], &[f32], usize) {
        (&self.codes, &self.steps, self.width)
    }

    /// Quantises rows of `width` that `read(first, values)` gives piece by piece.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn quantise<E>(
        rows: usize,
        width: usize,
        mut read: impl FnMut(usize, &mut [f32]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut codes = vec![0; rows * width];
        let mut steps = vec![0.0; rows];
        let most = (PIECE / width.max(1)).max(1);
        let mut values = vec![0.0; rows.min(most) * width];
        let pieces = codes.chunks_mut((most * width).max(1)).zip(steps.chunks_mut(most));
        for (index, (codes, steps)) in pieces.enumerate() {
            let values = &mut values[..codes.len()];
            read(index * most * width, values)?;
            let rows = values.par_chunks(width).zip(codes.par_chunks_mut(width)).zip(steps);
            rows.for_each(|((values, codes), step)| *step = quantise_row(values, codes));
        }
        Ok(Self { codes, steps, width })
    }
}

impl Packed for Int8 {
    #[cfg(feature = "gpu")]
    fn on_device(&self, device: &Device) -> Option<Box<dyn Packed>> {
        super::cube::int8_on(self, device)
    }

    fn numbers(&self) -> usize {
        self.codes.len()
    }

    fn bytes(&self) -> usize {
        self.codes.len() + 4 * self.steps.len()
    }

    fn format(&self) -> &str {
        "int8"
    }

    fn decode(&self, first: usize, values: &mut [f32]) {
        for_blocks(first, self.width.max(1), values, |row, skipped, values| {
            let (step, start) = (self.steps[row], row * self.width + skipped);
            for (value, code) in values.iter_mut().zip(&self.codes[start..]) {
                *value = f32::from(*code) * step;
            }
        });
    }
}

/// Writes the codes of a row; what a step is worth.
fn quantise_row(values: &[f32], codes: &mut [i8]) -> f32 {
    let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let factor = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    for (code, value) in codes.iter_mut().zip(values) {
        // To the nearest integer, ties to even, where a rounding of its own would be a call.
        let nearest = value.clamp(-largest, largest) * factor + ROUND - ROUND;
        *code = nearest as i32 as i8;
    }
    largest / 127.0
}
