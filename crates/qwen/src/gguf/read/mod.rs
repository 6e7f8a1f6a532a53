//! [`GgufModel`]: a GGUF file as a checkpoint: its configuration, its tokenizer, and its tensors under the names and in
//! the form that checkpoints have them.

mod blocks;
mod config;
mod places;

use std::{
    borrow::Cow,
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use qwen_tune_weights::gguf::{GgufFile, Metadata};
use qwen_tune_weights::{Dtype, TensorInfo, TensorSource, WeightError, encoding};
use serde_json::Value;

pub use self::blocks::GgufBlocks;
use self::places::Place;
use super::layout::Layout;
use super::tokenizer::{Rebuilt, rebuild};
use super::{Architecture, GgufError, arch};
use crate::{DecoderSpec, TensorSpec, inventory, targets::nearest};

/// What checkpoints put before the names of a decoder's tensors.
const PREFIX: &str = "model.";
const HEAD: &str = "lm_head.weight";
/// How many times more numbers than a file holds its keys may call for.
const MISSING: u64 = 16;

/// An opened file. Opening reads its header; tensors are turned back when they are read.
#[derive(Debug)]
pub struct GgufModel {
    file: GgufFile,
    architecture: &'static Architecture,
    config: Value,
    spec: DecoderSpec,
    tokenizer: Result<Rebuilt, Vec<GgufError>>,
    infos: Vec<TensorInfo>,
    /// By a tensor's name, where in the file its parts lie.
    places: HashMap<String, (usize, Vec<Place>)>,
    /// The tensor that elements were last asked of: runs of one follow on each other, and each may lie anywhere in it.
    last: Mutex<Option<(String, Arc<Vec<f32>>)>>,
}

impl GgufModel {
    /// Opens a file, or one of several that belong together. Everything wrong with it is reported at once.
    pub fn open(path: &Path) -> Result<Self, Vec<GgufError>> {
        let file = GgufFile::open(path).map_err(|error| vec![error.into()])?;
        let architecture = architecture(path, file.metadata()).map_err(|fault| vec![fault])?;
        // A tokenizer of another kind stands in nobody's way who has its files beside the model.
        let tokenizer = rebuild(path, file.metadata());
        let eos = tokenizer.as_ref().map(|rebuilt| rebuilt.eos.clone()).unwrap_or_default();
        let (config, spec) = config::config(&file, architecture, &eos)?;
        enough(&file, &spec).map_err(|fault| vec![fault])?;
        let layout = Layout::new(architecture, &spec);
        let found = places::find(&file, &layout, &spec)?;
        let mut infos = Vec::with_capacity(layout.inventory.len());
        let mut places = HashMap::with_capacity(layout.inventory.len());
        for (tensor, found) in layout.inventory.iter().zip(found) {
            let name = if tensor.name == HEAD { HEAD.to_owned() } else { format!("{PREFIX}{}", tensor.name) };
            places.insert(name.clone(), (infos.len(), found));
            infos.push(TensorInfo::new(name, Dtype::F32, tensor.shape.clone()));
        }
        Ok(Self { file, architecture, config, spec, tokenizer, infos, places, last: Mutex::default() })
    }

    /// The file.
    pub fn file(&self) -> &GgufFile {
        &self.file
    }

    /// The value of `general.architecture`.
    pub fn architecture(&self) -> &'static str {
        self.architecture.name
    }

    /// The `config.json` that the keys amount to.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// What the model is.
    pub fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    /// `tokenizer.json` and `tokenizer_config.json`, rebuilt from the keys; else what stands in the way.
    pub fn tokenizer(&self) -> Result<(&Value, &Value), &[GgufError]> {
        match &self.tokenizer {
            Ok(rebuilt) => Ok((&rebuilt.tokenizer, &rebuilt.config)),
            Err(faults) => Err(faults),
        }
    }

    /// A tensor where it lies, if it lies in blocks or halves of one type; nothing of vectors and f32.
    pub fn blocks(&self, name: &str) -> Option<GgufBlocks> {
        let (index, places) = self.places.get(name)?;
        let width = *self.infos[*index].shape.last()?;
        GgufBlocks::of(&self.file, places, width)
    }

    fn last(&self) -> MutexGuard<'_, Option<(String, Arc<Vec<f32>>)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, name: &str) -> Result<&(usize, Vec<Place>), WeightError> {
        self.places.get(name).ok_or_else(|| WeightError::Missing {
            tensor: name.to_owned(),
            place: format!("`{}`", self.file.path().display()),
        })
    }
}

impl TensorSource for GgufModel {
    fn tensors(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.places.get(name).map(|(index, _)| &self.infos[*index])
    }

    fn read(&self, name: &str) -> Result<Cow<'_, [u8]>, WeightError> {
        let (index, _) = self.place(name)?;
        encoding::encode(&self.infos[*index], &self.read_f32(name)?).map(Cow::Owned)
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightError> {
        let (index, places) = self.place(name)?;
        let mut values = vec![0.0; self.infos[*index].elements()];
        places.iter().try_for_each(|place| place.put_back(&self.file, &mut values))?;
        Ok(values)
    }

    fn read_elements_f32(&self, name: &str, first: usize, values: &mut [f32]) -> Result<(), WeightError> {
        let kept = self.last().clone().filter(|(kept, _)| kept == name);
        let whole = match kept {
            Some((_, whole)) => whole,
            None => {
                // The one before goes first. Decoding runs on many threads, any of which may come by here: no lock is held.
                *self.last() = None;
                let whole = Arc::new(self.read_f32(name)?);
                *self.last() = Some((name.to_owned(), Arc::clone(&whole)));
                whole
            }
        };
        let found = whole.get(first..).and_then(|rest| rest.get(..values.len()));
        let found = found.ok_or_else(|| WeightError::WrongData {
            tensor: name.to_owned(),
            expected: first.saturating_add(values.len()),
            found: whole.len(),
        })?;
        values.copy_from_slice(found);
        Ok(())
    }

    fn release(&self, name: &str) {
        for place in self.places.get(name).into_iter().flat_map(|(_, places)| places) {
            self.file.release(&place.tensor);
        }
    }
}

/// Keys may call for any number of rows, of which lists are made; a file that lacks a few tensors has those named, one that
/// holds next to nothing of what it says is refused before.
fn enough(file: &GgufFile, spec: &DecoderSpec) -> Result<(), GgufError> {
    let sum = |elements: &mut dyn Iterator<Item = u64>| elements.fold(0, u64::saturating_add);
    let found = sum(&mut file.tensors().iter().map(|tensor| tensor.elements() as u64));
    let product =
        |tensor: &TensorSpec| tensor.shape.iter().fold(1, |product: u64, &n| product.saturating_mul(n as u64));
    let expected = sum(&mut inventory(spec).iter().map(product));
    if expected / MISSING <= found {
        return Ok(());
    }
    Err(GgufError::TooSmall { path: file.path().to_owned(), expected, found })
}

fn architecture(path: &Path, metadata: &Metadata) -> Result<&'static Architecture, GgufError> {
    let key = "general.architecture";
    let Some(found) = metadata.get(key).and_then(|value| value.as_str()) else {
        return Err(GgufError::NoKey { path: path.to_owned(), key: key.to_owned() });
    };
    Architecture::named(found).ok_or_else(|| {
        let known: Vec<&str> = arch::ARCHITECTURES.iter().map(|architecture| architecture.name).collect();
        let near = nearest(found, known.iter().copied(), 1);
        GgufError::UnknownArchitecture { path: path.to_owned(), found: found.to_owned(), near, known }
    })
}
