//! [`SideFiles`]: the directory with the files that go with a model's weights. A GGUF file holds them as keys; they are
//! written out, for as long as the model is open, since tokenizers are read from files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use qwen_tune_weights::WeightError;
use serde_json::Value;
use tempfile::TempDir;

use super::{CONFIG_FILE, GENERATION_FILE, ModelError, files};
use crate::gguf::GgufModel;

const TOKENIZER_FILE: &str = "tokenizer.json";
const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";

/// Where configuration and tokenizer lie.
#[derive(Debug)]
pub(super) enum SideFiles {
    /// With the weights.
    Beside(PathBuf),
    /// In a directory made for a GGUF file. The second are those of the files that lie beside it and were taken from there.
    Made(TempDir, Vec<PathBuf>),
}

impl SideFiles {
    pub(super) fn directory(&self) -> &Path {
        match self {
            SideFiles::Beside(path) => path,
            SideFiles::Made(directory, _) => directory.path(),
        }
    }

    /// Writes out what goes with a GGUF file: the tokenizer that lies beside it, if there is one, since that is more than
    /// a file's keys say; else the one rebuilt from the keys.
    pub(super) fn of_gguf(path: &Path, model: &GgufModel) -> Result<Self, Vec<ModelError>> {
        let one = |error: WeightError| vec![ModelError::from(error)];
        let home = tempfile::Builder::new().prefix("qwen-tune-gguf-").tempdir();
        let home = home.map_err(WeightError::io("create", std::env::temp_dir())).map_err(one)?;
        let put = |name: &str, value: &Value| {
            let target = home.path().join(name);
            fs::write(&target, value.to_string()).map_err(WeightError::io("write", target)).map_err(one)
        };
        put(CONFIG_FILE, model.config())?;
        if let Some(generation) = generation_config(model) {
            put(GENERATION_FILE, &generation)?;
        }
        let beside = tokenizer_beside(path).map_err(one)?;
        for from in &beside {
            let target = home.path().join(from.file_name().unwrap_or_default());
            fs::copy(from, target).map_err(WeightError::io("copy", from)).map_err(one)?;
        }
        if beside.is_empty() {
            let (tokenizer, config) = model.tokenizer().map_err(|faults| {
                faults.iter().map(|fault| ModelError::NoTokenizer { reason: fault.to_string() }).collect::<Vec<_>>()
            })?;
            put(TOKENIZER_FILE, tokenizer)?;
            put(TOKENIZER_CONFIG_FILE, config)?;
        }
        Ok(SideFiles::Made(home, beside))
    }
}

/// The ids that end a text, as `generation_config.json` says them.
pub(super) fn generation_config(model: &GgufModel) -> Option<Value> {
    let ends = &model.config()["eos_token_id"];
    (!ends.is_null()).then(|| serde_json::json!({ "eos_token_id": ends }))
}

/// The files of the tokenizer beside a GGUF file; none if `tokenizer.json` is not among them.
fn tokenizer_beside(path: &Path) -> Result<Vec<PathBuf>, WeightError> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !directory.join(TOKENIZER_FILE).is_file() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(WeightError::io("read", directory))? {
        let entry = entry.map_err(WeightError::io("read", directory))?;
        let is_tokenizer = entry.file_name().to_str().is_some_and(files::is_tokenizer);
        if is_tokenizer && entry.path().is_file() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}
