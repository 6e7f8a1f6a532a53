//! Laws of what is trained in other ways: whole tensors beside adapters, weights held in bf16.

use burn::tensor::{DType, Tensor};
use qwen_tune_model::{FullPlan, LoraPlan, Master, Training};
use qwen_tune_qwen::inventory;
use qwen_tune_train::backward::{Gradients, Staging};
use qwen_tune_train::{AdamW, Likelihood, OptimizerConfig, OptimizerKind};

use super::{cpu, staged};
use crate::golden::{Golden, host, names, relative};

/// An adapter at its start adds nothing, so a tensor that is trained beside it has the gradient of full fine-tuning.
#[test]
fn whole_tensors_beside_fresh_adapters_have_the_gradients_of_full_fine_tuning() {
    for name in names() {
        let golden = Golden::open(&name);
        let batches = [golden.batch()];
        let Training::Lora(mut plan) = golden.lora() else { unreachable!() };
        plan.modules.values_mut().for_each(|module| module.values = None);
        let adapted = |tensor: &str| {
            plan.modules.keys().any(|module| tensor.starts_with(&format!("{module}.")) || tensor == module)
        };
        let whole: Vec<String> =
            inventory(&golden.model.spec).into_iter().map(|t| t.name).filter(|name| !adapted(name)).collect();
        assert!(whole.iter().any(|name| name.starts_with("embed_tokens")), "{name}");
        plan.whole = whole.into_iter().map(|tensor| (tensor, None)).collect();
        let (decoder, parameters) = golden.load(&Training::Lora(plan), &cpu());
        let (all, all_parameters) = golden.load(&golden.full(), &cpu());
        for recompute in [0, usize::MAX] {
            let (_, ours) = staged(&decoder, &parameters, &Likelihood, &batches, Staging::plain(recompute));
            let (_, full) = staged(&all, &all_parameters, &Likelihood, &batches, Staging::plain(recompute));
            for (slot, parameter) in parameters.iter().enumerate().filter(|(_, p)| !p.name.contains(".lora_")) {
                let other = all_parameters.iter().position(|p| p.name == parameter.name).unwrap();
                let off = relative(&host(ours.get(slot).unwrap().clone()), &host(full.get(other).unwrap().clone()));
                assert!(off <= 1e-5, "{name} {}: off by {off:e}", parameter.name);
            }
        }
    }
}

#[test]
fn whole_tensors_begin_with_the_values_they_are_given() {
    let golden = Golden::open(&names()[0]);
    let tensor = "norm.weight";
    let size = golden.model.spec.hidden_size;
    let with = |values: Option<Vec<f32>>| {
        let Training::Lora(plan) = golden.lora() else { unreachable!() };
        let whole = [(tensor.to_owned(), values)].into();
        golden.load(&Training::Lora(LoraPlan { whole, ..plan }), &cpu()).1
    };
    let values = |values| host(with(values).iter().find(|p| p.name == tensor).unwrap().value.clone());
    assert_eq!(
        values(None),
        golden.model.read_f32(golden.model.inventory.iter().find(|t| t.name == tensor).unwrap()).unwrap()
    );
    assert_eq!(values(Some(vec![0.5; size])), vec![0.5; size]);
}

fn narrow(golden: &Golden) -> Training {
    let tensors = inventory(&golden.model.spec).into_iter().map(|t| t.name).collect();
    Training::Full(FullPlan { tensors, master: Master::Bf16 })
}

/// In a model in bf16, an f32 master is rounded on its way into a product with activations: one that is held in bf16 computes
/// the same. In the backward the head meets gradients in f32 as it is, so gradients differ by rounding, no more than either
/// differs from f32.
#[test]
fn a_master_in_bf16_computes_what_one_in_f32_does() {
    for name in names() {
        let golden = Golden::open(&name);
        let batches = [golden.batch()];
        let run = |training: &Training| {
            let (decoder, parameters) = golden.load_as(DType::BF16, training, &cpu());
            let (loss, gradients) = staged(&decoder, &parameters, &Likelihood, &batches, Staging::plain(1));
            (loss, gradients, parameters)
        };
        let ((wide_loss, wide, _), (loss, ours, parameters)) = (run(&golden.full()), run(&narrow(&golden)));
        assert_eq!(loss.to_bits(), wide_loss.to_bits(), "{name}: {loss} and {wide_loss}");
        let (plain, plain_parameters) = golden.load(&golden.full(), &cpu());
        let exact = staged(&plain, &plain_parameters, &Likelihood, &batches, Staging::plain(1)).1;
        let joined = |gradients: &Gradients| -> Vec<f32> {
            let of_slot = |slot| {
                let gradient = gradients.get(slot).unwrap().clone();
                assert_eq!(gradient.dtype(), DType::F32);
                host(gradient)
            };
            (0..parameters.len()).flat_map(of_slot).collect()
        };
        let [ours, wide, exact] = [ours, wide, exact].map(|gradients| joined(&gradients));
        let (off, rounding) = (relative(&ours, &wide), relative(&ours, &exact));
        assert!(off < 1.5 * rounding, "{name}: off by {off:e}, and off f32 by {rounding:e}");
        let in_bf16 = parameters.iter().filter(|p| p.value.dtype() == DType::BF16).count();
        let matrices = golden.model.inventory.iter().filter(|tensor| tensor.is_product_matrix()).count();
        assert_eq!(in_bf16, matrices, "{name}");
    }
}

/// Rows of one token are added in f32: in bf16 a sum of hundreds of equal gradients would stand still.
#[test]
fn gradients_of_an_embedding_in_bf16_are_added_in_f32() {
    let golden = Golden::open(&names()[0]);
    let (decoder, _) = golden.load_as(DType::BF16, &narrow(&golden), &cpu());
    let (tokens, hidden) = (1000, golden.model.spec.hidden_size);
    let upstream = Tensor::<2>::ones([tokens, hidden], (&cpu(), DType::BF16));
    let sums = host(decoder.embedding_gradient(&vec![3; tokens], upstream));
    assert!(sums[3 * hidden..4 * hidden].iter().all(|sum| *sum == tokens as f32), "{:?}", &sums[3 * hidden..][..4]);
}

/// Ten steps from one start end near one another, whatever the state is held in: 8-bit moments move each value by nearly the
/// same, and bf16 ones round it by half a last place a step.
#[test]
fn ten_steps_with_codes_and_in_bf16_follow_those_in_f32() {
    let golden = Golden::open("qwen3_gqa");
    let batches = [golden.batch()];
    let run = |kind: OptimizerKind, dtype: DType, training: &Training| {
        let (decoder, mut parameters) = golden.load_as(dtype, training, &cpu());
        let config = OptimizerConfig { kind, learning_rate: 2e-3, ..OptimizerConfig::default() };
        let mut adamw = AdamW::new(config, &parameters);
        let mut step = || {
            let (loss, gradients): (f64, Gradients) =
                staged(&decoder, &parameters, &Likelihood, &batches, Staging::plain(0));
            adamw.step(&mut parameters, &gradients, 1.0, 2e-3);
            loss
        };
        (0..10).map(|_| step()).collect::<Vec<f64>>()
    };
    let exact = run(OptimizerKind::AdamW, DType::F32, &golden.full());
    assert!(exact[9] < exact[0] - 0.05, "{exact:?}");
    let fell = exact[0] - exact[9];
    for (kind, dtype, training) in [
        (OptimizerKind::AdamW8bit, DType::F32, golden.full()),
        (OptimizerKind::AdamW8bit, DType::BF16, narrow(&golden)),
        (OptimizerKind::AdamW, DType::BF16, narrow(&golden)),
    ] {
        let ours = run(kind, dtype, &training);
        let off = (ours[9] - exact[9]).abs();
        assert!(off < 0.05 * fell, "{kind:?} in {dtype:?}: {ours:?} beside {exact:?}");
    }
}
