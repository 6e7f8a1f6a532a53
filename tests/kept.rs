//! What a block keeps for its backward, counted by an allocator, against the formula that plans are made with.
//!
//! A binary of its own: the count is that of the whole process, so its tests take turns.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]
#![expect(unsafe_code, reason = "an allocator that counts")]

// Of what other tests take from them, some.
#[allow(dead_code)]
mod golden;
#[allow(dead_code)]
mod made_model;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};

use burn::tensor::{DType, Tensor, TensorData};
use qwen_tune_model::{Block, Decoder, Parameters, Pass, Quantize, Storage, Training};
use qwen_tune_qwen::gguf::{self, About, Quant, WriteOptions};
use qwen_tune_qwen::memory::{self, Extent, Forms, Kept, Learned, MemoryInput, Offload, kept_by_layer};
use qwen_tune_qwen::{FfnSpec, LayerSpec, MixerSpec, ModelDir, Role, TensorSpec};
use qwen_tune_train::backward::{Gradients, Staging, accumulate};
use qwen_tune_train::{Likelihood, device};

use golden::{Golden, batch, names};

struct Counting;

static LIVE: AtomicI64 = AtomicI64::new(0);
static PEAK: AtomicI64 = AtomicI64::new(0);

/// Counts what is held for tokens, at least a byte each; tasks and tapes take less, and not the same every time.
fn count(layout: Layout, sign: i64) {
    if layout.size() >= FEW * SEQUENCE {
        let size = sign * layout.size() as i64;
        PEAK.fetch_max(LIVE.fetch_add(size, Ordering::Relaxed) + size, Ordering::Relaxed);
    }
}

// SAFETY: the system's allocator does all the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout, 1);
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(layout, -1);
        // SAFETY: passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Tokens of a sequence: a chunk of the recurrences, so that no state is kept inside one.
const SEQUENCE: usize = 64;
/// Sequences of two batches, whose difference is that of so many tokens.
const FEW: usize = 32;
const MANY: usize = 64;

/// Bytes that a block holds between its forward and its backward: its input, but not its output, which is the next one's
/// input and of the same size.
fn held(decoder: &Decoder, block: &Block, parameters: &Parameters, dtype: DType, sequences: usize) -> i64 {
    let (tokens, hidden) = (sequences * SEQUENCE, decoder.spec.hidden_size);
    let spans: Vec<(usize, usize)> = (0..sequences).map(|i| (i * SEQUENCE, SEQUENCE)).collect();
    let positions: Vec<u32> = (0..tokens).map(|t| (t % SEQUENCE) as u32).collect();
    let context = decoder.context(&spans, &positions);
    let values: Vec<f32> = (0..tokens * hidden).map(|i| (i * 7919 % 1009) as f32 / 336.0 - 1.5).collect();
    let x = Tensor::<2>::from_data(TensorData::new(values, [tokens, hidden]), (decoder.device(), dtype));
    let before = LIVE.load(Ordering::SeqCst);
    let pass = Pass::taped(parameters, None).observed();
    let x = x.autodiff().require_grad();
    let y = block.forward(x.clone(), &context, &pass);
    let routing = pass.routing();
    let after = LIVE.load(Ordering::SeqCst);
    drop((x, y, routing, pass));
    after - before
}

fn learned(training: &Training) -> Learned {
    match training {
        Training::Lora(plan) => {
            let ranks = plan.modules.iter().map(|(module, lora)| (module.clone(), lora.rank)).collect();
            Learned::Adapters { ranks, whole: plan.whole.keys().cloned().collect() }
        }
        Training::Full(plan) => Learned::Base(plan.tensors.clone()),
        Training::Nothing => unreachable!(),
    }
}

static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn a_block_keeps_what_the_formula_says() {
    let _turn = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let device = device::open("cpu", Default::default()).unwrap().device;
    let mut wrong = Vec::new();
    let mut warm = false;
    for name in names() {
        let golden = Golden::open(&name);
        for training in [golden.lora(), golden.full()] {
            for dtype in [DType::F32, DType::BF16] {
                let (decoder, parameters) = Decoder::load(&golden.model, &training, &device, dtype).unwrap();
                for (index, block) in decoder.blocks().iter().enumerate() {
                    let held = |sequences| held(&decoder, block, &parameters, dtype, sequences);
                    if !std::mem::replace(&mut warm, true) {
                        // What threads keep for themselves.
                        held(MANY);
                    }
                    let more = held(MANY) - held(FEW);
                    let layer = &decoder.spec.layers[index];
                    let tensors: Vec<&TensorSpec> =
                        golden.model.inventory.iter().filter(|tensor| tensor.layer == Some(index)).collect();
                    let numbers = kept_by_layer(decoder.spec.hidden_size, layer, &tensors, &learned(&training));
                    let expected = numbers.bytes(dtype.size() as u64);
                    let tokens = ((MANY - FEW) * SEQUENCE) as i64;
                    if more != expected as i64 * tokens {
                        let held = more as f64 / tokens as f64;
                        let what = if matches!(training, Training::Lora(_)) { "adapters" } else { "all" };
                        wrong.push(format!(
                            "{name}, {what}, {dtype:?}, layer {index}: {held} bytes a token, {expected} planned"
                        ));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Bytes alive at most while the gradients of so many sequences are formed.
fn most(decoder: &Decoder, parameters: &Parameters, staging: Staging, sequences: usize) -> i64 {
    let lens = vec![SEQUENCE; sequences];
    let ids: Vec<u32> = (0..sequences * SEQUENCE).map(|i| (i * 7919 % decoder.spec.vocab_size) as u32).collect();
    let labels: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
    let batch = batch(&ids, &labels, &lens);
    let before = LIVE.load(Ordering::SeqCst);
    PEAK.store(before, Ordering::SeqCst);
    let mut gradients = Gradients::default();
    accumulate(decoder, parameters, &Likelihood, &batch, 1.0, staging, &mut gradients);
    PEAK.load(Ordering::SeqCst) - before
}

/// The plan of one layer of a model alone.
fn planned(
    decoder: &Decoder,
    golden: &Golden,
    index: usize,
    learned: &Learned,
    size: u64,
    staging: Staging,
    sequences: usize,
) -> i64 {
    let spec = decoder.spec.clone();
    let mut inventory = golden.model.inventory.clone();
    inventory.retain(|tensor| tensor.layer.is_none_or(|layer| layer == index));
    inventory.iter_mut().for_each(|tensor| tensor.layer = tensor.layer.map(|_| 0));
    let plan = memory::plan(&MemoryInput {
        spec: &spec,
        inventory: &inventory,
        learned,
        formats: Default::default(),
        weights: &Default::default(),
        activation_bytes: size,
        batch: Extent::of(vec![SEQUENCE; sequences]),
        accumulates: false,
        kept: Kept { layers: usize::from(staging.recompute == 0) },
        ffn_chunk: staging.ffn_chunk.map(|chunk| chunk as u64),
        head_tokens: (sequences * SEQUENCE) as u64,
        head_rows: 512,
        forms: Forms::Cpu,
        eval: Extent::default(),
        update_in_place: true,
        offload: Offload::None,
    });
    (plan.kept + plan.layer.max(plan.head)) as i64
}

/// What threads hold for themselves while attention runs.
const SCRATCH: f64 = 256.0 * 1024.0;

/// Activations kept, blocks run again whole and in chunks, counted while gradients are formed. Attention with a dense feed-forward
/// part: what recurrences and experts hold is planned too high in chunks, as PERFORMANCE.md says.
#[test]
fn a_step_holds_what_the_formula_says() {
    let _turn = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let device = device::open("cpu", Default::default()).unwrap().device;
    let mut wrong = Vec::new();
    for name in names() {
        let golden = Golden::open(&name);
        let is_plain =
            |layer: &LayerSpec| matches!((&layer.mixer, &layer.ffn), (MixerSpec::Attention(_), FfnSpec::Dense { .. }));
        let Some(index) = golden.model.spec.layers.iter().position(is_plain) else { continue };
        for training in [golden.lora(), golden.full()] {
            for dtype in [DType::F32, DType::BF16] {
                let (decoder, parameters) = Decoder::load(&golden.model, &training, &device, dtype).unwrap();
                let one = decoder.with_blocks(&[index]);
                if !one.blocks()[0].is_trained() {
                    continue;
                }
                // The lowest block's input is on no tape where the embedding does not learn: such a block keeps other things.
                let ways: &[_] = match training {
                    Training::Full(_) => &[(0, None), (1, None), (1, Some(256))],
                    _ => &[(1, None), (1, Some(256))],
                };
                for &(recompute, ffn_chunk) in ways {
                    let staging = Staging { ffn_chunk, ..Staging::plain(recompute) };
                    // Threads' buffers are there from the second time on.
                    most(&one, &parameters, staging, MANY);
                    let held = most(&one, &parameters, staging, MANY) as f64;
                    let size = dtype.size() as u64;
                    let plan = planned(&one, &golden, index, &learned(&training), size, staging, MANY) as f64;
                    if (plan - held).abs() > 0.05 * held + SCRATCH {
                        wrong.push(format!(
                            "{name}, {dtype:?}, again {recompute}, chunk {ffn_chunk:?}: {held} bytes held, {plan} planned"
                        ));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Bytes on the heap that a model holds, in pieces of some size, and those of its matrices by the plan.
fn loaded(model: &ModelDir, storage: Storage) -> (i64, u64) {
    let device = device::open("cpu", Default::default()).unwrap().device;
    // What is made once and kept: threads' buffers.
    drop(Decoder::load(model, &Training::Nothing, &device, storage).unwrap());
    let before = LIVE.load(Ordering::SeqCst);
    let loaded = Decoder::load(model, &Training::Nothing, &device, storage).unwrap();
    let held = LIVE.load(Ordering::SeqCst) - before;
    drop(loaded);
    let matrices = model.inventory.iter().filter(|tensor| matches!(tensor.role, Role::Linear(_) | Role::Experts));
    (held, matrices.map(|tensor| storage.bytes_of(model, tensor, &device)).sum())
}

/// A bf16 checkpoint: what is not quantised lies in the mapped file. A GGUF file: all of it does.
#[test]
fn weights_in_blocks_take_the_bytes_of_their_blocks() {
    let _turn = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let home = tempfile::tempdir().unwrap();
    let mut config = made_model::config("qwen3");
    config["hidden_size"] = 512.into();
    config["intermediate_size"] = 1536.into();
    let directory = home.path().join("base");
    made_model::write(&directory, &config, "model.");
    let model = ModelDir::open(&directory).unwrap();
    let matrices = model.inventory.iter().filter(|tensor| matches!(tensor.role, Role::Linear(_)));
    let numbers: u64 = matrices.map(TensorSpec::elements).sum();
    // Norms and tables; the matrices all lie in the file.
    let (others, _) = loaded(&model, DType::F32.into());
    for (quantize, bits) in [(Quantize::Nf4, 4.25), (Quantize::Int8, 8.1), (Quantize::Q4_0, 4.5)] {
        let (held, planned) = loaded(&model, Storage { quantize, ..DType::F32.into() });
        let what = format!("{}: {held} bytes held, {planned} planned of {numbers} numbers", quantize.name());
        assert!(planned as f64 * 8.0 <= bits * numbers as f64, "{what}");
        // Ranges of small tensors' scales lie below what is counted.
        assert!((held - others - planned as i64).unsigned_abs() * 200 < planned, "{what}, {others} others");
    }
    let options = WriteOptions {
        name: "m".to_owned(),
        quants: vec![Quant::Q4_K_M],
        about: About { name: "m".to_owned(), ..About::default() },
        shard_bytes: 1 << 40,
    };
    let report = gguf::write(&model, None, home.path(), &options).unwrap();
    let file = ModelDir::open(&report.models[0].files[0]).unwrap();
    let (held, planned) = loaded(&file, DType::F32.into());
    assert!(held <= others, "{held} bytes on the heap, {others} of them others, of {planned} in the file");
    assert!(planned as f64 * 8.0 < 5.5 * numbers as f64, "{planned} bytes of {numbers} numbers");
}
