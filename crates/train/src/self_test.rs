//! Whether a device computes what the CPU does: products, and the gradients of a small decoder through the code that
//! trains, in moments and from nothing but this program.

use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::{DType, Device, Tensor, TensorData};
use qwen_tune_data::{Batch, Origin, Sample};
use qwen_tune_kernels as kernels;
use qwen_tune_model::{ComputeDtype, Decoder, LoraModule, LoraPlan, Training, mix};
use qwen_tune_qwen::{ModelDir, family, inventory};
use qwen_tune_weights::{Dtype, Metadata, SafetensorsWriter, TensorInfo, TensorSink, encoding};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::backward::{Gradients, Staging, accumulate};
use crate::device::{self, OpenDevice};
use crate::objective::Likelihood;

/// No further check begins once so many seconds have gone by: the first time, a GPU's kernels are compiled.
pub const SECONDS: f64 = 10.0;

/// One comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// What was computed.
    pub check: String,
    /// `‖device - reference‖ / ‖reference‖`; absent where the time was up, or where it is no number.
    pub difference: Option<f64>,
    /// What the number format allows.
    pub limit: f64,
    /// Whether it stayed within the limit; absent where the time was up.
    pub ok: Option<bool>,
    /// Seconds it took.
    pub seconds: f64,
}

/// Fraction of its norm that a result may be off: a product of f32 may be taken in tf32, ten bits, by a GPU.
const PRODUCT_F32: f64 = 1e-3;
/// Operands with eight bits.
const PRODUCT_BF16: f64 = 1e-2;
/// Through a model: differences add up.
const GRADIENTS_F32: f64 = 5e-3;
const GRADIENTS_BF16: f64 = 1e-1;

/// Runs the checks on `device`, telling each as it ends.
///
/// # Errors
/// If the small model cannot be written to the system's directory for temporary files.
pub fn run(device: &OpenDevice, mut tell: impl FnMut(Check)) -> Result<(), Box<dyn std::error::Error>> {
    let began = Instant::now();
    let bf16 = device::open(&device.name, ComputeDtype::Bf16).is_ok();
    let mut check = |name: &str, limit: f64, difference: &mut dyn FnMut() -> f64| {
        let started = Instant::now();
        let in_time = began.elapsed().as_secs_f64() < SECONDS;
        let difference = in_time.then(difference);
        tell(Check {
            check: name.to_owned(),
            difference: difference.filter(|difference| difference.is_finite()),
            limit,
            // What is no number is not within it.
            ok: difference.map(|difference| difference <= limit),
            seconds: started.elapsed().as_secs_f64(),
        });
    };
    check("product f32", PRODUCT_F32, &mut || product(&device.device, DType::F32));
    if bf16 {
        check("product bf16", PRODUCT_BF16, &mut || product(&device.device, DType::BF16));
    }
    let small = SmallModel::write()?;
    let cpu = device::open("cpu", ComputeDtype::F32)?;
    let expected = small.gradients(&cpu.device, DType::F32)?;
    let mut gradients = |name: &str, limit: f64, dtype: DType| {
        // What fails here has failed on the CPU as well, above.
        check(name, limit, &mut || {
            small.gradients(&device.device, dtype).map_or(f64::NAN, |g| distance(&g, &expected))
        });
    };
    if device.device != cpu.device {
        gradients("gradients f32", GRADIENTS_F32, DType::F32);
    }
    if bf16 {
        gradients("gradients bf16", GRADIENTS_BF16, DType::BF16);
    }
    Ok(())
}

/// `x·Wᵀ` of odd extents, beside the same in f64 from the same rounded operands.
fn product(device: &Device, dtype: DType) -> f64 {
    const ROWS: usize = 129;
    const INNER: usize = 768;
    const COLUMNS: usize = 257;
    let rounded = |key: u64, count: usize| -> Vec<f32> {
        let values = uniform(key, count, 1.0);
        if dtype == DType::BF16 {
            values.iter().map(|&v| burn::tensor::bf16::from_f32(v).to_f32()).collect()
        } else {
            values
        }
    };
    let (x, w) = (rounded(1, ROWS * INNER), rounded(2, COLUMNS * INNER));
    let tensor = |values: &[f32], rows: usize| -> Tensor<2> {
        Tensor::from_data(TensorData::new(values.to_vec(), [rows, INNER]), (device, dtype))
    };
    let y = kernels::linear(tensor(&x, ROWS), tensor(&w, COLUMNS), None, None);
    let y: Vec<f32> = y.into_data().convert::<f32>().try_to_vec().expect("invariant: converted to f32");
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let expected: Vec<f32> =
        x.chunks_exact(INNER).flat_map(|x| w.chunks_exact(INNER).map(move |w| dot(x, w) as f32)).collect();
    distance(&y, &expected)
}

/// `‖found - expected‖ / ‖expected‖`.
fn distance(found: &[f32], expected: &[f32]) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = square(&mut found.iter().zip(expected).map(|(f, e)| f64::from(*f) - f64::from(*e)));
    difference / square(&mut expected.iter().map(|&e| f64::from(e)))
}

/// Values within `±bound`, functions of their index.
fn uniform(key: u64, count: usize, bound: f64) -> Vec<f32> {
    let unit = |i: usize| (mix(mix(key) ^ i as u64) >> 11) as f64 / (1u64 << 53) as f64;
    (0..count).map(|i| ((2.0 * unit(i) - 1.0) * bound) as f32).collect()
}

const VOCABULARY: usize = 512;
const HIDDEN: usize = 128;
const RANK: usize = 8;

/// A Qwen3 of two layers in a directory of its own, gone with the value.
struct SmallModel {
    directory: PathBuf,
}

impl SmallModel {
    fn write() -> Result<Self, Box<dyn std::error::Error>> {
        let directory = std::env::temp_dir().join(format!("qwen-tune-self-test-{}", std::process::id()));
        std::fs::create_dir_all(&directory)?;
        let model = Self { directory };
        let config = json!({
            "model_type": "qwen3", "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
            "rms_norm_eps": 1e-6, "rope_theta": 1e4, "max_position_embeddings": 512, "tie_word_embeddings": true,
        });
        std::fs::write(model.directory.join("config.json"), serde_json::to_vec(&config)?)?;
        let tensors = inventory(&family::resolve(&config)?);
        let infos: Vec<TensorInfo> = tensors
            .iter()
            .map(|tensor| TensorInfo::new(format!("model.{}", tensor.name), Dtype::F32, tensor.shape.clone()))
            .collect();
        let mut writer = SafetensorsWriter::create(&model.directory.join("model.safetensors"), Metadata::default())?;
        writer.declare(&infos)?;
        for (key, info) in (100..).zip(&infos) {
            let count: usize = info.shape.iter().product();
            let values = match info.shape.len() {
                1 => uniform(key, count, 0.1).iter().map(|v| 1.0 + v).collect(),
                _ => uniform(key, count, (3.0 / HIDDEN as f64).sqrt()),
            };
            writer.write(&info.name, &encoding::encode(info, &values)?)?;
        }
        writer.close()?;
        Ok(model)
    }

    /// Of all adapters, one after another.
    fn gradients(&self, device: &Device, dtype: DType) -> Result<Vec<f32>, Box<dyn std::error::Error>> {
        let model =
            ModelDir::open(&self.directory).map_err(|errors| errors.into_iter().next().expect("invariant: one"))?;
        let (decoder, parameters) = Decoder::load(&model, &adapters(&model), device, dtype)?;
        let batch = batch();
        let mut gradients = Gradients::default();
        kernels::on_pool(|| {
            let (staging, share) = (Staging::plain(1), 1.0 / batch.trained as f32);
            accumulate(&decoder, &parameters, &Likelihood, &batch, share, staging, &mut gradients);
        });
        let slots = (0..parameters.len()).filter_map(|slot| gradients.get(slot));
        let host = |gradient: &Tensor<1>| -> Vec<f32> {
            gradient.clone().into_data().convert::<f32>().try_to_vec().expect("invariant: converted to f32")
        };
        Ok(slots.flat_map(host).collect())
    }
}

impl Drop for SmallModel {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all::<&Path>(&self.directory);
    }
}

/// On every linear layer, and none of them zero.
fn adapters(model: &ModelDir) -> Training {
    let modules = (1000..).zip(&model.inventory).filter_map(|(key, tensor)| {
        let (module, &[outputs, inputs]) = (tensor.module.clone()?, &tensor.shape[..]) else { return None };
        tensor.layer?;
        let values = (uniform(key, RANK * inputs, 0.1), uniform(key + 1000, outputs * RANK, 0.1));
        Some((module, LoraModule { rank: RANK, scale: 1.0, values: Some(values) }))
    });
    Training::Lora(LoraPlan { modules: modules.collect(), ..LoraPlan::default() })
}

/// Three sequences side by side.
fn batch() -> Batch {
    let origin = Origin { source: 0, file: 0, row: 0 };
    let sample = |(key, length): (u64, usize)| Sample {
        ids: (0..length).map(|i| (mix(mix(key) ^ i as u64) % VOCABULARY as u64) as u32).collect(),
        trained: (0..length).map(|i| i > 0).collect(),
        origin,
    };
    let samples = [(7, 61), (8, 1), (9, 130)].map(sample);
    Batch::from_rows(&[samples.iter().collect()])
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_cpu_passes_and_what_is_off_does_not() {
        let mut checks = Vec::new();
        run(&device::open("cpu", ComputeDtype::Auto).unwrap(), |check| checks.push(check)).unwrap();
        let names: Vec<&str> = checks.iter().map(|check| check.check.as_str()).collect();
        assert_eq!(names, ["product f32", "product bf16", "gradients bf16"]);
        assert!(checks.iter().all(|check| check.ok == Some(true)), "{checks:?}");
        // Different enough for the check to see something.
        assert!(checks[2].difference.unwrap() > 1e-4, "{checks:?}");
        assert_eq!(distance(&[1.0, 0.0], &[0.0, 1.0]), 2f64.sqrt());
        assert!(distance(&[f32::NAN], &[1.0]).is_nan());
    }
}
