//! AdamW over all trainable tensors, and clipping by their global norm.

use burn::tensor::{DType, Tensor, TensorData};
use kernels::{Codes, DynamicMap, Moment};
use qwen_tune_kernels as kernels;
use qwen_tune_model::{Parameter, Parameters, mix};
use qwen_tune_qwen::memory::has_coded_moments;
use qwen_tune_weights::{Checkpoint, TensorSource, WeightError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::backward::Gradients;
use crate::checkpoint::Stored;

/// How gradients become updates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// `adamw`, or `adamw_8bit` with moments of a quarter of the size.
    pub kind: OptimizerKind,
    /// Highest learning rate; `[schedule]` shapes it. LoRA takes about ten times that of full fine-tuning.
    pub learning_rate: f64,
    /// Decoupled weight decay of matrices; norms and biases are left alone.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Gradients are scaled down to this global norm; 0 never clips.
    pub max_grad_norm: f64,
}

impl OptimizerConfig {
    /// What gradients of this norm are multiplied by, as torch's `clip_grad_norm_` does.
    #[must_use]
    pub fn clip(&self, norm: f64) -> f64 {
        kernels::clip(norm, self.max_grad_norm)
    }
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            kind: OptimizerKind::AdamW,
            learning_rate: 2e-4,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            max_grad_norm: 1.0,
        }
    }
}

/// Optimizers by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101), as torch computes it: 8 bytes for
    /// each trained number.
    #[default]
    #[serde(rename = "adamw")]
    AdamW,
    /// The same with its moments as block-wise 8-bit codes (Dettmers et al. 2022, arXiv 2110.02861), as torchao and
    /// bitsandbytes have them: 2 bytes for each trained number. Updates are computed in f32 all the same. Vectors and
    /// matrices of fewer than 4096 numbers keep moments in f32.
    #[serde(rename = "adamw_8bit")]
    AdamW8bit,
}

/// First and second moments of every trainable tensor, in the order of [`Parameters`].
#[derive(Debug, Clone)]
pub struct AdamW {
    config: OptimizerConfig,
    /// Updates made so far.
    steps: u64,
    /// Exponential means of gradients and of their squares.
    moments: Vec<[Moment; 2]>,
}

/// Names of the two moments in files, and the numbers their codes stand for.
const MOMENTS: [(&str, DynamicMap); 2] = [("first", DynamicMap::Signed), ("second", DynamicMap::Unsigned)];

/// Why moments cannot be put back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MomentError {
    /// The file.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// A tensor of another size.
    #[error("`{name}` has {found} values, expected {expected}")]
    Size { name: String, found: usize, expected: usize },
}

impl AdamW {
    /// Moments at zero.
    #[must_use]
    pub fn new(config: OptimizerConfig, parameters: &Parameters) -> Self {
        let zeros = |parameter: &Parameter| {
            let device = parameter.value.device();
            let elements = parameter.shape.iter().product();
            MOMENTS.map(|(_, map)| match config.kind {
                OptimizerKind::AdamW8bit if has_coded_moments(&parameter.shape) => {
                    Moment::Codes(Codes::zeros(elements, map, &device))
                }
                _ => Moment::Wide(Tensor::zeros([elements], (&device, DType::F32))),
            })
        };
        let moments = parameters.iter().map(zeros).collect();
        Self { config, steps: 0, moments }
    }

    /// One update of `parameters` with `gradients` times `clip`, all of them at once: [`kernels::adamw`], and
    /// [`kernels::adamw_compact`] where not all is f32. A parameter without gradient is left alone.
    pub fn step(&mut self, parameters: &mut Parameters, gradients: &Gradients, clip: f64, learning_rate: f64) {
        self.update(parameters, gradients, learning_rate, |wide, compact, rule| {
            let rule = kernels::AdamW { clip, ..*rule };
            kernels::adamw(wide, &rule);
            kernels::adamw_compact(compact, &rule);
        });
    }

    /// The same with gradients clipped to the recipe's norm, by a norm that need not be known yet. Nothing is updated if it
    /// turns out to be no finite number, or one of its witnesses none: [`AdamW::take_back`] says so here.
    pub(crate) fn step_clipped(
        &mut self,
        parameters: &mut Parameters,
        gradients: &Gradients,
        norm: &kernels::Norm,
        learning_rate: f64,
    ) {
        let most = self.config.max_grad_norm;
        self.update(parameters, gradients, learning_rate, |wide, compact, rule| {
            kernels::adamw_clipped(wide, compact, rule, norm, most);
        });
    }

    /// The last update was not made.
    pub(crate) fn take_back(&mut self) {
        self.steps -= 1;
    }

    fn update(
        &mut self,
        parameters: &mut Parameters,
        gradients: &Gradients,
        learning_rate: f64,
        apply: impl FnOnce(&mut [kernels::Trained<'_>], &mut [kernels::CompactTrained<'_>], &kernels::AdamW),
    ) {
        self.steps += 1;
        let OptimizerConfig { beta1, beta2, eps, .. } = self.config;
        let rule = kernels::AdamW { step: self.steps, learning_rate, beta1, beta2, eps, clip: 1.0 };
        let (mut wide, mut compact) = (Vec::new(), Vec::new());
        for (slot, (parameter, [first, second])) in parameters.iter_mut().zip(&mut self.moments).enumerate() {
            let Some(gradient) = gradients.get(slot) else { continue };
            let weight_decay = if parameter.decays { self.config.weight_decay } else { 0.0 };
            let value = &mut parameter.value;
            match (first, second, value.dtype()) {
                (Moment::Wide(first), Moment::Wide(second), DType::F32) => {
                    wide.push(kernels::Trained { value, gradient, first, second, weight_decay });
                }
                (first, second, _) => {
                    let key = mix(mix(self.steps) ^ slot as u64);
                    compact.push(kernels::CompactTrained { value, gradient, first, second, weight_decay, key });
                }
            }
        }
        apply(&mut wide, &mut compact, &rule);
    }

    /// First and second moments, in the order of [`Parameters`].
    #[must_use]
    pub fn moments(&self) -> &[[Moment; 2]] {
        &self.moments
    }

    /// The moments as they are kept in files: `first.NAME`, or `first.NAME.codes` and `first.NAME.scales`.
    pub(crate) fn stored<'a>(&'a self, parameters: &'a Parameters) -> Vec<Stored<'a>> {
        let mut all = Vec::new();
        for (which, (moment, _)) in MOMENTS.into_iter().enumerate() {
            for (parameter, moments) in parameters.iter().zip(&self.moments) {
                let name = format!("{moment}.{}", parameter.name);
                match &moments[which] {
                    Moment::Wide(tensor) => all.push(Stored::floats(name, parameter.shape.clone(), tensor)),
                    Moment::Codes(Codes { codes, scales }) => {
                        all.push(Stored::codes(format!("{name}.codes"), parameter.shape.clone(), codes));
                        all.push(Stored::floats(format!("{name}.scales"), scales.dims().to_vec(), scales));
                    }
                }
            }
        }
        all
    }

    /// Goes on from moments in a file, after so many updates.
    pub(crate) fn restore(
        &mut self,
        parameters: &Parameters,
        file: &Checkpoint,
        steps: u64,
    ) -> Result<(), MomentError> {
        self.steps = steps;
        for (parameter, moments) in parameters.iter().zip(&mut self.moments) {
            let device = parameter.value.device();
            for ((which, _), moment) in MOMENTS.into_iter().zip(moments) {
                let name = format!("{which}.{}", parameter.name);
                let sized = |name: &str, found: usize, expected: usize| {
                    let name = name.to_owned();
                    if found == expected { Ok(()) } else { Err(MomentError::Size { name, found, expected }) }
                };
                let floats = |name: &str, expected: usize| -> Result<Vec<f32>, MomentError> {
                    let values = file.read_f32(name)?;
                    sized(name, values.len(), expected)?;
                    Ok(values)
                };
                match moment {
                    Moment::Wide(tensor) => {
                        let [elements] = tensor.dims();
                        let values = floats(&name, elements)?;
                        *tensor = Tensor::from_data(TensorData::new(values, [elements]), (&device, DType::F32));
                    }
                    Moment::Codes(kept) => {
                        let (codes_name, scales_name) = (format!("{name}.codes"), format!("{name}.scales"));
                        let ([elements], [blocks]) = (kept.codes.dims(), kept.scales.dims());
                        let codes = file.read(&codes_name)?.into_owned();
                        sized(&codes_name, codes.len(), elements)?;
                        *kept = Codes::new(codes, floats(&scales_name, blocks)?, &device);
                    }
                }
            }
        }
        Ok(())
    }
}
