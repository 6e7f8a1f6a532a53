//! A base in blocks is the base of its decoded numbers: losses and gradients of adapters beside either.

use std::fs;
use std::path::Path;

use burn::tensor::DType;
use qwen_tune_data::Batch;
use qwen_tune_kernels::{Int8, Nf4, Packed};
use qwen_tune_model::{Decoder, Importance, LoraModule, LoraPlan, Quantize, Storage, Training};
use qwen_tune_qwen::gguf::{self, About, GgufBlocks, Quant, WriteOptions};
use qwen_tune_qwen::memory::Offload;
use qwen_tune_qwen::{ModelDir, Role, TensorSpec};
use qwen_tune_train::Likelihood;
use qwen_tune_train::backward::Staging;
use qwen_tune_weights::gguf::TensorType;
use qwen_tune_weights::gguf::blocks::decoder;
use qwen_tune_weights::{Dtype, Metadata, SafetensorsWriter, TensorInfo, TensorSink, WeightError, encoding};
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use super::{cpu, staged};
use crate::golden::{batch, host};
use crate::made_model::{self, Numbers};

const FAMILIES: [&str; 7] = ["llama", "qwen2", "qwen3", "qwen3_moe", "qwen2_moe", "qwen3_5_text", "qwen3_next"];

/// Wide enough for the blocks of K types, and with more value heads than key heads in recurrences.
fn config(family: &str) -> Value {
    let mut config = made_model::config(family);
    let wider = json!({ "hidden_size": 256, "intermediate_size": 512, "vocab_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 8 });
    let fields = config.as_object_mut().unwrap();
    fields.extend(wider.as_object().unwrap().clone());
    for inner in ["moe_intermediate_size", "shared_expert_intermediate_size"] {
        fields.entry(inner).and_modify(|width| *width = 256.into());
    }
    if family == "qwen2_moe" {
        // The only way that llama.cpp has.
        config["norm_topk_prob"] = false.into();
    }
    config
}

fn made(family: &str) -> (TempDir, ModelDir) {
    let home = tempdir().unwrap();
    let directory = home.path().join("base");
    made_model::write(&directory, &config(family), "model.");
    let model = ModelDir::open(&directory).unwrap();
    (home, model)
}

/// The model as f32 numbers, each tensor's changed on the way.
fn decoded(model: &ModelDir, directory: &Path, change: impl Fn(&TensorSpec, Vec<f32>) -> Vec<f32>) -> ModelDir {
    fs::create_dir(directory).unwrap();
    fs::write(directory.join("config.json"), model.config.to_string()).unwrap();
    let info = |tensor: &TensorSpec| TensorInfo::new(model.tensor_name(&tensor.name), Dtype::F32, tensor.shape.clone());
    let infos: Vec<TensorInfo> = model.inventory.iter().map(info).collect();
    let mut file = SafetensorsWriter::create(&directory.join("model.safetensors"), Metadata::default()).unwrap();
    file.declare(&infos).unwrap();
    for (tensor, info) in model.inventory.iter().zip(&infos) {
        let values = change(tensor, model.read_f32(tensor).unwrap());
        file.write(&info.name, &encoding::encode(info, &values).unwrap()).unwrap();
    }
    file.close().unwrap();
    ModelDir::open(directory).unwrap()
}

/// An adapter that changes something on every matrix that takes one.
fn adapters(model: &ModelDir) -> Training {
    let mut numbers = Numbers::default();
    let adapted = model.inventory.iter().filter(|t| matches!(t.role, Role::Linear(_) | Role::Experts));
    let modules = adapted.map(|tensor| {
        let all = tensor.matrices().unwrap();
        let mut draw = |size: usize| numbers.draw(all.count * 2 * size, (-0.05, 0.05));
        let values = Some((draw(all.columns), draw(all.rows)));
        (tensor.module.clone().unwrap(), LoraModule { rank: 2, scale: 1.5, values })
    });
    Training::Lora(LoraPlan { modules: modules.collect(), ..LoraPlan::default() })
}

fn some_tokens() -> Batch {
    let ids: Vec<u32> = (0..90_u32).map(|t| (t * 7919 + 13) % 2048).collect();
    let labels: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
    batch(&ids, &labels, &[50, 40])
}

/// Loss of a batch and the gradients of all adapters.
fn step(model: &ModelDir, storage: Storage) -> (f64, Vec<Vec<f32>>) {
    let (decoder, parameters) = Decoder::load(model, &adapters(model), &cpu(), storage).unwrap();
    let (loss, gradients) = staged(&decoder, &parameters, &Likelihood, &[some_tokens()], Staging::plain(1));
    (loss, (0..parameters.len()).map(|slot| host(gradients.get(slot).unwrap().clone())).collect())
}

#[track_caller]
fn assert_same_step(what: &str, blocks: &(f64, Vec<Vec<f32>>), numbers: &(f64, Vec<Vec<f32>>)) {
    assert_eq!(blocks.0.to_bits(), numbers.0.to_bits(), "{what}: loss {} and {}", blocks.0, numbers.0);
    for (slot, (one, other)) in blocks.1.iter().zip(&numbers.1).enumerate() {
        assert!(one.iter().any(|value| *value != 0.0), "{what}: gradient {slot} is zero");
        assert_eq!(one, other, "{what}: gradient {slot}");
    }
}

/// What a tensor's numbers become, by the formats' own encoders and decoders.
fn through(quantize: Quantize, importance: &Importance, tensor: &TensorSpec, values: &[f32]) -> Vec<f32> {
    let width = *tensor.shape.last().unwrap();
    let read = |first: usize, part: &mut [f32]| {
        part.copy_from_slice(&values[first..][..part.len()]);
        Ok::<(), WeightError>(())
    };
    let rows = values.len() / width;
    let mut out = vec![0.0; values.len()];
    let shared = ["self_attn.k_proj.weight", "self_attn.v_proj.weight"].iter().any(|end| tensor.name.ends_with(end));
    match if shared && quantize == Quantize::Nf4 { Quantize::Int8 } else { quantize } {
        Quantize::None => out.copy_from_slice(values),
        Quantize::Nf4 => {
            let importance = importance.of(&tensor.name).expect("a linear layer's channels were weighed");
            assert_eq!(importance.len(), width, "{}", tensor.name);
            Nf4::quantise_for(importance, values.len(), read).unwrap().decode(0, &mut out);
        }
        Quantize::Int8 => Int8::quantise(rows, width, read).unwrap().decode(0, &mut out),
        Quantize::Q4_0 => GgufBlocks::encode(TensorType::Q4_0, rows, width, read).unwrap().decode(0, &mut out),
    }
    out
}

#[test]
fn a_quantised_base_is_the_base_of_its_decoded_numbers() {
    for family in FAMILIES {
        let (home, model) = made(family);
        for quantize in [Quantize::Nf4, Quantize::Int8, Quantize::Q4_0] {
            let directory = home.path().join(quantize.name());
            let importance = Importance::measure(&model, &cpu(), Storage { quantize, ..DType::F32.into() }).unwrap();
            let numbers = decoded(&model, &directory, |tensor, values| match tensor.role {
                Role::Linear(_) | Role::Experts => through(quantize, &importance, tensor, &values),
                _ => values,
            });
            let what = format!("{family} in {}", quantize.name());
            let blocks = step(&model, Storage { quantize, ..DType::F32.into() });
            assert_same_step(&what, &blocks, &step(&numbers, DType::F32.into()));
            assert_ne!(blocks.0, step(&model, DType::F32.into()).0, "{what}: nothing was quantised");
        }
    }
}

/// By the formula, of the layers whose inputs no layer has changed yet: the normed rows of the embedding.
#[test]
fn importance_is_the_mean_square_of_inputs() {
    for family in FAMILIES {
        let (_home, model) = made(family);
        let storage = Storage { quantize: Quantize::Nf4, ..DType::F32.into() };
        let importance = Importance::measure(&model, &cpu(), storage).unwrap();
        let read =
            |name: &str| model.read_f32(model.inventory.iter().find(|tensor| tensor.name == name).unwrap()).unwrap();
        let (rows, norm) = (read("embed_tokens.weight"), read("layers.0.input_layernorm.weight"));
        let mut expected = vec![0.0_f64; 256];
        for token in 0..512_u64 {
            let row = &rows[(qwen_tune_model::mix(token) % 2048) as usize * 256..][..256];
            let square = row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>() / 256.0;
            for ((sum, value), weight) in expected.iter_mut().zip(row).zip(&norm) {
                let weight = f64::from(*weight) + f64::from(u8::from(model.spec.norm.zero_centred));
                *sum += (f64::from(*value) * weight).powi(2) / (square + model.spec.norm.eps) / 512.0;
            }
        }
        let queries =
            |t: &&TensorSpec| t.layer == Some(0) && (t.name.contains("q_proj") || t.name.contains("in_proj_qkv"));
        let first = model.inventory.iter().find(|t| queries(t) && t.shape.len() == 2).unwrap();
        for (channel, (found, expected)) in importance.of(&first.name).unwrap().iter().zip(&expected).enumerate() {
            let close = (f64::from(*found) / expected - 1.0).abs() < 1e-4;
            assert!(close, "{family}, {}, {channel}: {found}, expected {expected}", first.name);
        }
        let unweighed = Importance::measure(&model, &cpu(), Storage { quantize: Quantize::Int8, ..storage }).unwrap();
        assert!(unweighed.of(&first.name).is_none(), "{family}");
    }
}

#[test]
fn weights_that_wait_in_host_memory_change_nothing() {
    for family in FAMILIES {
        let (home, model) = made(family);
        // Of a bf16 checkpoint its mapping, and of another one a copy; the embedding alone, and the blocks, too.
        let wide = decoded(&model, &home.path().join("wide"), |_, values| values);
        for model in [&model, &wide] {
            let here = step(model, DType::F32.into());
            for offload in [Offload::Embedding, Offload::Inputs, Offload::Weights] {
                let away = step(model, Storage { offload, ..DType::F32.into() });
                assert_same_step(&format!("{family}, {}", offload.name()), &away, &here);
            }
        }
    }
}

#[test]
fn a_gguf_base_is_trained_in_its_blocks() {
    let quants = [Quant::F16, Quant::BF16, Quant::Q8_0, Quant::Q4_0, Quant::Q5_1, Quant::Q4_K_M, Quant::Q6_K];
    for family in FAMILIES {
        let (home, model) = made(family);
        let options = WriteOptions {
            name: "m".to_owned(),
            quants: quants.to_vec(),
            about: About { name: "m".to_owned(), ..About::default() },
            shard_bytes: 1 << 40,
        };
        let out = home.path().join("gguf");
        fs::create_dir(&out).unwrap();
        for written in gguf::write(&model, None, &out, &options).unwrap().models {
            let what = format!("{family} in {}", written.quant);
            let file = ModelDir::open(&written.files[0]).unwrap();
            let numbers = decoded(&file, &home.path().join(written.quant.name()), |_, values| values);
            let storage = Storage::from(DType::F32);
            assert_same_step(&what, &step(&file, storage), &step(&numbers, storage));
            // As many bytes as lie in the file, but for keys and what is f32 there.
            let held: u64 = file.inventory.iter().map(|tensor| storage.bytes_of(&file, tensor, &cpu())).sum();
            let size = fs::metadata(&written.files[0]).unwrap().len();
            assert!(held < size && 10 * held > 8 * size, "{what}: {held} bytes of a file of {size}");
        }
    }
}

/// Every tensor of every kind of model, read where it lies: whole, and in stretches that begin and end anywhere.
#[test]
fn blocks_of_a_file_are_read_as_the_model_has_them() {
    for family in FAMILIES {
        let (home, model) = made(family);
        let options = WriteOptions {
            name: "m".to_owned(),
            quants: vec![Quant::Q5_K_M],
            about: About { name: "m".to_owned(), ..About::default() },
            shard_bytes: 1 << 40,
        };
        let report = gguf::write(&model, None, home.path(), &options).unwrap();
        let file = ModelDir::open(&report.models[0].files[0]).unwrap();
        let (mut seen, mut of_one_type) = (0, 0);
        for tensor in &file.inventory {
            let Some(blocks) = file.blocks(tensor) else { continue };
            let whole = file.read_f32(tensor).unwrap();
            assert_eq!(blocks.numbers(), whole.len());
            for (first, count) in [(0, whole.len()), (1, 700), (255, 2), (256, 256), (300, 1)] {
                let mut part = vec![f32::NAN; count];
                blocks.decode(first, &mut part);
                assert_eq!(part, whole[first..first + count], "{family}, {}: {count} from {first}", tensor.name);
            }
            seen += 1;
            // From the bytes of some rows alone, where nothing else is needed.
            let Some(ty) = blocks.one_type() else { continue };
            let (width, rows) = (blocks.width(), whole.len() / blocks.width());
            for part in [0..rows, rows / 3..rows / 2 + 1, rows - 1..rows] {
                let mut values = vec![f32::NAN; part.len() * width];
                decoder(ty).unwrap()(&blocks.raw(part.clone()), &mut values);
                assert_eq!(values, whole[part.start * width..part.end * width], "{family}, {}: {part:?}", tensor.name);
            }
            of_one_type += 1;
        }
        assert!(seen > 4 * 4, "{family}: {seen} tensors in blocks");
        // Projections behind a recurrence take its value heads in another order.
        let reordered = matches!(family, "qwen3_5_text" | "qwen3_next");
        assert_eq!(of_one_type < seen, reordered, "{family}: {of_one_type} of {seen} tensors in blocks");
    }
}
