//! [`ModelDir`]: a model directory as Hugging Face lays it out, or a GGUF file, opened and held against its own
//! configuration.
//!
//! Nothing is loaded here. After opening, every tensor of the inventory is known to be there with the right shape and a
//! type that can be read, and everything else in the checkpoint is a passenger: carried along, never run.

mod error;
mod files;
mod key_layout;
mod passengers;
mod side;
mod stored;
mod verify;
mod weights;

use std::{
    collections::HashMap,
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use qwen_tune_weights::lock::{Cache, Lock};
use qwen_tune_weights::{Checkpoint, Dtype, MappedBytes, TensorSource, WeightError, encoding};
use serde_json::Value;

pub use error::ModelError;
pub use files::LOCK_FILE;
pub use key_layout::{KeyLayout, module_name};
pub use passengers::PassengerGroup;
use side::SideFiles;
pub use stored::Part;
pub use weights::Weights;

use crate::gguf::{GgufBlocks, GgufError, GgufModel};
use crate::{DecoderSpec, TensorSpec, family};

const CONFIG_FILE: &str = "config.json";
const GENERATION_FILE: &str = "generation_config.json";

/// An opened model directory.
#[derive(Debug)]
pub struct ModelDir {
    /// The directory, or the GGUF file.
    pub path: PathBuf,
    /// `config.json` as it is, or what a file's keys amount to.
    pub config: Value,
    /// `generation_config.json` as it is.
    pub generation_config: Option<Value>,
    /// What the model is; the head as the checkpoint shows it.
    pub spec: DecoderSpec,
    /// The list of the model's tensors.
    pub inventory: Vec<TensorSpec>,
    /// The weights.
    pub checkpoint: Weights,
    /// What the checkpoint puts before the names of the inventory, such as `model.`.
    pub prefix: String,
    /// Tensors of the checkpoint that are not the model's: vision towers, extra predictors, old buffers.
    pub passengers: Vec<String>,
    /// A passenger that repeats the embedding as `lm_head.weight` in a checkpoint whose head is tied. It has to follow
    /// the embedding when that changes.
    pub head_copy: Option<String>,
    /// The layout of an adapter's keys in the directory's own class.
    pub key_layout: KeyLayout,
    /// The layouts of all classes that load the directory.
    pub key_layouts: &'static [KeyLayout],
    head_name: String,
    pieces: HashMap<String, Vec<Part>>,
    side: SideFiles,
}

impl ModelDir {
    /// Opens a directory or a GGUF file; everything wrong with it is reported at once.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Vec<ModelError>> {
        let path = path.as_ref();
        if path.is_file() && path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
            return Self::open_gguf(path);
        }
        let config = read_config(path).map_err(|error| vec![error])?;
        let generation_config = read_generation_config(path).map_err(|error| vec![error])?;
        let spec = family::resolve(&config)
            .map_err(|source| vec![ModelError::Config { path: path.join(CONFIG_FILE), source }])?;
        let checkpoint = Checkpoint::open(path).map_err(|error| vec![error.into()])?;
        let side = SideFiles::Beside(path.to_owned());
        Self::verified(path, config, generation_config, spec, Weights::Safetensors(checkpoint), side)
    }

    fn open_gguf(path: &Path) -> Result<Self, Vec<ModelError>> {
        let faults = |faults: Vec<GgufError>| {
            faults.into_iter().map(|fault| ModelError::Gguf(Box::new(fault))).collect::<Vec<_>>()
        };
        let model = GgufModel::open(path).map_err(faults)?;
        let side = SideFiles::of_gguf(path, &model)?;
        let (config, spec) = (model.config().clone(), model.spec().clone());
        let generation_config = side::generation_config(&model);
        Self::verified(path, config, generation_config, spec, Weights::gguf(model), side)
    }

    fn verified(
        path: &Path,
        config: Value,
        generation_config: Option<Value>,
        spec: DecoderSpec,
        checkpoint: Weights,
        side: SideFiles,
    ) -> Result<Self, Vec<ModelError>> {
        let verified = verify::verify(spec, &checkpoint)?;
        let (key_layouts, key_layout) = KeyLayout::of(&config, &verified.prefix);
        Ok(Self {
            path: path.to_owned(),
            config,
            generation_config,
            spec: verified.spec,
            inventory: verified.inventory,
            checkpoint,
            prefix: verified.prefix,
            passengers: verified.passengers,
            head_copy: verified.head_copy,
            key_layout,
            key_layouts,
            head_name: verified.head_name,
            pieces: verified.pieces,
            side,
        })
    }

    /// The directory in which configuration, tokenizer and template lie: the model's own, or one that is there for as long
    /// as a GGUF file is open.
    pub fn side_directory(&self) -> &Path {
        self.side.directory()
    }

    /// The checkpoint's name of a tensor of the inventory.
    pub fn tensor_name(&self, name: &str) -> String {
        if name == verify::HEAD { self.head_name.clone() } else { format!("{}{name}", self.prefix) }
    }

    /// The stored tensors that make up one of the inventory, in the order of its elements.
    pub fn parts(&self, tensor: &TensorSpec) -> Vec<Part> {
        match self.pieces.get(&tensor.name) {
            Some(parts) => parts.clone(),
            None => vec![Part { name: self.tensor_name(&tensor.name), shape: tensor.shape.clone(), start: 0 }],
        }
    }

    /// The stored tensors that hold some consecutive elements of one of the inventory; of each, which of its own elements
    /// these are, and where they lie among those asked for.
    pub(crate) fn parts_within(
        &self,
        tensor: &TensorSpec,
        elements: Range<usize>,
    ) -> Vec<(Part, Range<usize>, Range<usize>)> {
        let whole;
        let parts = match self.pieces.get(&tensor.name) {
            Some(parts) => parts.as_slice(),
            None => {
                whole = self.parts(tensor);
                &whole
            }
        };
        let first = parts.partition_point(|part| part.start + part.elements() <= elements.start);
        let parts = parts[first..].iter().take_while(|part| part.start < elements.end);
        parts
            .map(|part| {
                let start = elements.start.max(part.start);
                let end = elements.end.min(part.start + part.elements());
                let place = start - elements.start..end - elements.start;
                (part.clone(), start - part.start..end - part.start, place)
            })
            .collect()
    }

    /// Reads a tensor of the inventory, whichever way it is stored, and gives its pages back.
    ///
    /// # Errors
    /// If a part cannot be read.
    pub fn read_f32(&self, tensor: &TensorSpec) -> Result<Vec<f32>, WeightError> {
        let parts = self.parts(tensor);
        let mut values = Vec::new();
        for part in &parts {
            let read = self.checkpoint.read_f32(&part.name)?;
            self.checkpoint.release(&part.name);
            if parts.len() == 1 {
                return Ok(read);
            }
            values.reserve_exact(tensor.elements() as usize - values.len());
            values.extend_from_slice(&read);
        }
        Ok(values)
    }

    /// The bytes of a tensor of the inventory where they lie in a mapped file; nothing unless they lie in one piece, with
    /// elements of this type, at a place where such elements may be read.
    pub fn mapped(&self, tensor: &TensorSpec, dtype: Dtype) -> Option<MappedBytes> {
        let [part] = &self.parts(tensor)[..] else { return None };
        let bytes = self.mapped_part(part, dtype)?;
        (bytes.as_ref().as_ptr() as usize).is_multiple_of(dtype.size()).then_some(bytes)
    }

    /// Copies a tensor of the inventory out of mapped files as it is stored, without widening it, and gives its pages back;
    /// nothing unless all of it is in bf16 there. Elements are bit patterns.
    pub fn read_bf16(&self, tensor: &TensorSpec) -> Option<Vec<u16>> {
        let parts = self.parts(tensor);
        let stored: Vec<MappedBytes> =
            parts.iter().map(|part| self.mapped_part(part, Dtype::BF16)).collect::<Option<_>>()?;
        let mut halves = Vec::with_capacity(tensor.elements() as usize);
        for (part, bytes) in parts.iter().zip(stored) {
            let (pairs, _) = bytes.as_ref().as_chunks::<2>();
            halves.extend(pairs.iter().map(|&pair| u16::from_le_bytes(pair)));
            self.checkpoint.release(&part.name);
        }
        Some(halves)
    }

    /// A tensor of the inventory in the blocks of a GGUF file, where it lies in such.
    pub fn blocks(&self, tensor: &TensorSpec) -> Option<GgufBlocks> {
        match &self.checkpoint {
            Weights::Gguf(model, _) => model.blocks(&self.tensor_name(&tensor.name)),
            Weights::Safetensors(_) => None,
        }
    }

    /// Reads elements of a tensor of the inventory from one on, whichever way it is stored.
    ///
    /// # Errors
    /// If a part cannot be read.
    pub fn read_elements_f32(&self, tensor: &TensorSpec, first: usize, values: &mut [f32]) -> Result<(), WeightError> {
        for (part, of_part, place) in self.parts_within(tensor, first..first + values.len()) {
            self.checkpoint.read_elements_f32(&part.name, of_part.start, &mut values[place])?;
        }
        Ok(())
    }

    /// Gives back the memory that reading a tensor of the inventory took.
    pub fn release(&self, tensor: &TensorSpec) {
        self.parts(tensor).iter().for_each(|part| self.checkpoint.release(&part.name));
    }

    /// Whether all of a tensor of the inventory is stored in bf16.
    pub fn is_bf16(&self, tensor: &TensorSpec) -> bool {
        let stored = |part: &Part| self.checkpoint.info(&part.name).is_some_and(|info| info.dtype == Dtype::BF16);
        self.parts(tensor).iter().all(stored)
    }

    fn mapped_part(&self, part: &Part, dtype: Dtype) -> Option<MappedBytes> {
        self.checkpoint.info(&part.name).filter(|info| info.dtype == dtype)?;
        self.checkpoint.mapped(&part.name)
    }

    /// Reads rows of a matrix of the inventory, by index and in this order; no more of it is brought into memory.
    ///
    /// # Errors
    /// If it cannot be read.
    ///
    /// # Panics
    /// If a row is not one of the matrix.
    pub fn read_rows_f32(&self, tensor: &TensorSpec, rows: &[u32]) -> Result<Vec<f32>, WeightError> {
        let name = self.tensor_name(&tensor.name);
        let bytes = self.checkpoint.read(&name)?;
        let info = self.checkpoint.info(&name).expect("invariant: a tensor that was read has an entry");
        let width = tensor.shape[1..].iter().product::<usize>();
        let stored = width * info.dtype.size();
        let mut values = vec![0.0; rows.len() * width];
        for (&row, values) in rows.iter().zip(values.chunks_exact_mut(width)) {
            encoding::decode_into(info, &bytes[row as usize * stored..][..stored], values)?;
        }
        self.checkpoint.release(&name);
        Ok(values)
    }

    /// The inventory's entry of a tensor by its name in the checkpoint.
    pub fn tensor(&self, checkpoint_name: &str) -> Option<&TensorSpec> {
        let name = if checkpoint_name == self.head_name {
            verify::HEAD
        } else {
            checkpoint_name.strip_prefix(self.prefix.as_str())?
        };
        self.inventory.iter().find(|tensor| tensor.name == name)
    }

    /// The module of the inventory that a PEFT path means, under whichever class the adapter was trained.
    pub fn module_of_peft(&self, path: &str) -> Option<&str> {
        let name = module_name(path);
        self.inventory.iter().filter_map(|tensor| tensor.module.as_deref()).find(|module| *module == name)
    }

    /// Ids that end a text: those of `generation_config.json`, then those `config.json` adds.
    pub fn eos_ids(&self) -> Vec<u32> {
        let mut ids = Vec::new();
        for config in self.generation_config.iter().chain([&self.config]) {
            let found = match config.get("eos_token_id") {
                Some(Value::Array(several)) => several.as_slice(),
                Some(one) => std::slice::from_ref(one),
                None => &[],
            };
            for id in found.iter().filter_map(Value::as_u64).filter_map(|id| u32::try_from(id).ok()) {
                if !ids.contains(&id) {
                    ids.push(id);
                }
            }
        }
        ids
    }

    /// A file of the directory, if it is there.
    pub fn file(&self, name: &str) -> Option<PathBuf> {
        Some(self.side_directory().join(name)).filter(|path| path.is_file())
    }

    /// Names of the files that make up tokenizer and chat template, sorted.
    pub fn tokenizer_files(&self) -> Result<Vec<String>, WeightError> {
        Ok(self.side_files()?.into_iter().filter(|name| files::is_tokenizer(name)).collect())
    }

    /// Names of the files an export carries over unchanged: all but weights, model cards and hidden files, sorted.
    pub fn side_files(&self) -> Result<Vec<String>, WeightError> {
        files::list(self.side_directory(), self.checkpoint.layout())
    }

    /// The files that make the model what it is, by name: configuration, generation defaults, tokenizer, template, weights
    /// and their index.
    pub fn defining_files(&self) -> Result<Vec<(String, PathBuf)>, WeightError> {
        if let (Weights::Gguf(model, _), SideFiles::Made(_, beside)) = (&self.checkpoint, &self.side) {
            let paths = model.file().files().map(Path::to_owned).chain(beside.iter().cloned());
            let named = |path: PathBuf| Some((path.file_name()?.to_string_lossy().into_owned(), path));
            return Ok(paths.filter_map(named).collect());
        }
        let layout = self.checkpoint.layout();
        let mut names = self.tokenizer_files()?;
        names.extend(layout.shards.iter().map(|shard| shard.file_name.clone()));
        names.extend(layout.index.iter().map(|index| index.file_name.clone()));
        names.extend([CONFIG_FILE, GENERATION_FILE].map(str::to_owned));
        names.sort();
        names.dedup();
        Ok(names.into_iter().filter_map(|name| self.file(&name).map(|path| (name, path))).collect())
    }

    /// What those files are now.
    pub fn lock(&self, cache: &Cache) -> Result<Lock, WeightError> {
        Lock::of(self.defining_files()?, cache)
    }

    /// Bytes of the model's own tensors as they are stored.
    pub fn stored_bytes(&self) -> u64 {
        let parts = self.inventory.iter().flat_map(|tensor| self.parts(tensor));
        let infos = parts.filter_map(|part| self.checkpoint.info(&part.name));
        infos.map(|info| info.bytes() as u64).sum()
    }
}

fn read_config(path: &Path) -> Result<Value, ModelError> {
    if !path.exists() {
        return Err(ModelError::NotFound { path: path.to_owned() });
    }
    if !path.is_dir() {
        return Err(ModelError::NotADirectory { path: path.to_owned() });
    }
    let file = path.join(CONFIG_FILE);
    if !file.exists() {
        return Err(ModelError::NoConfig { path: path.to_owned() });
    }
    read_json(&file)
}

fn read_generation_config(path: &Path) -> Result<Option<Value>, ModelError> {
    let file = path.join(GENERATION_FILE);
    if file.exists() { read_json(&file).map(Some) } else { Ok(None) }
}

fn read_json(path: &Path) -> Result<Value, ModelError> {
    let text = fs::read(path).map_err(WeightError::io("read", path))?;
    serde_json::from_slice(&text)
        .map_err(|error| ModelError::Malformed { path: path.to_owned(), reason: error.to_string() })
}

#[cfg(test)]
mod tests;
