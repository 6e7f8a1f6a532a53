//! The two types a tensor's elements have on the CPU, f32 and bf16, behind one trait: all arithmetic is f32, so a form is
//! written once, reads rows that were widened and writes rows that are narrowed.
//!
//! For f32 both are the row itself: no copy, and the bits of a form written for f32 alone.

use std::ops::Range;

use burn::tensor::{Bytes, DType, Shape, bf16};
use burn_flex::{FlexTensor, Layout};
use bytemuck::Pod;

use super::columns::Columns;
use super::vector;

/// Elements that are widened at once: few enough to stay in the first-level cache, many enough to be worth the call.
pub(crate) const PIECE: usize = 1024;

/// Rows that are widened at once.
pub(crate) fn rows_of_piece(size: usize) -> usize {
    (PIECE / size.max(1)).max(1)
}

/// What a tensor on burn-flex holds.
pub(crate) trait Element: burn::tensor::Element + Pod + Default {
    /// All elements behind a tensor, from the first one of its buffer on.
    fn storage(tensor: &FlexTensor) -> &[Self] {
        tensor.storage()
    }

    /// Elements of a tensor in C order.
    fn slice(tensor: &FlexTensor) -> &[Self] {
        tensor.as_slice().expect("invariant: a tensor of this type made contiguous")
    }

    /// The same to change, if nothing else shares them.
    fn unshared(tensor: &mut FlexTensor) -> Option<&mut [Self]> {
        let len = dense_len(tensor)?;
        tensor.try_storage_mut().filter(|values| values.len() == len)
    }

    /// A tensor that owns `values`.
    fn tensor(values: Vec<Self>, shape: impl Into<Shape>) -> FlexTensor {
        FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape.into()), Self::dtype())
    }

    /// The same number in f32, which holds every bf16.
    fn wide(self) -> f32;

    /// The row in f32; `buffer` holds it where that is a copy.
    fn read<'a>(row: &'a [Self], buffer: &'a mut Vec<f32>) -> &'a [f32];

    /// Has `f` write a row in f32, all of it: what it finds there is arbitrary. Rounds to nearest, ties to even.
    fn write<R>(out: &mut [Self], buffer: &mut Vec<f32>, f: impl FnOnce(&mut [f32]) -> R) -> R;

    /// Has `f` change a row in f32. Rounds as [`Element::write`].
    fn update(row: &mut [Self], buffer: &mut Vec<f32>, f: impl FnOnce(&mut [f32]));

    /// Some rows of the columns in f32, counted from the first of them.
    fn rows<'a>(columns: Columns<'a, Self>, rows: Range<usize>, buffer: &'a mut Vec<f32>) -> Columns<'a, f32>;
}

impl Element for f32 {
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }

    #[inline(always)]
    fn read<'a>(row: &'a [Self], _: &'a mut Vec<f32>) -> &'a [f32] {
        row
    }

    #[inline(always)]
    fn write<R>(out: &mut [Self], _: &mut Vec<f32>, f: impl FnOnce(&mut [f32]) -> R) -> R {
        f(out)
    }

    #[inline(always)]
    fn update(row: &mut [Self], _: &mut Vec<f32>, f: impl FnOnce(&mut [f32])) {
        f(row);
    }

    fn rows<'a>(columns: Columns<'a, Self>, rows: Range<usize>, _: &'a mut Vec<f32>) -> Columns<'a, f32> {
        columns.rows_from(rows.start)
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn wide(self) -> f32 {
        vector::widened(self)
    }

    fn read<'a>(row: &'a [Self], buffer: &'a mut Vec<f32>) -> &'a [f32] {
        buffer.resize(row.len(), 0.0);
        vector::widen(buffer, row);
        buffer
    }

    fn write<R>(out: &mut [Self], buffer: &mut Vec<f32>, f: impl FnOnce(&mut [f32]) -> R) -> R {
        buffer.resize(out.len(), 0.0);
        let result = f(buffer);
        vector::narrow(out, buffer);
        result
    }

    fn update(row: &mut [Self], buffer: &mut Vec<f32>, f: impl FnOnce(&mut [f32])) {
        Self::read(row, buffer);
        f(buffer);
        vector::narrow(row, buffer);
    }

    fn rows<'a>(columns: Columns<'a, Self>, rows: Range<usize>, buffer: &'a mut Vec<f32>) -> Columns<'a, f32> {
        let width = columns.width();
        buffer.resize(rows.len() * width, 0.0);
        if width > 0 {
            for (wide, row) in buffer.chunks_exact_mut(width).zip(rows) {
                vector::widen(wide, columns.row(row));
            }
        }
        Columns::dense(buffer, width)
    }
}

/// Elements of a tensor that starts at its buffer's start and lies in C order.
fn dense_len(tensor: &FlexTensor) -> Option<usize> {
    let layout = tensor.layout();
    (tensor.is_contiguous() && layout.start_offset() == 0).then(|| layout.num_elements())
}

/// Runs `$body` with `$element` as the type of elements of a dtype that [`super::operand::Operand::of_float`] takes.
macro_rules! by_element {
    ($dtype:expr, $element:ident => $body:expr) => {
        match $dtype {
            burn::tensor::DType::BF16 => {
                type $element = burn::tensor::bf16;
                $body
            }
            _ => {
                type $element = f32;
                $body
            }
        }
    };
}
pub(crate) use by_element;

/// Elements of a contiguous tensor of either type in f32; of weights, which are few.
pub(crate) fn wide(tensor: &FlexTensor) -> Vec<f32> {
    by_element!(tensor.dtype(), E => E::slice(tensor).iter().map(|value| value.wide()).collect())
}

/// A tensor of either type; of gradients of weights, which are few.
pub(crate) fn narrowed(values: Vec<f32>, shape: impl Into<Shape>, dtype: DType) -> FlexTensor {
    if dtype == DType::F32 {
        return f32::tensor(values, shape);
    }
    let mut narrow = vec![bf16::ZERO; values.len()];
    vector::narrow(&mut narrow, &values);
    bf16::tensor(narrow, shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bf16_is_the_same_number_in_f32_and_back() {
        let all: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
        let (mut buffer, mut back) = (Vec::new(), vec![bf16::ZERO; all.len()]);
        let wide = bf16::read(&all, &mut buffer).to_vec();
        bf16::write(&mut back, &mut buffer, |row| row.copy_from_slice(&wide));
        for ((narrow, wide), back) in all.iter().zip(&wide).zip(&back) {
            if narrow.is_nan() {
                assert!(wide.is_nan() && narrow.wide().is_nan() && back.is_nan(), "{narrow:?} to {wide} to {back:?}");
            } else {
                assert_eq!(wide.to_bits(), narrow.to_f32().to_bits(), "{narrow:?}");
                assert_eq!(back.to_bits(), narrow.to_bits(), "{narrow:?} from {wide}");
            }
        }
    }

    #[test]
    fn narrowing_rounds_to_nearest_even_and_keeps_what_is_no_number() {
        let special = [f32::NAN, -f32::NAN, f32::INFINITY, f32::MAX, f32::MIN, f32::MIN_POSITIVE, 1e-45, -0.0];
        let signalling = f32::from_bits(0x7f80_0001);
        let ties = [0x3f80_8000, 0x3f81_8000, 0x3f80_7fff, 0x3f80_8001, 0xbf81_8000].map(f32::from_bits);
        let many = (0..70_000).map(|step| f32::from_bits(step * 61_357));
        let values: Vec<f32> = special.into_iter().chain([signalling]).chain(ties).chain(many).collect();
        let mut narrow = vec![bf16::ZERO; values.len()];
        vector::narrow(&mut narrow, &values);
        for (value, narrow) in values.iter().zip(&narrow) {
            let expected = bf16::from_f32(*value);
            let same = narrow.to_bits() == expected.to_bits() || narrow.is_nan() && expected.is_nan();
            assert!(same, "{value:e} to {narrow:?}, not {expected:?}");
        }
    }

    #[test]
    fn rows_of_columns_are_those_of_the_matrix() {
        let matrix: Vec<f32> = (0..40).map(|value| value as f32).collect();
        let narrow: Vec<bf16> = matrix.iter().map(|&value| bf16::from_f32(value)).collect();
        let (mut buffer, mut other) = (Vec::new(), Vec::new());
        let wide = f32::rows(Columns::dense(&matrix, 8).part(1, 2), 1..4, &mut other);
        let copy = bf16::rows(Columns::dense(&narrow, 8).part(1, 2), 1..4, &mut buffer);
        for row in 0..3 {
            assert_eq!(wide.row(row), copy.row(row));
            assert_eq!(wide.row(row)[0], (8 * (row + 1) + 4) as f32);
        }
    }
}
