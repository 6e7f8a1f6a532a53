//! Checkpoints: directories that appear under their final names only when whole, the adapter in PEFT's form, moments and
//! progress beside it, and the sums of all of them, by which one that was damaged later is known.

mod artefact;
mod loaded;
mod stored;

use std::path::{Path, PathBuf};

use qwen_tune_model::Parameters;
use qwen_tune_weights::WeightError;
use qwen_tune_weights::atomic::{self, AtomicDir, write_file};
use qwen_tune_weights::lock::{Cache, Lock};
use qwen_tune_weights::peft::AdapterError;

use crate::optimizer::AdamW;
use crate::state::TrainState;

pub use self::artefact::Artefact;
pub use self::loaded::Loaded;
pub(crate) use self::stored::Stored;
use self::stored::write_tensors;

/// File of the moments.
const OPTIMIZER: &str = "optimizer.safetensors";
/// File of the progress.
const STATE: &str = "state.json";
/// File of the others' digests, in the form of `sha256sum`.
const SUMS: &str = "SHA256SUMS";

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
    /// The files of a checkpoint are not those that were written.
    #[error("checkpoint `{}` is damaged: {reason}", path.display())]
    Damaged {
        /// The checkpoint.
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

impl Checkpoints {
    /// Below `run/checkpoints`.
    #[must_use]
    pub fn new(run: &Path, every: Option<u64>, keep: usize, artefact: Artefact) -> Self {
        Self { directory: run.join("checkpoints"), every, keep, artefact }
    }

    /// Whether one is due after `step` steps.
    #[must_use]
    pub fn due(&self, step: u64) -> bool {
        step > 0 && self.every.is_some_and(|every| step.is_multiple_of(every))
    }

    /// Writes `step-NNNNNN` and removes the oldest beyond those that stay.
    ///
    /// # Errors
    /// If a file cannot be written, or the run's directory is gone; checkpoints that are there stay.
    pub fn save(
        &self,
        parameters: &Parameters,
        optimizer: &AdamW,
        state: &TrainState,
    ) -> Result<PathBuf, CheckpointError> {
        // Not with its parents: a run's directory that vanished is a fault, not something to make up for unseen.
        if !self.directory.is_dir() {
            std::fs::create_dir(&self.directory).map_err(WeightError::io("create", &self.directory))?;
        }
        let target = self.directory.join(format!("step-{:06}", state.step));
        let staging = AtomicDir::replacing(&target)?;
        self.artefact.write_into(staging.path(), parameters)?;
        write_tensors(&staging.path().join(OPTIMIZER), &optimizer.stored(parameters))?;
        let text = serde_json::to_vec_pretty(state).expect("invariant: progress has only plain fields");
        put(&staging.path().join(STATE), &text)?;
        put(&staging.path().join(SUMS), sums(staging.path())?.as_bytes())?;
        let written = staging.commit()?;
        self.prune(state.step)?;
        Ok(written)
    }

    /// Removes the oldest checkpoints up to `newest` beyond those that stay.
    ///
    /// # Errors
    /// If the directory cannot be read or one of them cannot be removed.
    pub fn prune(&self, newest: u64) -> Result<(), CheckpointError> {
        let mut steps = list(&self.directory)?;
        steps.retain(|(step, _)| *step <= newest);
        let surplus = steps.len().saturating_sub(self.keep.max(1));
        for (_, path) in steps.drain(..surplus) {
            atomic::remove(&path)?;
        }
        Ok(())
    }

    /// The newest whole checkpoint of a run, if it has any checkpoint. Every file of it is read and compared with its
    /// sums.
    ///
    /// # Errors
    /// If the directory cannot be read, or all checkpoints are damaged; the newest one's fault is given.
    pub fn latest(run: &Path) -> Result<Option<Loaded>, CheckpointError> {
        let mut passed_over = Vec::new();
        for (_, directory) in list(&run.join("checkpoints"))?.into_iter().rev() {
            match Loaded::open(directory) {
                Ok(mut loaded) => {
                    loaded.passed_over = passed_over;
                    return Ok(Some(loaded));
                }
                Err(fault) => passed_over.push(fault),
            }
        }
        passed_over.into_iter().next().map_or(Ok(None), Err)
    }
}

/// Checkpoints by step, oldest first.
fn list(directory: &Path) -> Result<Vec<(u64, PathBuf)>, WeightError> {
    let mut found = Vec::new();
    if !directory.is_dir() {
        return Ok(found);
    }
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

fn sums(directory: &Path) -> Result<String, WeightError> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(WeightError::io("read", directory))? {
        let entry = entry.map_err(WeightError::io("read", directory))?;
        files.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    Ok(Lock::of(files, &Cache::none())?.sums())
}

fn put(path: &Path, text: &[u8]) -> Result<(), WeightError> {
    write_file(path, |file| std::io::Write::write_all(file, text).map_err(WeightError::io("write", path)))
}
