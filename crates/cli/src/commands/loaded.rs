//! A model ready to evaluate or to generate with: base, adapter if any, encoder.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use qwen_tune_data::Encoder;
use qwen_tune_model::{Decoder, Parameters, Training};
use qwen_tune_qwen::ModelDir;
use qwen_tune_train::device;
use qwen_tune_weights::peft::Adapter;

use super::{base, failed};
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::plan::{Opened, bind_adapter, device_fault, open_model};
use crate::recipe::{Recipe, RecipeDoc};

/// On its device.
pub(super) struct LoadedModel {
    pub(super) model: ModelDir,
    pub(super) encoder: Arc<Encoder>,
    pub(super) decoder: Decoder,
    pub(super) parameters: Parameters,
}

/// Loads the recipe's model with the adapter in `adapter`.
pub(super) fn load(recipe: &Recipe, doc: &RecipeDoc, adapter: Option<&Path>) -> Result<LoadedModel, Diagnostics> {
    let Opened { model, encoder } = open_model(recipe, doc)?;
    let device = device::open(&recipe.run.device, recipe.model.dtype)
        .map_err(|e| Diagnostics::from(device_fault(&e).at(doc.span_of("run.device"))))?;
    let training = match adapter {
        None => Training::Nothing,
        Some(path) => {
            let adapter = read_adapter(path)?;
            base::refuse_other(&adapter, &model, recipe, doc)?;
            Training::Lora(bind_adapter(&adapter, &model)?)
        }
    };
    let (decoder, parameters) = Decoder::load(
        &model,
        &training,
        &device.device,
        device.storage(recipe.model.quantize, recipe.run.offload.value().unwrap_or_default()),
    )
    .map_err(|e| failed("load", &e))?;
    Ok(LoadedModel { model, encoder, decoder, parameters })
}

/// Reads an adapter directory.
pub(super) fn read_adapter(path: &Path) -> Result<Adapter, Diagnostics> {
    Adapter::read(path)
        .map_err(|errors| errors.iter().map(|e| Diagnostic::mistake_from("bad-adapter", e)).collect::<Diagnostics>())
}

impl LoadedModel {
    /// Tokens that end an answer.
    pub(super) fn stop_ids(&self) -> Vec<u32> {
        let mut ids = self.encoder.stop_ids();
        ids.extend(self.model.eos_ids());
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// The final adapter of a run, if the directory holds one.
pub(super) fn final_adapter(run: &Path) -> Option<PathBuf> {
    let adapter = run.join("adapter");
    adapter.join("adapter_config.json").is_file().then_some(adapter)
}
