//! Frozen weights in blocks of few bits: numbers that are made when a product wants them and kept by nobody.
//!
//! [`Packed`] is what a format has to say for itself. The formats of this crate are [`Nf4`] and [`Int8`]; files bring
//! their own. On a CPU, products decode a panel at a time on its way to the tiles (`cpu::product::pack`), so that nothing
//! of a layer's size is ever made of it. Elsewhere a weight is decoded whole for one product and given back
//! (`product.rs`); a tape keeps the blocks' handle, in both.

#[cfg(feature = "gpu")]
mod cube;
mod ggml;
mod host;
mod int8;
mod lookup;
mod nf4;
mod product;

use std::fmt::Debug;
use std::sync::Arc;

use burn::Tensor;
use burn::tensor::{DType, Device, TensorData};

pub use ggml::{Ggml, decodes_ggml};
pub use host::HostNumbers;
pub use int8::Int8;
pub use nf4::Nf4;
pub(crate) use product::times_transposed;

/// Numbers in blocks, in C order.
pub trait Packed: Debug + Send + Sync {
    /// How many there are.
    fn numbers(&self) -> usize;

    /// Bytes that hold them.
    fn bytes(&self) -> usize;

    /// Name of the format.
    fn format(&self) -> &str;

    /// So many numbers from `first` on as a flat tensor on a device, in this format or their own, where that is less than
    /// moving what `decode` makes of them.
    fn numbers_on(&self, _first: usize, _count: usize, _device: &Device, _dtype: DType) -> Option<Tensor<1>> {
        None
    }

    /// Rows of `width` numbers by index, of a matrix whose first number is `first`, where `numbers_on` would have numbers too.
    fn rows_on(
        &self,
        _first: usize,
        _width: usize,
        _rows: &[u32],
        _device: &Device,
        _dtype: DType,
    ) -> Option<Tensor<1>> {
        None
    }

    /// The same blocks in a device's own memory, decoded there; `None` where they stay where they are.
    fn on_device(&self, _device: &Device) -> Option<Box<dyn Packed>> {
        None
    }

    /// The numbers from `first` on, decoded by the calling thread. A block of which some are wanted is decoded whole.
    ///
    /// # Panics
    /// If there are not so many.
    fn decode(&self, first: usize, values: &mut [f32]);
}

/// A frozen tensor in blocks; clones share them.
#[derive(Clone, Debug)]
pub struct Blocks<const D: usize> {
    packed: Arc<dyn Packed>,
    /// Its first number.
    first: usize,
    shape: [usize; D],
}

impl<const D: usize> Blocks<D> {
    /// A tensor of all the numbers.
    ///
    /// # Panics
    /// If they do not fill the shape.
    pub fn new(packed: Arc<dyn Packed>, shape: [usize; D]) -> Self {
        assert_eq!(packed.numbers(), shape.iter().product::<usize>(), "blocks: numbers fill the shape {shape:?}");
        Self { packed, first: 0, shape }
    }

    /// In the memory of a device, if their format is decoded there.
    #[must_use]
    pub fn on(self, device: &Device) -> Self {
        match self.packed.on_device(device) {
            Some(packed) => Self { packed: packed.into(), ..self },
            None => self,
        }
    }

    /// Its shape.
    #[must_use]
    pub fn dims(&self) -> [usize; D] {
        self.shape
    }

    /// Where its numbers lie.
    #[must_use]
    pub fn packed(&self) -> &Arc<dyn Packed> {
        &self.packed
    }

    /// The numbers.
    #[must_use]
    pub fn decoded(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.shape.iter().product()];
        self.packed.decode(self.first, &mut values);
        values
    }

    /// All of it as a dense tensor.
    #[must_use]
    pub fn dense(&self, device: &Device, dtype: DType) -> Tensor<D> {
        match self.packed.numbers_on(self.first, self.shape.iter().product(), device, dtype) {
            Some(numbers) => numbers.cast(dtype).reshape(self.shape),
            None => Tensor::from_data(TensorData::new(self.decoded(), self.shape), (device, dtype)),
        }
    }

    /// Index of its first number.
    #[cfg(feature = "cpu")]
    pub(crate) fn first(&self) -> usize {
        self.first
    }
}

impl Blocks<2> {
    /// Rows by index, in this order, `[rows, columns]`.
    ///
    /// # Panics
    /// If a row is not one of the matrix.
    #[must_use]
    pub fn rows(&self, rows: &[u32], device: &Device, dtype: DType) -> Tensor<2> {
        let [count, width] = self.shape;
        if let Some(&row) = rows.iter().find(|&&row| row as usize >= count) {
            panic!("blocks: row {row} of {count}");
        }
        if let Some(numbers) = self.packed.rows_on(self.first, width, rows, device, dtype) {
            return numbers.cast(dtype).reshape([rows.len(), width]);
        }
        let mut values = vec![0.0; rows.len() * width];
        for (&row, values) in rows.iter().zip(values.chunks_exact_mut(width.max(1))) {
            self.packed.decode(self.first + row as usize * width, values);
        }
        Tensor::from_data(TensorData::new(values, [rows.len(), width]), (device, dtype))
    }
}

impl Blocks<3> {
    /// One of its matrices.
    pub(crate) fn matrix(&self, index: usize) -> Blocks<2> {
        let [count, rows, columns] = self.shape;
        assert!(index < count, "blocks: matrix {index} of {count}");
        Blocks { packed: self.packed.clone(), first: self.first + index * rows * columns, shape: [rows, columns] }
    }
}

/// A weight of products: a tensor, which may be trained, or frozen blocks.
#[expect(clippy::large_enum_variant, reason = "made for the time of an operation, from handles")]
#[derive(Clone, Debug)]
pub enum Weight<const D: usize> {
    /// Numbers as they are.
    Dense(Tensor<D>),
    /// Numbers in blocks.
    Blocks(Blocks<D>),
}

impl<const D: usize> Weight<D> {
    /// Its shape.
    #[must_use]
    pub fn dims(&self) -> [usize; D] {
        match self {
            Self::Dense(tensor) => tensor.dims(),
            Self::Blocks(blocks) => blocks.dims(),
        }
    }

    /// Whether a gradient of it is wanted.
    #[must_use]
    pub fn is_tracked(&self) -> bool {
        matches!(self, Self::Dense(tensor) if tensor.is_tracked())
    }

    /// The same off the tape.
    #[must_use]
    pub fn inner(self) -> Self {
        match self {
            Self::Dense(tensor) => Self::Dense(tensor.inner()),
            blocks => blocks,
        }
    }

    /// As a tensor: itself, or for as long as the caller holds it the numbers of its blocks in the format of `like`.
    pub(crate) fn beside(self, device: &Device, dtype: DType) -> Tensor<D> {
        match self {
            Self::Dense(tensor) => tensor,
            Self::Blocks(blocks) => blocks.dense(&device.clone().without_autodiff(), dtype),
        }
    }
}

impl<const D: usize> From<Tensor<D>> for Weight<D> {
    fn from(tensor: Tensor<D>) -> Self {
        Self::Dense(tensor)
    }
}

impl<const D: usize> From<&Tensor<D>> for Weight<D> {
    fn from(tensor: &Tensor<D>) -> Self {
        Self::Dense(tensor.clone())
    }
}

impl<const D: usize> From<Blocks<D>> for Weight<D> {
    fn from(blocks: Blocks<D>) -> Self {
        Self::Blocks(blocks)
    }
}

/// Calls `f(block, skipped, values)` for each block of `length` that `first..first + values.len()` touches: of its numbers,
/// those behind the first `skipped` ones go to `values`.
fn for_blocks(first: usize, length: usize, values: &mut [f32], mut f: impl FnMut(usize, usize, &mut [f32])) {
    let (mut at, mut rest) = (first, values);
    while !rest.is_empty() {
        let skipped = at % length;
        let (here, behind) = rest.split_at_mut(rest.len().min(length - skipped));
        at += here.len();
        f((at - 1) / length, skipped, here);
        rest = behind;
    }
}

#[cfg(all(test, feature = "cpu"))]
mod tests;
