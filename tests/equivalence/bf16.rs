//! The same laws in bf16. Two ways of doing one thing may round at other places; what they then differ by is held against
//! the distance of bf16 from f32 for the same model and tokens, which is what rounding everywhere costs.

use burn::tensor::DType;
use qwen_tune_data::Batch;
use qwen_tune_model::{Cache, Context, Decoder, Parameters, Pass, Training};
use qwen_tune_train::Likelihood;
use qwen_tune_train::backward::{Gradients, Staging, accumulate_whole_tape};

use super::{cpu, lora_with_dropout, staged};
use crate::golden::{Golden, batch, host, names, relative, spans};

type Model = (Decoder, Parameters);

fn load(golden: &Golden, dtype: DType, training: &Training) -> Model {
    golden.load_as(dtype, training, &cpu())
}

fn logits((decoder, parameters): &Model, batch: &Batch) -> Vec<f32> {
    let context = decoder.context(&spans(batch), &batch.positions);
    let pass = Pass::plain(parameters);
    host(decoder.logits(decoder.hidden(&batch.ids, &context, &pass), &pass))
}

/// All gradients as one vector.
fn joined(parameters: &Parameters, gradients: &Gradients) -> Vec<f32> {
    (0..parameters.len()).flat_map(|slot| host(gradients.get(slot).unwrap().clone())).collect()
}

/// Two computations that round independently differ by √2 times the distance of each from f32; where a router chooses another
/// expert in one of them, that is all there is.
#[track_caller]
fn assert_within_rounding(name: &str, ours: &[f32], other: &[f32], exact: &[f32]) {
    let (off, rounding) = (relative(ours, other), relative(ours, exact));
    assert!(rounding > 1e-3, "{name}: off f32 by {rounding:e} only, which is no bf16");
    assert!(off < 1.5 * rounding, "{name}: off by {off:e}, and off f32 by {rounding:e}");
}

#[test]
fn staged_backward_is_whole_tape_backward_in_bf16() {
    for name in names() {
        let golden = Golden::open(&name);
        let batches = [golden.batch()];
        for training in [golden.lora(), lora_with_dropout(&golden, 0.3), golden.full()] {
            let dropout = matches!(&training, Training::Lora(plan) if plan.dropout > 0.0).then_some(7);
            let staging = Staging { dropout, balance: 0.2, ..Staging::plain(0) };
            let (decoder, parameters) = load(&golden, DType::BF16, &training);
            let mut whole = Gradients::default();
            let share = 1.0 / batches[0].trained as f32;
            let loss =
                accumulate_whole_tape(&decoder, &parameters, &Likelihood, &batches[0], share, staging, &mut whole);
            let whole = joined(&parameters, &whole);
            let (plain, parameters_32) = load(&golden, DType::F32, &training);
            let exact = joined(&parameters_32, &staged(&plain, &parameters_32, &Likelihood, &batches, staging).1);
            // Gradients that meet at a block's input are summed, and rounded, in another order: one rounding of many.
            let limit = relative(&whole, &exact) / 4.0;
            for recompute in [0, 1, usize::MAX] {
                let staging = Staging { recompute, ..staging };
                let (ours, gradients) = staged(&decoder, &parameters, &Likelihood, &batches, staging);
                let off = relative(&joined(&parameters, &gradients), &whole);
                assert!((ours - loss / batches[0].trained as f64).abs() < 1e-6, "{name}: loss");
                assert!(off <= limit, "{name}, recompute {recompute}: off by {off:e} of {limit:e}");
            }
        }
    }
}

#[test]
fn packed_sequences_are_separate_ones_in_bf16() {
    for name in names() {
        let golden = Golden::open(&name);
        let rows: Vec<Vec<u32>> =
            (0..3).map(|j| golden.i64(&format!("sep.ids.{j}")).into_iter().map(|id| id as u32).collect()).collect();
        let plain = |ids: &[u32], lens: &[usize]| batch(ids, &vec![-100; ids.len()], lens);
        let packed = plain(&rows.concat(), &rows.iter().map(Vec::len).collect::<Vec<_>>());
        let [exact, model] = [DType::F32, DType::BF16].map(|dtype| load(&golden, dtype, &golden.lora()));
        let apart: Vec<f32> = rows.iter().flat_map(|ids| logits(&model, &plain(ids, &[ids.len()]))).collect();
        let together = logits(&model, &packed);
        assert_within_rounding(&name, &together, &apart, &logits(&exact, &packed));
    }
}

#[test]
fn generation_with_a_cache_gives_the_logits_of_the_whole_sequence_in_bf16() {
    for name in names() {
        let golden = Golden::open(&name);
        let [exact, model] = [DType::F32, DType::BF16].map(|dtype| load(&golden, dtype, &golden.lora()));
        let row = golden.batch();
        let ids = &row.ids[..row.sequences[0].len];
        let whole = batch(ids, &vec![-100; ids.len()], &[ids.len()]);
        let (decoder, parameters) = &model;
        let pass = Pass::plain(parameters);
        let mut cache = Cache::default();
        let mut pieces = Vec::new();
        for piece in [&ids[..7], &ids[7..8], &ids[8..11], &ids[11..12], &ids[12..]] {
            let context = Context::continuing(&decoder.spec.rope, cache, piece.len(), decoder.device());
            pieces.extend(host(decoder.logits(decoder.hidden(piece, &context, &pass), &pass)));
            cache = context.cache.unwrap();
            cache.advance(piece.len());
        }
        assert_within_rounding(&name, &logits(&model, &whole), &pieces, &logits(&exact, &whole));
    }
}
