//! Checkpoints: directories that appear under their final names only when whole, the adapter in PEFT's form, moments and
//! progress beside it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Tensor, TensorData};
use qwen_tune_model::{Parameter, Parameters};
use qwen_tune_weights::atomic::{AtomicDir, write_file};
use qwen_tune_weights::peft::{Adapter, AdapterConfig, AdapterError, LoraPair};
use qwen_tune_weights::{
    Checkpoint, Dtype, Metadata, SafetensorsWriter, TensorInfo, TensorSink, TensorSource, WeightError, encoding,
};

use crate::optimizer::AdamW;
use crate::state::{STATE_FORMAT, TrainState};

/// File of the moments.
const OPTIMIZER: &str = "optimizer.safetensors";
/// File of the progress.
const STATE: &str = "state.json";
/// File of the trained base tensors in full fine-tuning, f32.
const TRAINED: &str = "trained.safetensors";

/// What training makes, as files.
#[derive(Debug, Clone)]
pub enum Artefact {
    /// A PEFT adapter.
    Adapter {
        /// adapter_config.json.
        config: Box<AdapterConfig>,
        /// Put before module names: `model.`.
        prefix: String,
        /// Factor of each module, by module path without prefix.
        scales: BTreeMap<String, f32>,
    },
    /// The trained tensors of the base themselves, by inventory name.
    Full,
}

/// Where checkpoints go, how often, and how many stay.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    directory: PathBuf,
    every: Option<u64>,
    keep: usize,
    artefact: Artefact,
}

/// Faults of checkpoints.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// The adapter.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// `state.json` is not what this build writes.
    #[error("`{}` is malformed: {reason}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The checkpoint belongs to another set of trained tensors.
    #[error("checkpoint `{}` does not fit this recipe: {reason}", path.display())]
    Other {
        /// The checkpoint.
        path: PathBuf,
        /// What differs.
        reason: String,
    },
}

/// A checkpoint read back.
#[derive(Debug)]
pub struct Loaded {
    /// Progress.
    pub state: TrainState,
    directory: PathBuf,
}

impl Checkpoints {
    /// Below `run/checkpoints`.
    #[must_use]
    pub fn new(run: &Path, every: Option<u64>, keep: usize, artefact: Artefact) -> Self {
        Self { directory: run.join("checkpoints"), every, keep, artefact }
    }

    /// Steps between checkpoints.
    #[must_use]
    pub fn every(&self) -> Option<u64> {
        self.every
    }

    /// Writes `step-NNNNNN` and removes the oldest beyond those that stay.
    ///
    /// # Errors
    /// If a file cannot be written; checkpoints that are there stay.
    pub fn save(
        &self,
        parameters: &Parameters,
        optimizer: &AdamW,
        state: &TrainState,
    ) -> Result<PathBuf, CheckpointError> {
        std::fs::create_dir_all(&self.directory).map_err(WeightError::io("create", &self.directory))?;
        let target = self.directory.join(format!("step-{:06}", state.step));
        let staging = AtomicDir::replacing(&target)?;
        self.artefact.write_into(staging.path(), parameters)?;
        let moments = [("first", &optimizer.first), ("second", &optimizer.second)];
        let tensors: Vec<(String, &[usize], Vec<f32>)> = moments
            .into_iter()
            .flat_map(|(kind, slots)| {
                parameters.iter().zip(slots).map(move |(p, m)| (format!("{kind}.{}", p.name), &p.shape[..], host(m)))
            })
            .collect();
        write_tensors(&staging.path().join(OPTIMIZER), &tensors)?;
        let text = serde_json::to_vec_pretty(state).expect("invariant: progress has only plain fields");
        write_file(&staging.path().join(STATE), |file| {
            std::io::Write::write_all(file, &text).map_err(WeightError::io("write", STATE))
        })?;
        let written = staging.commit()?;
        self.prune(state.step)?;
        Ok(written)
    }

    fn prune(&self, newest: u64) -> Result<(), CheckpointError> {
        let mut steps = list(&self.directory)?;
        steps.retain(|(step, _)| *step <= newest);
        let surplus = steps.len().saturating_sub(self.keep.max(1));
        for (_, path) in steps.drain(..surplus) {
            std::fs::remove_dir_all(&path).map_err(WeightError::io("remove", &path))?;
        }
        Ok(())
    }

    /// The newest whole checkpoint of a run, if it has one.
    ///
    /// # Errors
    /// If the directory or the state cannot be read.
    pub fn latest(run: &Path) -> Result<Option<Loaded>, CheckpointError> {
        let directory = run.join("checkpoints");
        if !directory.is_dir() {
            return Ok(None);
        }
        let Some((_, directory)) = list(&directory)?.pop() else { return Ok(None) };
        let path = directory.join(STATE);
        let text = std::fs::read(&path).map_err(WeightError::io("read", &path))?;
        let bad = |reason: String| CheckpointError::State { path: path.clone(), reason };
        let state: TrainState = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
        if state.format != STATE_FORMAT {
            return Err(bad(format!("format {} is unknown, this build reads {STATE_FORMAT}", state.format)));
        }
        Ok(Some(Loaded { state, directory }))
    }
}

/// Checkpoints by step, oldest first.
fn list(directory: &Path) -> Result<Vec<(u64, PathBuf)>, WeightError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(WeightError::io("read", directory))? {
        let entry = entry.map_err(WeightError::io("read", directory))?;
        let name = entry.file_name();
        if let Some(step) = name.to_str().and_then(|n| n.strip_prefix("step-")).and_then(|n| n.parse().ok()) {
            found.push((step, entry.path()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

impl Artefact {
    /// Writes the trained tensors into a directory that exists.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write_into(&self, directory: &Path, parameters: &Parameters) -> Result<(), CheckpointError> {
        match self {
            Self::Adapter { .. } => {
                let adapter = self.adapter(parameters).expect("invariant: an adapter artefact makes an adapter");
                adapter.write_into(directory, Dtype::F32)?;
            }
            Self::Full => {
                let tensors: Vec<(String, &[usize], Vec<f32>)> =
                    parameters.iter().map(|p| (p.name.clone(), &p.shape[..], host(&p.value))).collect();
                write_tensors(&directory.join(TRAINED), &tensors)?;
            }
        }
        Ok(())
    }

    /// The adapter in memory; `None` in full fine-tuning.
    #[must_use]
    pub fn adapter(&self, parameters: &Parameters) -> Option<Adapter> {
        let Self::Adapter { config, prefix, scales } = self else { return None };
        let by_name: BTreeMap<&str, &Parameter> = parameters.iter().map(|p| (p.name.as_str(), p)).collect();
        let pairs = scales
            .iter()
            .map(|(module, &scale)| {
                let part = |which: &str| {
                    *by_name
                        .get(format!("{module}.{which}.weight").as_str())
                        .expect("invariant: every module of the artefact was built with both parts")
                };
                let (a, b) = (part("lora_A"), part("lora_B"));
                LoraPair {
                    module: format!("{prefix}{module}"),
                    a: host(&a.value),
                    b: host(&b.value),
                    rank: a.shape[0],
                    in_features: a.shape[1],
                    out_features: b.shape[0],
                    scale,
                }
            })
            .collect();
        Some(Adapter { config: (**config).clone(), pairs, others: Vec::new() })
    }
}

impl Loaded {
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
        let trained: BTreeMap<String, Vec<f32>> = match artefact {
            Artefact::Adapter { prefix, .. } => {
                let adapter = Adapter::read(&self.directory)
                    .map_err(|errors| other(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")))?;
                let strip = |module: &str| module.strip_prefix(prefix.as_str()).unwrap_or(module).to_owned();
                adapter
                    .pairs
                    .into_iter()
                    .flat_map(|p| {
                        let module = strip(&p.module);
                        [(format!("{module}.lora_A.weight"), p.a), (format!("{module}.lora_B.weight"), p.b)]
                    })
                    .collect()
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
        for (index, parameter) in parameters.iter_mut().enumerate() {
            let device = parameter.value.device();
            let elements: usize = parameter.shape.iter().product();
            let flat = |values: Vec<f32>| -> Result<Tensor<1>, CheckpointError> {
                if values.len() != elements {
                    let reason = format!("`{}` has {} values, expected {elements}", parameter.name, values.len());
                    return Err(other(reason));
                }
                Ok(Tensor::from_data(TensorData::new(values, [elements]), &device))
            };
            let values = trained.get(&parameter.name);
            let values = values.ok_or_else(|| other(format!("it does not hold `{}`", parameter.name)))?;
            let value = flat(values.clone())?;
            optimizer.first[index] = flat(moments.read_f32(&format!("first.{}", parameter.name))?)?;
            optimizer.second[index] = flat(moments.read_f32(&format!("second.{}", parameter.name))?)?;
            parameter.value = value;
        }
        optimizer.steps = self.state.step;
        Ok(())
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

fn write_tensors(path: &Path, tensors: &[(String, &[usize], Vec<f32>)]) -> Result<(), WeightError> {
    let plan: Vec<TensorInfo> =
        tensors.iter().map(|(name, shape, _)| TensorInfo::new(name.clone(), Dtype::F32, shape.to_vec())).collect();
    let mut writer = SafetensorsWriter::create(path, Metadata::default())?;
    writer.declare(&plan)?;
    for (info, (name, _, values)) in plan.iter().zip(tensors) {
        writer.write(name, &encoding::encode(info, values)?)?;
    }
    writer.close()?;
    Ok(())
}

fn host(tensor: &Tensor<1>) -> Vec<f32> {
    tensor.clone().into_data().convert::<f32>().try_to_vec().expect("invariant: converted to f32")
}
