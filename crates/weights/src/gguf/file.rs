//! [`GgufFile`]: a GGUF model, mapped into memory.

use std::{
    borrow::Cow,
    collections::HashMap,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use memmap2::Mmap;

use super::shards::{self, Shard};
use super::{GgufFault, GgufTensor, Metadata, blocks, header};
use crate::{MappedBytes, WeightError, mapped};

/// One GGUF file, or several that belong together. Opening reads headers only.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    files: Vec<(PathBuf, Arc<Mmap>)>,
    metadata: Metadata,
    tensors: Vec<GgufTensor>,
    places: HashMap<String, Place>,
}

#[derive(Debug)]
struct Place {
    tensor: usize,
    file: usize,
    range: Range<usize>,
}

impl GgufFile {
    /// Opens a file. Any one of several that belong together stands for all of them.
    pub fn open(path: &Path) -> Result<Self, WeightError> {
        let mut model = Self {
            path: path.to_owned(),
            files: Vec::new(),
            metadata: Metadata::new(),
            tensors: Vec::new(),
            places: HashMap::new(),
        };
        let map = mapped::map(path)?;
        let header = header::parse(path, &map)?;
        let malformed = |fault| WeightError::GgufMalformed { path: path.to_owned(), at: 0, fault };
        let Some(shard) = Shard::of(&header.metadata).map_err(malformed)? else {
            model.metadata = shards::without_keys(header.metadata);
            model.add(path, map, header.entries)?;
            return Ok(model);
        };
        let base = shards::base(path, shard).map_err(malformed)?;
        drop(header.entries);
        for index in 0..shard.count {
            model.add_shard(&shards::name(&base, index as usize, shard.count as usize), Shard { index, ..shard })?;
        }
        let found = model.tensors.len() as u64;
        if let Some(expected) = shard.tensors.filter(|&expected| expected != found) {
            let [_, _, key] = shards::KEYS;
            let (found, expected) = (expected.to_string(), format!("{found}, which its files hold together"));
            return Err(malformed(GgufFault::KeyValue { key, found, expected }));
        }
        Ok(model)
    }

    fn add_shard(&mut self, path: &Path, expected: Shard) -> Result<(), WeightError> {
        let map = mapped::map(path)?;
        let header = header::parse(path, &map)?;
        let malformed = |fault| WeightError::GgufMalformed { path: path.to_owned(), at: 0, fault };
        let found = Shard::of(&header.metadata).map_err(malformed)?;
        if found != Some(expected) {
            let name = |shard: Shard| format!("{} of {}", shard.index, shard.count);
            return Err(malformed(GgufFault::KeyValue {
                key: shards::KEYS[0],
                found: found.map_or_else(|| "absent".to_owned(), name),
                expected: format!("{}, with the same number of tensors", name(expected)),
            }));
        }
        if expected.index == 0 {
            self.metadata = shards::without_keys(header.metadata);
        }
        self.add(path, map, header.entries)
    }

    fn add(&mut self, path: &Path, map: Mmap, entries: Vec<header::Entry>) -> Result<(), WeightError> {
        let file = self.files.len();
        self.files.push((path.to_owned(), Arc::new(map)));
        for header::Entry { tensor, begin, end } in entries {
            let name = tensor.name.clone();
            let place = Place { tensor: self.tensors.len(), file, range: begin..end };
            if let Some(first) = self.places.insert(name.clone(), place) {
                let place = |file: usize| self.files[file].0.display().to_string();
                return Err(WeightError::Duplicate { tensor: name, first: place(first.file), second: place(file) });
            }
            self.tensors.push(tensor);
        }
        Ok(())
    }

    /// The file that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All of the model's files, in order.
    pub fn files(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }

    /// The keys, without those that only say how the model is divided into files.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// All tensors, in the order they are stored.
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }

    /// One of them.
    pub fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.places.get(name).map(|place| &self.tensors[place.tensor])
    }

    /// The stored bytes of one, exactly [`GgufTensor::bytes`] long.
    pub fn read(&self, name: &str) -> Result<Cow<'_, [u8]>, WeightError> {
        Ok(Cow::Borrowed(self.bytes(self.place(name)?)))
    }

    /// The same bytes, which stay mapped for as long as they live.
    pub fn mapped(&self, name: &str) -> Option<MappedBytes> {
        let place = self.places.get(name)?;
        Some(MappedBytes::new(&self.files[place.file].1, place.range.clone()))
    }

    /// The elements of one as `f32`, each rounded as its format's definition says.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightError> {
        let place = self.place(name)?;
        self.decode(place, self.bytes(place))
    }

    /// Some rows of one as `f32`: rows are along the innermost axis, all outer axes taken together.
    pub fn read_rows_f32(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>, WeightError> {
        let place = self.place(name)?;
        let tensor = &self.tensors[place.tensor];
        let bytes = self.bytes(place);
        let width = tensor.ty.row_bytes(tensor.row()).expect("invariant: the tensor was checked");
        let count: usize = tensor.shape[..tensor.shape.len().saturating_sub(1)].iter().product();
        if rows.start > rows.end || rows.end > count {
            return Err(WeightError::NoSuchRows {
                path: self.files[place.file].0.clone(),
                tensor: name.to_owned(),
                rows: count,
                begin: rows.start,
                end: rows.end,
            });
        }
        self.decode(place, &bytes[rows.start * width..rows.end * width])
    }

    /// Says that the bytes of this tensor are not needed for a while, so that memory holding them can be given up. They
    /// can still be read.
    pub fn release(&self, name: &str) {
        if let Some(place) = self.places.get(name) {
            mapped::give_back(&self.files[place.file].1, &place.range);
        }
    }

    fn place(&self, name: &str) -> Result<&Place, WeightError> {
        self.places.get(name).ok_or_else(|| WeightError::Missing {
            tensor: name.to_owned(),
            place: format!("`{}`", self.path.display()),
        })
    }

    fn bytes(&self, place: &Place) -> &[u8] {
        &self.files[place.file].1[place.range.clone()]
    }

    fn decode(&self, place: &Place, bytes: &[u8]) -> Result<Vec<f32>, WeightError> {
        let tensor = &self.tensors[place.tensor];
        if !blocks::can_decode(tensor.ty) {
            return Err(WeightError::UnreadableType {
                path: self.files[place.file].0.clone(),
                tensor: tensor.name.clone(),
                ty: tensor.ty,
            });
        }
        let mut values = vec![0.0; bytes.len() / tensor.ty.block_bytes() * tensor.ty.block()];
        blocks::decode(tensor.ty, bytes, &mut values)?;
        Ok(values)
    }
}
