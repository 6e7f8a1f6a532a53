//! [`merge`]: the base with what was learnt written into its weights, streamed from file to file.
//!
//! The result has the base's files, tensor names, types and order. Tensors that training did not touch are copied byte
//! for byte. A merged weight is `W + s·(B·A)` in f32, rounded once to the stored type. Tensors go through in blocks of
//! rows, because those that hold all experts of a layer may be larger than memory.

use std::{
    borrow::Cow,
    collections::HashMap,
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use qwen_tune_weights::{
    MemorySource, ShardedWriter, TensorInfo, TensorSink, TensorSource, WeightError, Written,
    atomic::AtomicDir,
    encoding,
    peft::{Adapter, FullTensor, LoraPair},
};
use rayon::prelude::*;

use super::{ExportError, whole_tensors};
use crate::{ModelDir, TensorSpec, targets::nearest};

/// Bytes of a tensor that are in memory at a time; whole rows, at least one. Tests merge in many blocks.
const BLOCK: usize = if cfg!(test) { 1 << 8 } else { 1 << 24 };
/// Rows of a weight that one thread merges at a time.
const ROWS: usize = 16;
/// Columns merged at a time, so that a tile of A stays in the second-level cache.
const COLUMNS: usize = 1024;

/// What training has learnt.
#[derive(Clone, Copy)]
pub enum Change<'a> {
    /// An adapter, its whole tensors included.
    Adapter(&'a Adapter),
    /// Whole tensors that replace the base's, named as in the inventory or as in the checkpoint.
    Full(&'a dyn TensorSource),
}

/// What a merge has written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// The new model directory.
    pub path: PathBuf,
    /// The weights; file paths are inside `path`.
    pub written: Written,
    /// Tensors that differ from the base.
    pub changed: usize,
    /// Other files carried over.
    pub copied: Vec<String>,
}

/// Writes base and change together as a new model directory, which appears when it is whole. An existing directory that
/// is not empty is refused. Everything that does not fit the base is reported before anything is written.
pub fn merge(model: &ModelDir, change: Change<'_>, out: &Path) -> Result<Merged, Vec<ExportError>> {
    fitted(model, change, |updates| {
        let directory = AtomicDir::new(out)?;
        let mut merged = write(model, updates, directory.path())?;
        merged.path = directory.commit()?;
        for file in &mut merged.written.files {
            if let Some(name) = file.file_name() {
                *file = merged.path.join(name);
            }
        }
        Ok(merged)
    })
}

/// As [`merge`], into a directory that exists and that the caller gives its name when it is whole.
pub fn merge_into(model: &ModelDir, change: Change<'_>, directory: &Path) -> Result<Merged, Vec<ExportError>> {
    fitted(model, change, |updates| write(model, updates, directory))
}

/// Hands out what changes by the names of the checkpoint, if all of it fits.
pub(super) fn fitted<T>(
    model: &ModelDir,
    change: Change<'_>,
    then: impl FnOnce(&HashMap<String, Update<'_>>) -> Result<T, ExportError>,
) -> Result<T, Vec<ExportError>> {
    let mut updates = Updates::new(model);
    let extra = match change {
        Change::Adapter(adapter) => match whole_tensors(model, adapter) {
            Ok(tensors) => held(&tensors).map_err(|error| vec![error.into()])?,
            Err(faults) => {
                updates.faults.extend(faults);
                MemorySource::default()
            }
        },
        Change::Full(_) => MemorySource::default(),
    };
    match change {
        Change::Adapter(adapter) => {
            adapter.pairs.iter().for_each(|pair| updates.add_pair(pair));
            updates.add_full(&extra);
        }
        Change::Full(source) => updates.add_full(source),
    }
    then(&updates.finish()?).map_err(|error| vec![error])
}

fn held(tensors: &[(&TensorSpec, &FullTensor)]) -> Result<MemorySource, WeightError> {
    let named = |(tensor, other): &(&TensorSpec, &FullTensor)| {
        (TensorInfo { name: tensor.name.clone(), ..other.info.clone() }, other.bytes.clone())
    };
    MemorySource::new(tensors.iter().map(named).collect())
}

fn write(model: &ModelDir, updates: &HashMap<String, Update<'_>>, directory: &Path) -> Result<Merged, ExportError> {
    let copied = model.side_files()?;
    for name in &copied {
        let from = model.side_directory().join(name);
        fs::copy(&from, directory.join(name)).map_err(WeightError::io("copy", &from))?;
    }
    let source = &model.checkpoint;
    let mut sink = Box::new(ShardedWriter::create(directory, source.layout().clone()));
    sink.declare(source.tensors())?;
    // A checkpoint lists its tensors shard after shard in file order, which is the order the sink wants.
    for info in source.tensors() {
        let (stored, size) = (source.read(&info.name)?, info.dtype.size());
        let update = updates.get(&info.name);
        for block in blocks(info) {
            let stored = &stored[block.start * size..block.end * size];
            match update {
                None => sink.write_part(&info.name, stored)?,
                Some(update) => sink.write_part(&info.name, &update.apply(info, stored, block)?)?,
            }
            source.release(&info.name);
            update.into_iter().for_each(Update::release);
        }
    }
    let written = sink.finish()?;
    Ok(Merged { path: directory.to_owned(), written, changed: updates.len(), copied })
}

/// The elements of a tensor, in blocks of whole rows of its last axis; one empty block where there are none.
fn blocks(info: &TensorInfo) -> impl Iterator<Item = Range<usize>> {
    let elements = info.elements();
    let row = if info.shape.len() < 2 { 1 } else { info.shape.last().copied().unwrap_or(1).max(1) };
    let step = (BLOCK / (row * info.dtype.size())).max(1) * row;
    (0..elements.max(1)).step_by(step).map(move |start| start..elements.min(start + step))
}

/// How one stored tensor changes.
#[derive(Clone, Copy)]
pub(super) enum Update<'a> {
    /// `first` is the first row of the stored matrix among the rows of all the pair's matrices.
    Lora { pair: &'a LoraPair, first: usize },
    /// A run of a tensor's elements, from `start` on: all of them, or one expert's matrix out of all experts'.
    Part { source: &'a dyn TensorSource, whole: &'a TensorInfo, start: usize },
}

impl Update<'_> {
    /// The new bytes of a block of elements that has these stored bytes, in the stored type.
    fn apply(&self, info: &TensorInfo, stored: &[u8], block: Range<usize>) -> Result<Cow<'_, [u8]>, WeightError> {
        match self {
            Update::Lora { pair, first } => {
                add_product(info, stored, pair, first + block.start / pair.in_features).map(Cow::Owned)
            }
            Update::Part { source, whole, start } => {
                let (size, first) = (whole.dtype.size(), start + block.start);
                let bytes = match source.read(&whole.name)? {
                    Cow::Borrowed(all) => Cow::Borrowed(&all[first * size..(first + block.len()) * size]),
                    Cow::Owned(all) => Cow::Owned(all[first * size..(first + block.len()) * size].to_vec()),
                };
                if whole.dtype == info.dtype {
                    return Ok(bytes);
                }
                let mut values = vec![0.0; block.len()];
                encoding::decode_into(whole, &bytes, &mut values)?;
                let mut bytes = vec![0; stored.len()];
                encoding::encode_into(info, &values, &mut bytes)?;
                Ok(Cow::Owned(bytes))
            }
        }
    }

    /// Says that what was read for it is written.
    fn release(&self) {
        if let Update::Part { source, whole, .. } = self {
            source.release(&whole.name);
        }
    }
}

/// `W + s·(B·A)`, where the stored bytes are rows of W `[out, in]`, or of one such matrix after another, each with its own
/// A; `first` counts the rows before them.
fn add_product(info: &TensorInfo, stored: &[u8], pair: &LoraPair, first: usize) -> Result<Vec<u8>, WeightError> {
    let columns = pair.in_features;
    let row_bytes = columns * info.dtype.size();
    let mut merged = vec![0; stored.len()];
    if merged.is_empty() {
        return Ok(merged);
    }
    merged.par_chunks_mut(ROWS * row_bytes).zip(stored.par_chunks(ROWS * row_bytes)).enumerate().try_for_each(
        |(block, (merged, stored))| {
            let mut weights = vec![0.0; stored.len() / info.dtype.size()];
            encoding::decode_into(info, stored, &mut weights)?;
            add_rows(&mut weights, first + block * ROWS, pair);
            encoding::encode_into(info, &weights, merged)
        },
    )?;
    Ok(merged)
}

/// Adds `s·(B·A)` to some whole rows, of which `first` is the first among the rows of all the pair's matrices.
pub(super) fn add_rows(weights: &mut [f32], first: usize, pair: &LoraPair) {
    let columns = pair.in_features;
    let b = &pair.b[first * pair.rank..][..weights.len() / columns * pair.rank];
    let mut product = [0.0; COLUMNS];
    for start in (0..columns).step_by(COLUMNS) {
        let end = columns.min(start + COLUMNS);
        for (index, (weights, b)) in weights.chunks_mut(columns).zip(b.chunks(pair.rank)).enumerate() {
            let product = &mut product[..end - start];
            product.fill(0.0);
            let a = &pair.a[(first + index) / pair.out_features * pair.rank * columns..][..pair.rank * columns];
            for (rows, factors) in a.chunks(4 * columns).zip(b.chunks(4)) {
                accumulate(product, rows, factors, columns, start..end);
            }
            for (weight, product) in weights[start..end].iter_mut().zip(product) {
                *weight += pair.scale * *product;
            }
        }
    }
}

/// Adds up to four rows of A, each times its factor, in one pass over the sums.
fn accumulate(sums: &mut [f32], rows: &[f32], factors: &[f32], columns: usize, tile: std::ops::Range<usize>) {
    let row = |index: usize| &rows[index * columns..][tile.clone()];
    if let [f0, f1, f2, f3] = *factors {
        let rows = row(0).iter().zip(row(1)).zip(row(2)).zip(row(3));
        for (sum, (((a0, a1), a2), a3)) in sums.iter_mut().zip(rows) {
            *sum += f0 * a0 + f1 * a1 + f2 * a2 + f3 * a3;
        }
    } else {
        for (index, factor) in factors.iter().enumerate() {
            for (sum, a) in sums.iter_mut().zip(row(index)) {
                *sum += factor * a;
            }
        }
    }
}

/// Collects what changes, by the checkpoint's tensor names, and everything that does not fit.
struct Updates<'a> {
    model: &'a ModelDir,
    found: HashMap<String, Update<'a>>,
    faults: Vec<ExportError>,
}

impl<'a> Updates<'a> {
    fn new(model: &'a ModelDir) -> Self {
        Self { model, found: HashMap::new(), faults: Vec::new() }
    }

    fn add_pair(&mut self, pair: &'a LoraPair) {
        match super::adapter::check_pair(self.model, pair) {
            Ok(tensor) => {
                for part in self.model.parts(tensor) {
                    self.insert(part.name, Update::Lora { pair, first: part.start / pair.in_features });
                }
            }
            Err(fault) => self.faults.push(fault),
        }
    }

    fn add_full(&mut self, source: &'a dyn TensorSource) {
        for info in source.tensors() {
            if let Some(tensor) = self.in_parts(&info.name) {
                self.add_parts(source, info, tensor);
                continue;
            }
            let name = self.stored_name(&info.name);
            match self.model.checkpoint.info(&name) {
                None => self.faults.push(ExportError::UnknownTensor {
                    tensor: info.name.clone(),
                    near: nearest(&info.name, self.model.inventory.iter().map(|tensor| tensor.name.as_str()), 3),
                }),
                Some(base) if base.shape != info.shape => self.faults.push(ExportError::WrongTensorShape {
                    tensor: info.name.clone(),
                    found: info.shape.clone(),
                    base: base.shape.clone(),
                }),
                Some(base) => {
                    let update = Update::Part { source, whole: info, start: 0 };
                    if base.dtype != info.dtype
                        && let Some(dtype) = [base.dtype, info.dtype].into_iter().find(|dtype| !dtype.converts_to_f32())
                    {
                        let tensor = info.name.clone();
                        self.faults.push(WeightError::UnsupportedDtype { tensor, dtype }.into());
                    }
                    self.insert(name, update);
                }
            }
        }
    }

    /// The inventory's tensor of this name, if the checkpoint holds it in parts.
    fn in_parts(&self, name: &str) -> Option<&'a TensorSpec> {
        let bare = name.strip_prefix(self.model.prefix.as_str()).unwrap_or(name);
        self.model.inventory.iter().find(|tensor| tensor.name == bare && self.model.parts(tensor).len() > 1)
    }

    fn add_parts(&mut self, source: &'a dyn TensorSource, info: &'a TensorInfo, tensor: &TensorSpec) {
        if info.shape != tensor.shape {
            self.faults.push(ExportError::WrongTensorShape {
                tensor: info.name.clone(),
                found: info.shape.clone(),
                base: tensor.shape.clone(),
            });
            return;
        }
        for part in self.model.parts(tensor) {
            self.insert(part.name, Update::Part { source, whole: info, start: part.start });
        }
    }

    /// The checkpoint's name, from that or the inventory's or PEFT's.
    fn stored_name(&self, name: &str) -> String {
        if self.model.checkpoint.info(name).is_some() {
            return name.to_owned();
        }
        let parts = [name.strip_prefix("model.language_model."), name.strip_prefix("model."), Some(name)];
        let known = |candidate: &&str| self.model.inventory.iter().any(|tensor| tensor.name == *candidate);
        parts.into_iter().flatten().find(known).map_or_else(|| name.to_owned(), |found| self.model.tensor_name(found))
    }

    fn insert(&mut self, tensor: String, update: Update<'a>) {
        if self.found.insert(tensor.clone(), update).is_some() {
            self.faults.push(ExportError::ChangedTwice { tensor });
        }
    }

    fn finish(mut self) -> Result<HashMap<String, Update<'a>>, Vec<ExportError>> {
        if let Some(copy) = &self.model.head_copy
            && !self.found.contains_key(copy)
            && let Some(update) = self.found.get(&self.model.tensor_name("embed_tokens.weight")).copied()
        {
            self.found.insert(copy.clone(), update);
        }
        if self.faults.is_empty() { Ok(self.found) } else { Err(self.faults) }
    }
}
