//! Feed-forward parts that take their tokens in chunks are those that take all of them at once.

use burn::tensor::DType;
use qwen_tune_data::Batch;
use qwen_tune_model::{Decoder, Parameters, Pass, Training};
use qwen_tune_qwen::FfnSpec;
use qwen_tune_train::backward::{Gradients, Staging, accumulate_whole_tape};
use qwen_tune_train::{Likelihood, batch_logps};

use super::{assert_same, cpu, lora_with_dropout, staged};
use crate::golden::{Golden, batch, host, max_abs, names, relative};

/// Tokens of a chunk: more than products take row by row, and no divisor of the batch.
const CHUNK: usize = 50;

/// Rows of other lengths than a chunk's, some of whose tokens are targets.
fn rows(golden: &Golden) -> Batch {
    let lens = [96, 7, 61];
    let ids: Vec<u32> = (0..lens.iter().sum()).map(|i| (i * 7919 % golden.model.spec.vocab_size) as u32).collect();
    let labels: Vec<i64> =
        ids.iter().enumerate().map(|(at, id)| if at % 3 == 1 { -100 } else { i64::from(*id) }).collect();
    batch(&ids, &labels, &lens)
}

fn trainings(golden: &Golden) -> [Training; 3] {
    [golden.lora(), lora_with_dropout(golden, 0.3), golden.full()]
}

fn staging(training: &Training, ffn_chunk: Option<usize>) -> Staging {
    let dropout = matches!(training, Training::Lora(plan) if plan.dropout > 0.0).then_some(7);
    // Where there are experts, with the load-balancing loss.
    Staging { dropout, balance: 0.2, ffn_chunk, ..Staging::plain(usize::MAX) }
}

fn has_experts(golden: &Golden) -> bool {
    golden.model.spec.layers.iter().any(|layer| matches!(layer.ffn, FfnSpec::Sparse(_)))
}

/// A token's numbers are its own, to the bit, but for products of few rows, which are made in another way: an expert may have so
/// few in a chunk.
fn assert_same_loss(golden: &Golden, whole: f64, chunked: f64) {
    if has_experts(golden) {
        assert!((whole - chunked).abs() < 1e-6, "{}: {whole} and {chunked}", golden.name);
    } else {
        assert_eq!(whole.to_bits(), chunked.to_bits(), "{}", golden.name);
    }
}

/// Losses have the same bits: a token's numbers are its own. Gradients are sums over tokens in another order.
#[test]
fn a_block_run_again_in_chunks_has_the_gradients_of_one_run_whole() {
    for name in names() {
        let golden = Golden::open(&name);
        let batches = [rows(&golden)];
        for training in trainings(&golden) {
            let (decoder, parameters) = golden.load(&training, &cpu());
            let run = |chunk| staged(&decoder, &parameters, &Likelihood, &batches, staging(&training, chunk));
            let ((whole, gradients), (chunked, others)) = (run(None), run(Some(CHUNK)));
            assert_same_loss(&golden, whole, chunked);
            assert_same(&name, &parameters, &others, &gradients, 1e-5);
        }
    }
}

/// Chunks of a few tokens, whose products are made in another way, against one tape through the whole model.
#[test]
fn small_chunks_have_the_gradients_of_the_whole_tape() {
    for name in names() {
        let golden = Golden::open(&name);
        let batch = golden.batch();
        for training in trainings(&golden) {
            let (decoder, parameters) = golden.load(&training, &cpu());
            let mut whole = Gradients::default();
            let (share, staging) = (1.0 / batch.trained as f32, staging(&training, Some(5)));
            let loss = accumulate_whole_tape(&decoder, &parameters, &Likelihood, &batch, share, staging, &mut whole);
            let (ours, gradients) = staged(&decoder, &parameters, &Likelihood, std::slice::from_ref(&batch), staging);
            assert!((ours - loss / batch.trained as f64).abs() < 1e-6, "{name}");
            let limit = if golden.is_hybrid() { 1e-4 } else { 1e-5 };
            assert_same(&name, &parameters, &gradients, &whole, limit);
        }
    }
}

/// In bf16 what is added up over chunks is rounded once a chunk: a part of what rounding everywhere costs. Where experts have few rows
/// in a chunk, whose products are made in another way, every number may be rounded at another place.
#[test]
fn chunks_are_the_whole_within_the_rounding_of_bf16() {
    let joined = |(_, parameters): &(Decoder, Parameters), gradients: &Gradients| -> Vec<f32> {
        (0..parameters.len()).flat_map(|slot| host(gradients.get(slot).unwrap().clone())).collect()
    };
    for name in names() {
        let golden = Golden::open(&name);
        let batches = [rows(&golden)];
        for training in trainings(&golden) {
            let models = [DType::F32, DType::BF16].map(|dtype| golden.load_as(dtype, &training, &cpu()));
            let run = |model: &(Decoder, Parameters), chunk| {
                let (loss, gradients) = staged(&model.0, &model.1, &Likelihood, &batches, staging(&training, chunk));
                (loss, joined(model, &gradients))
            };
            let (_, exact) = run(&models[0], None);
            let ((whole, gradients), (chunked, others)) = (run(&models[1], None), run(&models[1], Some(CHUNK)));
            if !has_experts(&golden) {
                assert_same_loss(&golden, whole, chunked);
            }
            let (off, rounding) = (relative(&others, &gradients), relative(&gradients, &exact));
            let limit = if has_experts(&golden) { rounding } else { rounding / 4.0 };
            assert!(off <= limit, "{name}: off by {off:e}, off f32 by {rounding:e}");
        }
    }
}

#[test]
fn an_evaluation_in_chunks_has_the_same_bits() {
    for name in names() {
        let golden = Golden::open(&name);
        let (decoder, parameters) = golden.load(&golden.lora(), &cpu());
        let batch = rows(&golden);
        let logps = |chunk| {
            let pass = Pass::plain(&parameters).in_chunks(chunk);
            batch_logps(&decoder, &pass, &batch, &batch.targets)
        };
        if has_experts(&golden) {
            assert!(max_abs(&logps(None), &logps(Some(CHUNK))) < 1e-5, "{name}");
        } else {
            assert_eq!(logps(None), logps(Some(CHUNK)), "{name}");
        }
    }
}

/// Masks of experts' inputs go by the rows of an expert, which are others in a chunk.
#[test]
fn experts_that_drop_inputs_take_all_tokens_at_once() {
    let mut seen = [0, 0];
    for name in names() {
        let golden = Golden::open(&name);
        let (decoder, _) = golden.load(&lora_with_dropout(&golden, 0.3), &cpu());
        for block in decoder.blocks() {
            let parts = block.ffn_parts(100, Some(30));
            assert!(parts.len() == 1 || parts == [0..25, 25..50, 50..75, 75..100], "{name}: {parts:?}");
            seen[usize::from(parts.len() == 1)] += 1;
        }
        assert_eq!(decoder.blocks()[0].ffn_parts(100, None), std::slice::from_ref(&(0..100)));
    }
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?} blocks in chunks and whole");
}
