//! A checkpoint read back: held against its own sums first, so that a damaged one is never gone on from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use qwen_tune_model::Parameters;
use qwen_tune_qwen::module_name;
use qwen_tune_weights::lock::{Cache, Lock};
use qwen_tune_weights::peft::Adapter;
use qwen_tune_weights::{Checkpoint, TensorSource, WeightError, encoding};

use super::artefact::TRAINED;
use super::{Artefact, CheckpointError, OPTIMIZER, STATE, SUMS};
use crate::optimizer::{AdamW, MomentError};
use crate::state::{STATE_FORMAT, TrainState};

/// A whole checkpoint.
#[derive(Debug)]
pub struct Loaded {
    /// Progress.
    pub state: TrainState,
    /// Newer checkpoints that are damaged, and how.
    pub passed_over: Vec<CheckpointError>,
    directory: PathBuf,
}

impl Loaded {
    /// Reads the progress of the checkpoint in `directory`, whose files have to be those it was written with.
    pub(super) fn open(directory: PathBuf) -> Result<Self, CheckpointError> {
        verify(&directory)?;
        let path = directory.join(STATE);
        let text = std::fs::read(&path).map_err(WeightError::io("read", &path))?;
        let bad = |reason: String| CheckpointError::State { path: path.clone(), reason };
        // The version first: another one may have other fields.
        let value: serde_json::Value = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
        match value["format"].as_u64() {
            Some(format) if format == u64::from(STATE_FORMAT) => {}
            format => {
                let found = format.map_or_else(|| "without number".to_owned(), |n| n.to_string());
                return Err(bad(format!("format {found} is unknown, this build reads {STATE_FORMAT}")));
            }
        }
        let state = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
        Ok(Self { state, passed_over: Vec::new(), directory })
    }

    /// Puts the trained tensors and the moments back.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape: the recipe trains something else now.
    pub fn restore(
        &self,
        artefact: &Artefact,
        parameters: &mut Parameters,
        optimizer: &mut AdamW,
    ) -> Result<(), CheckpointError> {
        let other = |reason: String| CheckpointError::Other { path: self.directory.clone(), reason };
        let mut trained: BTreeMap<String, Vec<f32>> = match artefact {
            Artefact::Adapter { whole, .. } => {
                let adapter = Adapter::read(&self.directory)
                    .map_err(|errors| other(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")))?;
                let pairs = adapter.pairs.into_iter().flat_map(|p| {
                    // Whichever class's paths it was written in.
                    let module = module_name(&p.module);
                    [(format!("{module}.lora_A.weight"), p.a), (format!("{module}.lora_B.weight"), p.b)]
                });
                let mut trained: BTreeMap<String, Vec<f32>> = pairs.collect();
                for saved in adapter.others {
                    let name = module_name(&saved.info.name);
                    // A tied head is saved beside the embedding, whose copy it is.
                    if whole.contains_key(name) || !whole.values().flatten().any(|n| module_name(n) == name) {
                        trained.insert(name.to_owned(), encoding::decode(&saved.info, &saved.bytes)?);
                    }
                }
                trained
            }
            Artefact::Full => {
                let file = self.full_tensors()?;
                let names = file.tensors().iter().map(|t| t.name.clone());
                names.map(|name| file.read_f32(&name).map(|values| (name, values))).collect::<Result<_, _>>()?
            }
        };
        if trained.len() != parameters.len() {
            return Err(other(format!("it holds {} trained tensors, this recipe {}", trained.len(), parameters.len())));
        }
        let moments = Checkpoint::open(&self.directory.join(OPTIMIZER))?;
        for parameter in parameters.iter_mut() {
            let expected: usize = parameter.shape.iter().product();
            let values = trained.remove(&parameter.name);
            let values = values.ok_or_else(|| other(format!("it does not hold `{}`", parameter.name)))?;
            if values.len() != expected {
                return Err(other(format!("`{}` has {} values, expected {expected}", parameter.name, values.len())));
            }
            parameter.set(values);
        }
        let restored = optimizer.restore(parameters, &moments, self.state.updates());
        restored.map_err(|error| match error {
            MomentError::Weights(error) => error.into(),
            size @ MomentError::Size { .. } => other(size.to_string()),
        })
    }

    /// The trained base tensors of full fine-tuning, by inventory name, where they lie.
    ///
    /// # Errors
    /// If the checkpoint holds none or they cannot be read.
    pub fn full_tensors(&self) -> Result<Checkpoint, CheckpointError> {
        Ok(Checkpoint::open(&self.directory.join(TRAINED))?)
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

/// Holds the files of a checkpoint against its sums.
fn verify(directory: &Path) -> Result<(), CheckpointError> {
    let damaged = |reason: String| CheckpointError::Damaged { path: directory.to_owned(), reason };
    let text = std::fs::read_to_string(directory.join(SUMS)).map_err(|e| damaged(format!("`{SUMS}`: {e}")))?;
    let written = Lock::from_sums(&text).ok_or_else(|| damaged(format!("`{SUMS}` is malformed")))?;
    if let Some(missing) = [STATE, OPTIMIZER].into_iter().find(|name| !written.files.contains_key(*name)) {
        return Err(damaged(format!("`{SUMS}` does not speak of `{missing}`")));
    }
    let files = written.files.keys().map(|name| (name.clone(), directory.join(name)));
    let now = Lock::of(files, &Cache::none()).map_err(|e| damaged(e.to_string()))?;
    match written.differences(&now).first() {
        None => Ok(()),
        Some(other) => Err(damaged(format!("`{}` is not as it was written", other.file))),
    }
}
