//! What training makes, as files.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::Tensor;
use qwen_tune_model::{Parameter, Parameters};
use qwen_tune_qwen::KeyLayout;
use qwen_tune_weights::peft::{Adapter, AdapterConfig, LoraPair};
use qwen_tune_weights::{Dtype, Metadata, SafetensorsWriter, TensorInfo, TensorSink, WeightError, encoding};

use super::CheckpointError;

/// File of the trained base tensors in full fine-tuning, f32.
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
        let Self::Adapter { config, layout, scales } = self else { return None };
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
        Some(Adapter { config: (**config).clone(), pairs, others: Vec::new() })
    }
}

pub(super) fn write_tensors(path: &Path, tensors: &[(String, &[usize], Vec<f32>)]) -> Result<(), WeightError> {
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

pub(super) fn host(tensor: &Tensor<1>) -> Vec<f32> {
    tensor.clone().into_data().convert::<f32>().try_to_vec().expect("invariant: converted to f32")
}
