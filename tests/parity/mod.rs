//! Our numbers against those of transformers and PEFT, in f32 on the CPU. The tolerances of every case stand here and
//! nowhere else.

use std::sync::OnceLock;

use burn::backend::Flex;
use burn::tensor::{Device, Tensor};
use qwen_tune_data::Batch;
use qwen_tune_model::{Decoder, Parameters, Pass, Training};
use qwen_tune_qwen::export::Change;
use qwen_tune_train::backward::{Gradients, Staging, accumulate};
use qwen_tune_train::{AdamW, Likelihood, OptimizerConfig};
use qwen_tune_weights::TensorSource;
use qwen_tune_weights::peft::Adapter;

use crate::golden::{Golden, PREFIX, batch, host, max_abs, names, relative, spans};

mod bf16;

/// How near two f32 computations of one model come.
struct Tolerance {
    /// Largest difference of any activation or logit.
    activation: f32,
    /// Largest relative difference (2-norm) of any gradient.
    gradient: f64,
    /// Largest difference of the loss of a step.
    loss: f64,
    /// Largest difference of the losses of ten steps.
    curve: f64,
    /// Largest difference of an adapter's values after ten steps.
    after: f32,
}

/// Softmax attention. The gated norm behind a recurrence divides each head's output by its own size, which may be next
/// to nothing: there rounding shows a hundred times larger, in transformers itself too.
fn tolerance(golden: &Golden, device: &Device) -> Tolerance {
    let wide = match golden.is_hybrid() {
        true => Tolerance { activation: 1e-3, gradient: 1e-3, loss: 1e-4, curve: 1e-3, after: 2e-3 },
        false => Tolerance { activation: 1e-4, gradient: 1e-4, loss: 1e-5, curve: 1e-5, after: 2e-5 },
    };
    match test_device() {
        // Burn has f32 multiplied in tf32 there, whose operands have 10 bits: an error of 5e-4 in each product, not 6e-8.
        Some((name, own)) if name.starts_with("cuda") && own == *device => Tolerance {
            activation: wide.activation.max(2e-2),
            gradient: wide.gradient.max(1e-2),
            loss: wide.loss.max(2e-3),
            curve: wide.curve.max(2e-2),
            after: wide.after.max(1e-2),
        },
        _ => wide,
    }
}

/// The device that `QWEN_TUNE_TEST_DEVICE` names, such as `cuda:0`: the suite runs there too.
fn test_device() -> Option<(String, Device)> {
    static DEVICE: OnceLock<Option<(String, Device)>> = OnceLock::new();
    let named = || {
        let name = std::env::var("QWEN_TUNE_TEST_DEVICE").ok().filter(|name| !name.is_empty() && name != "cpu")?;
        let device = qwen_tune_train::device::open(&name, Default::default()).unwrap().device;
        Some((name, device))
    };
    DEVICE.get_or_init(named).clone()
}

/// Devices the suite runs on: the CPU backend, Burn's older one where it is compiled in, and one that is asked for.
fn devices() -> Vec<Device> {
    let open = |name| qwen_tune_train::device::open(name, Default::default()).map(|open| open.device);
    assert!(open("cpu").is_ok());
    let own = ["cpu", "ndarray"].into_iter().filter_map(|name| open(name).ok());
    own.chain(test_device().map(|(_, device)| device)).collect()
}

fn each(mut check: impl FnMut(&Golden, &Device)) {
    for device in devices() {
        for name in names() {
            check(&Golden::open(&name), &device);
        }
    }
}

#[test]
fn every_block_and_the_logits_are_those_of_transformers() {
    each(|golden, device| {
        let (decoder, parameters) = golden.load(&golden.lora(), device);
        let batch = golden.batch();
        let context = decoder.context(&spans(&batch), &batch.positions);
        let pass = Pass::plain(&parameters);
        let check = |what: &str, ours: Vec<f32>| {
            let off = max_abs(&ours, &golden.f32(what));
            assert!(off < tolerance(golden, device).activation, "{} {what}: off by {off:e}", golden.name);
        };
        let mut x = decoder.embed(&batch.ids, &pass);
        check("embed", host(x.clone()));
        for (index, block) in decoder.blocks().iter().enumerate() {
            let router = block.router_logits(x.clone(), &context, &pass);
            assert_eq!(router.is_some(), golden.has(&format!("router.{index}")), "{}: layer {index}", golden.name);
            if let Some(router) = router {
                check(&format!("router.{index}"), host(router));
            }
            x = block.forward(x, &context, &pass);
            check(&format!("block.{index}"), host(x.clone()));
        }
        let h = decoder.finish(x, &pass);
        check("final", host(h.clone()));
        check("logits", host(decoder.logits(h, &pass)));
        let base = Pass::plain(&parameters).without_adapters();
        let hidden = decoder.hidden(&batch.ids, &context, &base);
        check("base_logits", host(decoder.logits(hidden, &base)));
    });
}

fn gradients(decoder: &Decoder, parameters: &Parameters, golden: &Golden, recompute: usize) -> (f64, Gradients) {
    gradients_of(decoder, parameters, &golden.batch(), recompute)
}

fn gradients_of(decoder: &Decoder, parameters: &Parameters, batch: &Batch, recompute: usize) -> (f64, Gradients) {
    let share = 1.0 / batch.trained as f32;
    let mut gradients = Gradients::default();
    let staging = Staging::plain(recompute);
    let passed = accumulate(decoder, parameters, &Likelihood, batch, share, staging, &mut gradients);
    (passed.loss.nats() / batch.trained as f64, gradients)
}

fn check_gradients(golden: &Golden, device: &Device, training: &Training, kind: &str) {
    let (decoder, parameters) = golden.load(training, device);
    assert!(!parameters.is_empty());
    for recompute in [0, 1, decoder.blocks().len()] {
        let (loss, gradients) = gradients(&decoder, &parameters, golden, recompute);
        let off = (loss - f64::from(golden.f32("loss")[0])).abs();
        if kind == "grad" {
            assert!(off < tolerance(golden, device).loss, "{}: loss off by {off:e}", golden.name);
        }
        for (slot, parameter) in parameters.iter().enumerate() {
            let name = &parameter.name;
            let ours = gradients.get(slot).unwrap_or_else(|| panic!("{}: no gradient of {name}", golden.name));
            let off = relative(&host(ours.clone()), &golden.of(kind, parameter));
            assert!(
                off < tolerance(golden, device).gradient,
                "{} {kind} {name} (recompute {recompute}): off by {off:e}",
                golden.name
            );
        }
    }
}

#[test]
fn every_adapter_gradient_is_that_of_peft() {
    each(|golden, device| check_gradients(golden, device, &golden.lora(), "grad"));
}

/// The factor of the goldens' load-balancing loss.
const AUX_FACTOR: f32 = 0.1;

#[test]
fn the_load_balancing_loss_and_its_gradients_are_those_of_transformers() {
    let mut seen = 0;
    each(|golden, device| {
        if !golden.has("aux_loss") {
            return;
        }
        seen += 1;
        let (decoder, parameters) = golden.load(&golden.lora(), device);
        let batch = golden.batch();
        for recompute in [0, 1, decoder.blocks().len()] {
            let mut gradients = Gradients::default();
            let staging = Staging { balance: AUX_FACTOR, ..Staging::plain(recompute) };
            let share = 1.0 / batch.trained as f32;
            let passed = accumulate(&decoder, &parameters, &Likelihood, &batch, share, staging, &mut gradients);
            let figures = passed.balance.figures().expect("the case has experts");
            let off = (figures.aux_loss - f64::from(golden.f32("aux_loss")[0])).abs();
            assert!(off < tolerance(golden, device).loss, "{}: load-balancing loss off by {off:e}", golden.name);
            assert_eq!(figures.dropped_tokens, 0);
            for (slot, parameter) in parameters.iter().enumerate() {
                let ours = host(gradients.get(slot).expect("every adapter gets a gradient").clone());
                let off = relative(&ours, &golden.of("auxgrad", parameter));
                assert!(off < tolerance(golden, device).gradient, "{} {}: off by {off:e}", golden.name, parameter.name);
            }
        }
    });
    assert!(seen >= 8, "{seen} cases with experts");
}

#[test]
fn adapters_of_single_experts_are_read_as_peft_reads_them() {
    let mut seen = 0;
    each(|golden, device| {
        if !golden.has("per_expert_logits") {
            return;
        }
        seen += 1;
        let adapter = Adapter::read(&golden.dir.join("adapter_per_expert")).unwrap();
        // What is written of it has the form that PEFT reads for every family.
        let fitted = qwen_tune_qwen::export::fit_adapter(&golden.model, golden.model.key_layout, &adapter).unwrap();
        let out = tempfile::tempdir().unwrap();
        fitted.write(&out.path().join("adapter"), qwen_tune_weights::Dtype::F32).unwrap();
        let again = Adapter::read(&out.path().join("adapter")).unwrap();
        for adapter in [adapter, again] {
            let (decoder, parameters) = golden.load(&golden.lora_of(adapter), device);
            let batch = golden.batch();
            let context = decoder.context(&spans(&batch), &batch.positions);
            let pass = Pass::plain(&parameters);
            let logits = host(decoder.logits(decoder.hidden(&batch.ids, &context, &pass), &pass));
            let off = max_abs(&logits, &golden.f32("per_expert_logits"));
            assert!(off < tolerance(golden, device).activation, "{}: logits off by {off:e}", golden.name);
        }
    });
    assert!(seen >= 2, "{seen} cases with adapters of single experts");
}

#[test]
fn every_gradient_of_full_fine_tuning_is_that_of_transformers() {
    let mut seen = 0;
    for name in names() {
        let golden = Golden::open(&name);
        if golden.has("full_losses") {
            seen += 1;
            for device in devices() {
                check_gradients(&golden, &device, &golden.full(), "fullgrad");
            }
        }
    }
    assert!(seen > 0, "no case with full fine-tuning");
}

/// The optimizer of the goldens: torch's AdamW on one group, decay on everything.
fn optimizer() -> OptimizerConfig {
    OptimizerConfig { learning_rate: 1e-3, weight_decay: 0.01, max_grad_norm: 1.0, ..OptimizerConfig::default() }
}

fn ten_steps(golden: &Golden, device: &Device, training: &Training) -> (Vec<f64>, Vec<f64>, Parameters) {
    ten_steps_of(golden.load(training, device), &golden.batch())
}

fn ten_steps_of(model: (Decoder, Parameters), batch: &Batch) -> (Vec<f64>, Vec<f64>, Parameters) {
    let (decoder, mut parameters) = model;
    parameters.iter_mut().for_each(|p| p.decays = true);
    let config = optimizer();
    let mut adamw = AdamW::new(config.clone(), &parameters);
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        let (loss, g) = gradients_of(&decoder, &parameters, batch, 0);
        let norm = g.norm();
        adamw.step(&mut parameters, &g, config.clip(norm), config.learning_rate);
        losses.push(loss);
        norms.push(norm);
    }
    (losses, norms, parameters)
}

fn check_curve(golden: &Golden, device: &Device, ours: &[f64], theirs: &str) {
    for (step, (a, b)) in ours.iter().zip(golden.f32(theirs)).enumerate() {
        let off = (a - f64::from(b)).abs();
        assert!(
            off < tolerance(golden, device).curve,
            "{} {theirs} step {step}: {a} for {b}, off by {off:e}",
            golden.name
        );
    }
}

/// Nothing of a step, least of all a tape, still holds a trained tensor when it is updated: it would be copied then.
#[test]
fn an_update_copies_no_trained_tensor() {
    let golden = Golden::open(&names()[0]);
    let device = &devices()[0];
    let place = |tensor: &Tensor<1>| {
        let tensor = tensor.clone().try_into_primitive::<Flex>().expect("a tensor on the CPU");
        tensor.bytes().as_ptr()
    };
    for training in [golden.lora(), golden.full()] {
        let (decoder, mut parameters) = golden.load(&training, device);
        let mut adamw = AdamW::new(optimizer(), &parameters);
        let places = |parameters: &Parameters| parameters.iter().map(|p| place(&p.value)).collect::<Vec<_>>();
        let before = places(&parameters);
        for recompute in [0, decoder.blocks().len()] {
            let (_, g) = gradients(&decoder, &parameters, &golden, recompute);
            adamw.step(&mut parameters, &g, 1.0, 1e-3);
        }
        assert_eq!(places(&parameters), before);
    }
}

#[test]
fn ten_steps_of_adamw_follow_torch() {
    each(|golden, device| {
        let (losses, norms, parameters) = ten_steps(golden, device, &golden.lora());
        check_curve(golden, device, &losses, "losses");
        for (a, b) in norms.iter().zip(golden.f32("grad_norms")) {
            let limit = tolerance(golden, device).gradient.max(1e-3);
            assert!((a / f64::from(b) - 1.0).abs() < limit, "{}: gradient norm {a} for {b}", golden.name);
        }
        for parameter in parameters.iter() {
            let off = max_abs(&host(parameter.value.clone()), &golden.of("after", parameter));
            assert!(off < tolerance(golden, device).after, "{} after {}: off by {off:e}", golden.name, parameter.name);
        }
    });
}

#[test]
fn ten_steps_of_full_fine_tuning_follow_torch() {
    for name in names() {
        let golden = Golden::open(&name);
        if golden.has("full_losses") {
            for device in devices() {
                let (losses, _, _) = ten_steps(&golden, &device, &golden.full());
                check_curve(&golden, &device, &losses, "full_losses");
            }
        }
    }
}

#[test]
fn packed_sequences_give_the_logits_of_separate_ones() {
    each(|golden, device| {
        let (decoder, parameters) = golden.load(&golden.lora(), device);
        let rows: Vec<Vec<u32>> =
            (0..3).map(|j| golden.i64(&format!("sep.ids.{j}")).into_iter().map(|id| id as u32).collect()).collect();
        let lens: Vec<usize> = rows.iter().map(Vec::len).collect();
        let ids = rows.concat();
        let packed = batch(&ids, &vec![-100; ids.len()], &lens);
        let context = decoder.context(&spans(&packed), &packed.positions);
        let pass = Pass::plain(&parameters);
        let logits = host(decoder.logits(decoder.hidden(&ids, &context, &pass), &pass));
        let mut at = 0;
        for j in 0..3 {
            let theirs = golden.f32(&format!("sep.logits.{j}"));
            let off = max_abs(&logits[at..at + theirs.len()], &theirs);
            assert!(off < tolerance(golden, device).activation, "{} sequence {j}: off by {off:e}", golden.name);
            at += theirs.len();
        }
    });
}

#[test]
fn merged_weights_are_those_of_peft_and_give_its_logits() {
    let device = &devices()[0];
    for name in names() {
        let golden = Golden::open(&name);
        let out = tempfile::tempdir().unwrap();
        let merged = out.path().join("merged");
        qwen_tune_qwen::export::merge(&golden.model, Change::Adapter(&golden.adapter()), &merged).unwrap();
        let written = qwen_tune_qwen::ModelDir::open(&merged).unwrap();
        let bf16 = golden.model.checkpoint.tensors().iter().any(|t| t.dtype == qwen_tune_weights::Dtype::BF16);
        let mut compared = 0;
        for info in golden.values.tensors() {
            if let Some(tensor) = info.name.strip_prefix("merged.") {
                let theirs = golden.f32(&info.name);
                let scale = theirs.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                let bare = tensor.strip_prefix(PREFIX).unwrap_or(tensor);
                let spec = written.inventory.iter().find(|tensor| tensor.name == bare).unwrap();
                let off = max_abs(&written.read_f32(spec).unwrap(), &theirs) / scale;
                let limit = if bf16 { 4e-3 } else { 1e-6 };
                assert!(off < limit, "{name} {tensor}: off by {off:e}");
                compared += 1;
            }
        }
        assert!(compared >= 2, "{name}: {compared} merged tensors in the golden");
        if !bf16 {
            let model = qwen_tune_qwen::ModelDir::open(&merged).unwrap();
            let (decoder, parameters) =
                Decoder::load(&model, &Training::Nothing, device, burn::tensor::DType::F32).unwrap();
            let batch = golden.batch();
            let context = decoder.context(&spans(&batch), &batch.positions);
            let pass = Pass::plain(&parameters);
            let logits = host(decoder.logits(decoder.hidden(&batch.ids, &context, &pass), &pass));
            let off = max_abs(&logits, &golden.f32("merged_logits"));
            assert!(off < tolerance(&golden, device).activation, "{name} merged logits: off by {off:e}");
        }
    }
}
