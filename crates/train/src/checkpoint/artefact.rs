//! What training makes, as files.

use std::collections::BTreeMap;
use std::path::Path;

use qwen_tune_model::{Parameter, Parameters};
use qwen_tune_qwen::KeyLayout;
use qwen_tune_weights::peft::{Adapter, AdapterConfig, FullTensor, LoraPair};
use qwen_tune_weights::{Dtype, TensorInfo, encoding};

use super::CheckpointError;
use super::stored::{Stored, host, write_tensors};

/// File of the trained base tensors in full fine-tuning, in the number format they are held in.
pub(super) const TRAINED: &str = "trained.safetensors";

/// What training makes, as files.
#[derive(Debug, Clone)]
pub enum Artefact {
    /// A PEFT adapter.
    Adapter {
        /// adapter_config.json.
        config: Box<AdapterConfig>,
        /// Whose module paths it is written in.
        layout: KeyLayout,
        /// Factor of each module, by its name in the inventory.
        scales: BTreeMap<String, f32>,
        /// Tensors of the base that are trained and saved whole: their names in the inventory, each with those it has in
        /// the adapter.
        whole: BTreeMap<String, Vec<String>>,
    },
    /// The trained tensors of the base themselves, by inventory name.
    Full,
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
                let tensors: Vec<Stored<'_>> =
                    parameters.iter().map(|p| Stored::floats(p.name.clone(), p.shape.clone(), &p.value)).collect();
                write_tensors(&directory.join(TRAINED), &tensors)?;
            }
        }
        Ok(())
    }

    /// The adapter in memory; `None` in full fine-tuning.
    #[must_use]
    pub fn adapter(&self, parameters: &Parameters) -> Option<Adapter> {
        let Self::Adapter { config, layout, scales, whole } = self else { return None };
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
                    module: layout.path(module),
                    a: host(&a.value),
                    b: host(&b.value),
                    rank: a.shape[a.shape.len() - 2],
                    in_features: a.shape[a.shape.len() - 1],
                    out_features: b.shape[b.shape.len() - 2],
                    experts: if a.shape.len() == 3 { a.shape[0] } else { 1 },
                    scale,
                }
            })
            .collect();
        let saved = |(tensor, names): (&String, &Vec<String>)| -> Vec<FullTensor> {
            let parameter = by_name.get(tensor.as_str()).expect("invariant: every whole tensor was built");
            let info = TensorInfo::new(tensor.clone(), Dtype::F32, parameter.shape.clone());
            let bytes = encoding::encode(&info, &host(&parameter.value)).expect("invariant: f32 of this shape");
            let named = |name: &String| FullTensor {
                info: TensorInfo { name: name.clone(), ..info.clone() },
                bytes: bytes.clone(),
            };
            names.iter().map(named).collect()
        };
        let others = whole.iter().flat_map(saved).collect();
        Some(Adapter { config: (**config).clone(), pairs, others })
    }
}
