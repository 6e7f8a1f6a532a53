//! Golden cases: tiny random models with the outputs, gradients and training curves that transformers and PEFT gave for
//! them (`scripts/make_goldens.py`).

use std::path::PathBuf;

use burn::tensor::{DType, Device, Tensor};
use qwen_tune_data::{Batch, IGNORE, Origin, Sequence};
use qwen_tune_model::{Decoder, LoraModule, LoraPlan, Parameter, Parameters, Training};
use qwen_tune_qwen::{MixerSpec, ModelDir};
use qwen_tune_weights::peft::Adapter;
use qwen_tune_weights::{Checkpoint, TensorSource};

pub struct Golden {
    pub name: String,
    pub dir: PathBuf,
    pub model: ModelDir,
    pub values: Checkpoint,
}

/// What transformers puts before the names of a causal model's decoder, wherever its tensors were read from.
pub const PREFIX: &str = "model.";

pub fn names() -> Vec<String> {
    let root = root();
    let mut names: Vec<String> = std::fs::read_dir(&root)
        .unwrap_or_else(|e| panic!("{}: {e}", root.display()))
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().join("golden.safetensors").exists())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(names.len() >= 8, "goldens are missing: {names:?}");
    names
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

impl Golden {
    pub fn open(name: &str) -> Self {
        let dir = root().join(name);
        Self {
            name: name.to_owned(),
            model: ModelDir::open(&dir).unwrap_or_else(|e| panic!("{name}: {e:?}")),
            values: Checkpoint::open(&dir.join("golden.safetensors")).unwrap(),
            dir,
        }
    }

    /// Whether rounding shows as it does behind a gated norm, which divides each head's output by its own size.
    pub fn is_hybrid(&self) -> bool {
        self.model.spec.layers.iter().any(|layer| matches!(layer.mixer, MixerSpec::GatedDelta(_)))
    }

    pub fn has(&self, tensor: &str) -> bool {
        self.values.info(tensor).is_some()
    }

    pub fn f32(&self, tensor: &str) -> Vec<f32> {
        self.values.read_f32(tensor).unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }

    pub fn i64(&self, tensor: &str) -> Vec<i64> {
        let bytes = self.values.read(tensor).unwrap();
        bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
    }

    /// What the golden has as `kind` for a trained tensor, in our order of elements.
    pub fn of(&self, kind: &str, parameter: &Parameter) -> Vec<f32> {
        let name = &parameter.name;
        let stored = match name.split_once(".experts.") {
            // `lm_head` lies beside the prefix, everything else below it.
            _ if name.starts_with("lm_head") => name.clone(),
            Some((layer, rest)) if name.contains(".lora_") => {
                let (module, which) = rest.split_once('.').unwrap();
                let inner = format!("{kind}.{PREFIX}{layer}.experts.base_layer.{which}");
                let is_inner = module == "gate_up_proj" && self.has(&inner);
                format!("{PREFIX}{layer}.experts{}.{which}", if is_inner { ".base_layer" } else { "" })
            }
            _ => format!("{PREFIX}{name}"),
        };
        let values = self.f32(&format!("{kind}.{stored}"));
        match parameter.shape[..] {
            // PEFT: [out, rank · experts], the experts of a rank together.
            [experts, out, rank] if name.ends_with(".lora_B.weight") => (0..experts * out * rank)
                .map(|i| {
                    let (expert, row, column) = (i / (out * rank), i / rank % out, i % rank);
                    values[(row * rank + column) * experts + expert]
                })
                .collect(),
            _ => values,
        }
    }

    /// The adapter as PEFT saved it.
    pub fn adapter(&self) -> Adapter {
        Adapter::read(&self.dir.join("adapter")).unwrap()
    }

    pub fn lora(&self) -> Training {
        self.lora_of(self.adapter())
    }

    pub fn lora_of(&self, adapter: Adapter) -> Training {
        let modules = adapter
            .pairs
            .into_iter()
            .map(|pair| {
                let module = self.model.module_of_peft(&pair.module).unwrap().to_owned();
                let values = Some((pair.a, pair.b));
                (module, LoraModule { rank: pair.rank, scale: pair.scale, values })
            })
            .collect();
        Training::Lora(LoraPlan { modules, ..LoraPlan::default() })
    }

    pub fn full(&self) -> Training {
        Training::Full(qwen_tune_qwen::inventory(&self.model.spec).into_iter().map(|t| t.name).collect())
    }

    pub fn load(&self, training: &Training, device: &Device) -> (Decoder, Parameters) {
        self.load_as(DType::F32, training, device)
    }

    pub fn load_as(&self, dtype: DType, training: &Training, device: &Device) -> (Decoder, Parameters) {
        Decoder::load(&self.model, training, device, dtype).unwrap()
    }

    /// Both rows of `input_ids` and `labels` as one batch.
    pub fn batch(&self) -> Batch {
        self.shifted_batch(0)
    }

    /// The same with `by` added to every token and label, modulo the vocabulary.
    pub fn shifted_batch(&self, by: usize) -> Batch {
        let info = self.values.info("input_ids").unwrap();
        let [rows, width] = info.shape[..] else { panic!("input_ids has shape {:?}", info.shape) };
        let shift = |id: i64| (id + by as i64) % self.model.spec.vocab_size as i64;
        let ids: Vec<u32> = self.i64("input_ids").into_iter().map(|id| shift(id) as u32).collect();
        let labels: Vec<i64> =
            self.i64("labels").into_iter().map(|label| if label < 0 { label } else { shift(label) }).collect();
        batch(&ids, &labels, &vec![width; rows])
    }
}

/// Sequences of the given lengths, one after another; labels are unshifted, as transformers takes them.
pub fn batch(ids: &[u32], labels: &[i64], lens: &[usize]) -> Batch {
    let mut batch = Batch { ids: ids.to_vec(), rows: lens.len(), ..Batch::default() };
    let mut start = 0;
    for (row, &len) in lens.iter().enumerate() {
        let origin = Origin { source: 0, file: 0, row: row as u64 };
        batch.sequences.push(Sequence { start, len, row, origin });
        for t in 0..len {
            batch.positions.push(t as u32);
            let label = if t + 1 < len { labels[start + t + 1] } else { -100 };
            batch.trained += usize::from(label >= 0);
            batch.targets.push(if label >= 0 { label as i32 } else { IGNORE });
        }
        start += len;
    }
    batch
}

pub fn spans(batch: &Batch) -> Vec<(usize, usize)> {
    batch.sequences.iter().map(|s| (s.start, s.len)).collect()
}

pub fn host<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().convert::<f32>().try_to_vec().unwrap()
}

pub fn max_abs(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// `‖a - b‖ / ‖b‖`.
pub fn relative(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f64| x * x;
    let difference: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(a - b))).sum();
    let norm: f64 = b.iter().map(|b| square(f64::from(*b))).sum();
    assert!(norm > 0.0, "a golden of zeros proves nothing");
    (difference / norm).sqrt()
}
