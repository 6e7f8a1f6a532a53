//! [`TensorSource`]: tensors that can be read by name, wherever they lie.

use std::{borrow::Cow, collections::HashMap};

use crate::{Dtype, MappedBytes, TensorInfo, WeightError, encoding};

/// Tensors that can be read by name in any order, from many threads.
pub trait TensorSource: Send + Sync {
    /// All of them, in the order they are stored.
    fn tensors(&self) -> &[TensorInfo];

    /// One of them.
    fn info(&self, name: &str) -> Option<&TensorInfo>;

    /// The stored bytes of one: little-endian, C order, and exactly [`TensorInfo::bytes`] long.
    fn read(&self, name: &str) -> Result<Cow<'_, [u8]>, WeightError>;

    /// The same bytes, where they lie in a mapped file; nothing if they lie elsewhere or have to be made first.
    fn mapped(&self, _name: &str) -> Option<MappedBytes> {
        None
    }

    /// The elements of one as `f32`: F32 as stored, F16 and BF16 widened exactly, F64 rounded.
    fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightError> {
        let bytes = self.read(name)?;
        let info = self.info(name).expect("invariant: a tensor that was read has an entry");
        encoding::decode(info, &bytes)
    }

    /// Some consecutive elements of one as `f32`, into a buffer of their number.
    ///
    /// # Errors
    /// As [`TensorSource::read`]; also if elements do not convert.
    fn read_elements_f32(&self, name: &str, first: usize, values: &mut [f32]) -> Result<(), WeightError> {
        let bytes = self.read(name)?;
        let info = self.info(name).expect("invariant: a tensor that was read has an entry");
        let size = info.dtype.size();
        let range = first.saturating_mul(size)..first.saturating_add(values.len()).saturating_mul(size);
        let wrong = || WeightError::WrongData { tensor: name.to_owned(), expected: range.end, found: bytes.len() };
        encoding::decode_into(info, bytes.get(range.clone()).ok_or_else(wrong)?, values)
    }

    /// Says that the bytes of this tensor are not needed for a while, so that memory holding them can be given up. They
    /// can still be read.
    fn release(&self, _name: &str) {}
}

/// Tensors in memory.
#[derive(Debug, Clone, Default)]
pub struct MemorySource {
    infos: Vec<TensorInfo>,
    data: Vec<Vec<u8>>,
    by_name: HashMap<String, usize>,
}

impl MemorySource {
    /// Takes tensors with their stored bytes; lengths and names are checked.
    pub fn new(tensors: Vec<(TensorInfo, Vec<u8>)>) -> Result<Self, WeightError> {
        let mut source = Self::default();
        for (info, bytes) in tensors {
            let expected = info.bytes();
            if expected != bytes.len() {
                return Err(WeightError::WrongData { tensor: info.name, expected, found: bytes.len() });
            }
            if source.by_name.insert(info.name.clone(), source.infos.len()).is_some() {
                return Err(WeightError::Duplicate {
                    tensor: info.name,
                    first: "memory".to_owned(),
                    second: "memory".to_owned(),
                });
            }
            source.infos.push(info);
            source.data.push(bytes);
        }
        Ok(source)
    }

    /// Takes names, shapes and `f32` elements.
    pub fn from_f32(tensors: impl IntoIterator<Item = (String, Vec<usize>, Vec<f32>)>) -> Result<Self, WeightError> {
        let tensors = tensors
            .into_iter()
            .map(|(name, shape, values)| {
                let info = TensorInfo::new(name, Dtype::F32, shape);
                let bytes = encoding::encode(&info, &values)?;
                Ok((info, bytes))
            })
            .collect::<Result<Vec<_>, WeightError>>()?;
        Self::new(tensors)
    }
}

impl TensorSource for MemorySource {
    fn tensors(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&index| &self.infos[index])
    }

    fn read(&self, name: &str) -> Result<Cow<'_, [u8]>, WeightError> {
        let index = self
            .by_name
            .get(name)
            .ok_or_else(|| WeightError::Missing { tensor: name.to_owned(), place: "memory".to_owned() })?;
        Ok(Cow::Borrowed(&self.data[*index]))
    }
}
