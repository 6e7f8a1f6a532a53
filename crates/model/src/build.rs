//! [`Builder`]: a cursor into a checkpoint. Constructing a module loads it by its Hugging Face name, checks its shape
//! and decides, here and nowhere else, whether it is frozen, trained or adapted.

use std::cell::RefCell;
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};
use qwen_tune_kernels::Blocks;
use qwen_tune_qwen::{ModelDir, TensorSpec};
use qwen_tune_weights::WeightError;

use crate::config::Master;
use crate::frozen::{Storage, frozen, host_numbers, waits, weight_dtype};
use crate::importance::Importance;
use crate::linear::{Linear, Lora};
use crate::norm::RmsNorm;
use crate::packed::packed;
use crate::parameters::{Matrix, Parameters, Weight};
use crate::sparse::Experts;
use crate::training::Training;
use qwen_tune_qwen::spec::NormSpec;

/// Faults while a model is built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The checkpoint could not be read.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// The inventory and the module that asks for a tensor do not agree.
    #[error("tensor `{name}` has shape {found:?}, expected {expected:?}")]
    Shape {
        /// Name in the inventory.
        name: String,
        /// In the inventory.
        found: Vec<usize>,
        /// By the specification.
        expected: Vec<usize>,
    },
    /// Values of a whole tensor of the wrong size.
    #[error("{found} values for the tensor `{name}`, expected {expected}")]
    Whole {
        /// Name in the inventory.
        name: String,
        /// Values given.
        found: usize,
        /// Values needed.
        expected: usize,
    },
    /// Adapter values of the wrong size.
    #[error("adapter of `{module}` has {found} values in {which}, expected {expected}")]
    Adapter {
        /// Module path.
        module: String,
        /// `lora_A` or `lora_B`.
        which: &'static str,
        /// Values given.
        found: usize,
        /// Values needed.
        expected: usize,
    },
}

struct Site<'a> {
    model: &'a ModelDir,
    training: &'a Training,
    device: &'a Device,
    storage: Storage,
    importance: &'a Importance,
    parameters: RefCell<Parameters>,
}

/// A place in the checkpoint's tree of names.
pub struct Builder<'a> {
    site: &'a Site<'a>,
    path: String,
}

impl<'a> Builder<'a> {
    /// Builds with `make` from the root of the decoder; returns what was made and all that is trained.
    ///
    /// # Errors
    /// As `make`.
    pub fn build<T>(
        model: &'a ModelDir,
        training: &'a Training,
        device: &'a Device,
        storage: Storage,
        importance: &'a Importance,
        make: impl FnOnce(&Builder<'_>) -> Result<T, BuildError>,
    ) -> Result<(T, Parameters), BuildError> {
        let site = Site { model, training, device, storage, importance, parameters: RefCell::default() };
        let made = make(&Builder { site: &site, path: String::new() })?;
        Ok((made, site.parameters.into_inner()))
    }

    /// The cursor moved down to `name`.
    #[must_use]
    pub fn at(&self, name: impl std::fmt::Display) -> Builder<'a> {
        Builder { site: self.site, path: self.join(&name.to_string()) }
    }

    fn join(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// The inventory's tensor `name`, whose shape must be this.
    fn find(&self, name: &str, shape: &[usize]) -> Result<&'a TensorSpec, BuildError> {
        let found = self.site.model.inventory.iter().find(|tensor| tensor.name == name);
        found.filter(|tensor| tensor.shape == shape).ok_or_else(|| BuildError::Shape {
            name: name.to_owned(),
            found: found.map(|tensor| tensor.shape.clone()).unwrap_or_default(),
            expected: shape.to_vec(),
        })
    }

    /// The tensor `name` below the cursor. `compute` tensors take part in products and are held as [`weight_dtype`] says;
    /// the others (norms) stay f32.
    ///
    /// # Errors
    /// If it cannot be read or has another shape.
    pub fn tensor<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        compute: bool,
    ) -> Result<Weight<D>, BuildError> {
        let name = self.join(name);
        let stored = self.find(&name, &shape)?;
        if self.trains(&name) {
            let values = match self.given(&name, shape.iter().product())? {
                Some(values) => values.to_vec(),
                None => self.site.model.read_f32(stored)?,
            };
            return Ok(self.trained(stored, shape, values));
        }
        let Site { model, device, storage, .. } = *self.site;
        let dtype = if compute { weight_dtype(model, stored, device, storage.dtype) } else { DType::F32 };
        Ok(Weight::Frozen(frozen(model, stored, shape, device, dtype)?))
    }

    /// The matrix, or the matrices of all experts, `name` below the cursor: in blocks where a file holds it in such or the
    /// storage says so, else as [`Builder::tensor`].
    ///
    /// # Errors
    /// As [`Builder::tensor`].
    pub fn matrix<const D: usize>(&self, name: &str, shape: [usize; D]) -> Result<Matrix<D>, BuildError> {
        let full = self.join(name);
        let stored = self.find(&full, &shape)?;
        let Site { model, device, storage, importance, .. } = *self.site;
        let frozen = || packed(model, stored, storage.quantize, importance.of(&full), device);
        let packed = if self.trains(&full) { None } else { frozen()? };
        match packed {
            Some(packed) => {
                let blocks = Blocks::new(packed, shape);
                Ok(Matrix::Packed(if waits(model, stored, storage.offload) { blocks } else { blocks.on(device) }))
            }
            None if !self.trains(&full) && waits(model, stored, storage.offload) => {
                let dtype = weight_dtype(model, stored, device, storage.dtype);
                Ok(Matrix::Packed(Blocks::new(Arc::new(host_numbers(model, stored, dtype)?), shape)))
            }
            None => Ok(Matrix::Dense(self.tensor(name, shape, true)?)),
        }
    }

    fn trains(&self, name: &str) -> bool {
        match self.site.training {
            Training::Nothing => false,
            Training::Lora(plan) => plan.whole.contains_key(name),
            Training::Full(plan) => plan.tensors.contains(name),
        }
    }

    /// First values of a trained tensor that are not the base's.
    fn given(&self, name: &str, expected: usize) -> Result<Option<&'a [f32]>, BuildError> {
        let Training::Lora(plan) = self.site.training else { return Ok(None) };
        let Some(values) = plan.whole.get(name).and_then(Option::as_deref) else { return Ok(None) };
        let found = values.len();
        if found == expected {
            Ok(Some(values))
        } else {
            Err(BuildError::Whole { name: name.to_owned(), found, expected })
        }
    }

    fn trained<const D: usize>(&self, tensor: &TensorSpec, shape: [usize; D], values: Vec<f32>) -> Weight<D> {
        let is_narrow = matches!(self.site.training, Training::Full(plan) if plan.master == Master::Bf16);
        let dtype = if is_narrow && tensor.is_product_matrix() { DType::BF16 } else { DType::F32 };
        let name = tensor.name.clone();
        let slot = self.site.parameters.borrow_mut().push_as(dtype, name, &shape, values, self.site.device);
        Weight::Trained { slot, shape }
    }

    /// The matrix `name` below the cursor, which takes part in products: of its rows these, or all.
    ///
    /// # Errors
    /// As [`Builder::tensor`].
    pub fn rows(&self, name: &str, shape: [usize; 2], rows: Option<&[u32]>) -> Result<Matrix<2>, BuildError> {
        let Some(rows) = rows else { return self.matrix(name, shape) };
        let name = self.join(name);
        let stored = self.find(&name, &shape)?;
        let values = match self.given(&name, shape[0] * shape[1])? {
            Some(values) => {
                rows.iter().flat_map(|&row| &values[row as usize * shape[1]..][..shape[1]]).copied().collect()
            }
            None => self.site.model.read_rows_f32(stored, rows)?,
        };
        let shape = [rows.len(), shape[1]];
        if self.trains(&name) {
            return Ok(Matrix::Dense(self.trained(stored, shape, values)));
        }
        let values = TensorData::new(values, shape);
        let rows = Tensor::from_data(values, (self.site.device, self.site.storage.dtype));
        Ok(Matrix::Dense(Weight::Frozen(rows)))
    }

    /// A linear layer `[out, in]`, with its adapter if the plan gives it one.
    ///
    /// # Errors
    /// If a tensor cannot be read, has another shape, or the adapter's values do not fit.
    pub fn linear(&self, name: &str, inputs: usize, outputs: usize, bias: bool) -> Result<Linear, BuildError> {
        let here = self.at(name);
        Ok(Linear {
            name: here.join("weight"),
            weight: here.matrix("weight", [outputs, inputs])?,
            bias: if bias { Some(here.tensor("bias", [outputs], true)?) } else { None },
            adapter: here.lora([], [inputs, outputs])?,
        })
    }

    /// The matrices of all experts, `[experts, out, in]`, with their adapters if the plan gives them some.
    ///
    /// # Errors
    /// As [`Builder::linear`].
    pub fn experts(&self, name: &str, count: usize, inputs: usize, outputs: usize) -> Result<Experts, BuildError> {
        Ok(Experts {
            name: self.join(name),
            weight: self.matrix(name, [count, outputs, inputs])?,
            adapter: self.at(name).lora([count], [inputs, outputs])?,
        })
    }

    /// The adapter of the module at the cursor; `count` holds the number of its matrices where that is an axis.
    fn lora<const N: usize, const D: usize>(
        &self,
        count: [usize; N],
        [inputs, outputs]: [usize; 2],
    ) -> Result<Option<Lora<D>>, BuildError> {
        let Training::Lora(plan) = self.site.training else { return Ok(None) };
        let Some(module) = plan.modules.get(&self.path) else { return Ok(None) };
        let rank = module.rank;
        let shape = |rows: usize, columns: usize| -> [usize; D] {
            let axes: Vec<usize> = count.into_iter().chain([rows, columns]).collect();
            axes.try_into().expect("invariant: a matrix, or one a group")
        };
        let matrices: usize = count.iter().product();
        let (a_size, b_size) = (matrices * rank * inputs, matrices * outputs * rank);
        let (a, b) = match &module.values {
            Some((a, b)) => (a.clone(), b.clone()),
            None => (initial_a(plan.seed, &self.path, matrices * rank, inputs), vec![0.0; b_size]),
        };
        for (which, found, expected) in [("lora_A", a.len(), a_size), ("lora_B", b.len(), b_size)] {
            if found != expected {
                return Err(BuildError::Adapter { module: self.path.clone(), which, found, expected });
            }
        }
        let mut parameters = self.site.parameters.borrow_mut();
        let mut push = |which: &str, shape: [usize; D], values| Weight::Trained {
            slot: parameters.push(format!("{}.{which}.weight", self.path), &shape, values, self.site.device),
            shape,
        };
        Ok(Some(Lora {
            a: push("lora_A", shape(rank, inputs), a),
            b: push("lora_B", shape(outputs, rank), b),
            scale: module.scale,
            dropout: plan.dropout,
            key: name_key(&self.path),
        }))
    }

    /// A norm over `width` channels.
    ///
    /// # Errors
    /// If its weight cannot be read or has another shape.
    pub fn norm(&self, name: &str, width: usize, spec: NormSpec) -> Result<RmsNorm, BuildError> {
        Ok(RmsNorm { weight: self.at(name).tensor("weight", [width], false)?, spec })
    }
}

/// PEFT's initial A: uniform within `±1/√in` (Kaiming with a = √5). Drawn from the module's name, so that the values do
/// not depend on which other modules are adapted.
fn initial_a(seed: u64, module: &str, rank: usize, inputs: usize) -> Vec<f32> {
    let bound = 1.0 / (inputs as f64).sqrt();
    let key = mix(seed ^ name_key(module));
    (0..rank * inputs)
        .map(|i| {
            let unit = (mix(key.wrapping_add(i as u64)) >> 11) as f64 / (1u64 << 53) as f64;
            ((2.0 * unit - 1.0) * bound) as f32
        })
        .collect()
}

/// FNV-1a, 64 bits: a name as a number that stays the same for ever.
fn name_key(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// The output function of splitmix64 (Steele, Lea and Flood 2014): a counter as a random number.
#[must_use]
pub fn mix(counter: u64) -> u64 {
    let mut z = counter.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initial_a_is_uniform_within_the_bound_and_differs_by_module() {
        let a = initial_a(1, "layers.0.self_attn.q_proj", 8, 400);
        assert!(a.iter().all(|v| v.abs() <= 0.05));
        let mean = a.iter().sum::<f32>() / a.len() as f32;
        let variance = a.iter().map(|v| v * v).sum::<f32>() / a.len() as f32;
        assert!(mean.abs() < 0.002, "{mean}");
        assert!((variance - 0.05f32.powi(2) / 3.0).abs() < 5e-5, "{variance}");
        assert_ne!(a, initial_a(1, "layers.1.self_attn.q_proj", 8, 400));
        assert_ne!(a, initial_a(2, "layers.0.self_attn.q_proj", 8, 400));
    }
}
