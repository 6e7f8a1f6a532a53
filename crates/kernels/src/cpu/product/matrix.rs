//! Strided views of operands.

use burn::tensor::DType;
use burn::tensor::bf16;
use burn_flex::FlexTensor;

use super::{Number, Precision};
use crate::blocks::Packed;
use crate::cpu::operand::Held;
use crate::cpu::vector;

/// Numbers of an operand.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Elements<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    /// In blocks, from a number on.
    Blocks(&'a dyn Packed, usize),
}

impl<'a> Elements<'a> {
    /// All that the tensor's storage holds; `None` for other number formats.
    pub(crate) fn of(tensor: &'a FlexTensor) -> Option<Self> {
        match tensor.dtype() {
            DType::F32 => Some(Self::F32(tensor.storage::<f32>())),
            DType::BF16 => Some(Self::Bf16(tensor.storage::<bf16>())),
            _ => None,
        }
    }

    pub(crate) fn len(self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
            Self::Blocks(packed, first) => packed.numbers() - first,
        }
    }

    /// Adds them to a row.
    pub(super) fn add_to(self, row: &mut [f32]) {
        match self {
            Self::F32(values) => row.iter_mut().zip(values).for_each(|(sum, value)| *sum += value),
            Self::Bf16(values) => row.iter_mut().zip(values).for_each(|(sum, value)| *sum += value.to_f32()),
            Self::Blocks(..) => {
                let mut values = vec![0.0; row.len()];
                row.iter_mut().zip(self.wide(0, &mut values)).for_each(|(sum, value)| *sum += value);
            }
        }
    }

    /// Those from `first` on.
    pub(crate) fn from(self, first: usize) -> Self {
        match self {
            Self::F32(values) => Self::F32(&values[first..]),
            Self::Bf16(values) => Self::Bf16(&values[first..]),
            Self::Blocks(packed, before) => {
                assert!(before + first <= packed.numbers(), "product: numbers behind the last");
                Self::Blocks(packed, before + first)
            }
        }
    }

    /// As many of them as `buffer` has room for, from `first` on, in f32: where they lie, or there.
    pub(super) fn wide<'b>(self, first: usize, buffer: &'b mut [f32]) -> &'b [f32]
    where
        'a: 'b,
    {
        match self {
            Self::F32(values) => return &values[first..][..buffer.len()],
            Self::Bf16(values) => vector::widen(buffer, &values[first..][..buffer.len()]),
            Self::Blocks(packed, before) => packed.decode(before + first, buffer),
        }
        buffer
    }
}

/// A read-only matrix inside a slice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a> {
    pub(super) elements: Elements<'a>,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) row_stride: usize,
    pub(super) column_stride: usize,
    /// bf16 elements are widened and multiplied as f32.
    widened: bool,
}

impl<'a> Matrix<'a> {
    /// `rows` rows of `columns` neighbouring elements, `row_stride` apart.
    pub(crate) fn strided(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self::strided_in(Elements::F32(data), rows, columns, row_stride)
    }

    /// The same of elements of either format.
    pub(crate) fn strided_in(elements: Elements<'a>, rows: usize, columns: usize, row_stride: usize) -> Self {
        Self { elements, rows, columns, row_stride, column_stride: 1, widened: false }.checked()
    }

    /// A matrix in C order that fills the slice.
    pub(crate) fn dense(data: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(data.len(), rows * columns, "product: a dense matrix fills its slice");
        Self::strided(data, rows, columns, columns)
    }

    /// A matrix in C order at the beginning of the elements.
    pub(crate) fn first_of(elements: Elements<'a>, rows: usize, columns: usize) -> Self {
        Self { elements, rows, columns, row_stride: columns, column_stride: 1, widened: false }.checked()
    }

    /// The matrix a rank-2 tensor holds, whatever its strides; `None` for reversed axes and other number formats.
    pub(crate) fn of(tensor: &'a FlexTensor) -> Option<Self> {
        let layout = tensor.layout();
        let [rows, columns] = [layout.shape()[0], layout.shape()[1]];
        let stride = |axis: usize| usize::try_from(layout.strides()[axis]).ok();
        let (row_stride, column_stride) = (stride(0)?, stride(1)?);
        let elements = Elements::of(tensor)?.from(layout.start_offset());
        Some(Self { elements, rows, columns, row_stride, column_stride, widened: false }.checked())
    }

    /// A weight of products, as [`Matrix::of`] where it is a tensor.
    pub(crate) fn of_held(weight: &'a Held<2>) -> Option<Self> {
        match weight {
            Held::Dense(tensor) => Self::of(tensor),
            Held::Blocks(blocks) => {
                let [rows, columns] = blocks.dims();
                Some(Self::first_of(Elements::Blocks(&**blocks.packed(), blocks.first()), rows, columns))
            }
        }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// The transposed view.
    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    fn checked(self) -> Self {
        if self.rows > 0 && self.columns > 0 {
            let last = (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride;
            assert!(last < self.elements.len(), "product: a matrix must lie inside its slice");
        }
        self
    }

    /// Columns `first..first + count`.
    pub(crate) fn columns_from(self, first: usize, count: usize) -> Self {
        let elements = if count == 0 { self.elements } else { self.elements.from(first * self.column_stride) };
        Self { elements, columns: count, ..self }.checked()
    }

    pub(crate) fn rows_from(self, first: usize, count: usize) -> Self {
        self.transposed().columns_from(first, count).transposed()
    }

    /// `out += factor · row`.
    pub(crate) fn accumulate_row(self, row: usize, factor: f32, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.columns, "product: a row of {} numbers", self.columns);
        let at = |column: usize| row * self.row_stride + column * self.column_stride;
        match self.elements {
            Elements::F32(values) => {
                out.iter_mut().enumerate().for_each(|(column, out)| *out += factor * values[at(column)]);
            }
            Elements::Bf16(values) => {
                out.iter_mut().enumerate().for_each(|(column, out)| *out += factor * values[at(column)].to_f32());
            }
            Elements::Blocks(..) => {
                assert_eq!(self.column_stride, 1, "product: blocks are decoded along rows");
                let mut values = vec![0.0; out.len()];
                let values = self.elements.wide(at(0), &mut values);
                out.iter_mut().zip(values).for_each(|(out, value)| *out += factor * value);
            }
        }
    }

    /// The same beside activations of another format: a weight is multiplied in theirs.
    pub(crate) fn beside<E: Number>(self) -> Self {
        Self { widened: E::PRECISION == Precision::F32, ..self }
    }

    /// Format in which it wants to be multiplied.
    pub(super) fn precision(&self) -> Precision {
        match self.elements {
            Elements::Bf16(_) if !self.widened => Precision::Bf16,
            _ => Precision::F32,
        }
    }

    /// Whether its elements are those of the format.
    pub(super) fn is_in(&self, precision: Precision) -> bool {
        match self.elements {
            Elements::F32(_) => precision == Precision::F32,
            Elements::Bf16(_) => precision == Precision::Bf16,
            Elements::Blocks(..) => false,
        }
    }
}
