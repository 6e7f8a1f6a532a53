//! Laws that hold whatever the numbers are: two ways of doing the same thing agree.

use burn::tensor::{DType, Device, Distribution, Tensor};
use qwen_tune_data::{Batch, Origin, Packing, Sample};
use qwen_tune_model::{Cache, Context, Decoder, LoraModule, LoraPlan, ModelPart, Parameters, Pass, Training};
use qwen_tune_model::{Sampling, generate};
use qwen_tune_qwen::export::{self, Change};
use qwen_tune_qwen::{ModelDir, Role};
use qwen_tune_train::backward::{Gradients, Staging, accumulate, accumulate_whole_tape};
use qwen_tune_train::{Likelihood, Objective, PackingProof, packing_difference, packing_tolerance};
use qwen_tune_weights::{Dtype, MemorySource, TensorInfo, TensorSource, encoding};

use crate::golden::{Golden, batch, host, max_abs, names, relative, spans};

mod bf16;
mod blocks;
mod chunks;
mod compact;
mod queue;
mod replicas;

fn cpu() -> Device {
    qwen_tune_train::device::open("cpu", Default::default()).unwrap().device
}

/// The golden's adapter with dropout.
fn lora_with_dropout(golden: &Golden, p: f32) -> Training {
    let Training::Lora(plan) = golden.lora() else { unreachable!() };
    Training::Lora(LoraPlan { dropout: p, ..plan })
}

fn staged(
    decoder: &Decoder,
    parameters: &Parameters,
    objective: &dyn Objective,
    batches: &[Batch],
    staging: Staging,
) -> (f64, Gradients) {
    let trained: usize = batches.iter().map(|b| b.trained).sum();
    let mut gradients = Gradients::default();
    let loss: f64 = batches
        .iter()
        .map(|b| {
            accumulate(decoder, parameters, objective, b, 1.0 / trained as f32, staging, &mut gradients).loss.nats()
        })
        .sum();
    (loss / trained as f64, gradients)
}

fn assert_same(what: &str, parameters: &Parameters, ours: &Gradients, theirs: &Gradients, limit: f64) {
    for (slot, parameter) in parameters.iter().enumerate() {
        let off = relative(&host(ours.get(slot).unwrap().clone()), &host(theirs.get(slot).unwrap().clone()));
        assert!(off <= limit, "{what} {}: off by {off:e}", parameter.name);
    }
}

#[test]
fn staged_backward_is_whole_tape_backward() {
    for name in names() {
        let golden = Golden::open(&name);
        let batch = golden.batch();
        for training in [golden.lora(), lora_with_dropout(&golden, 0.3), golden.full()] {
            let dropout = matches!(&training, Training::Lora(plan) if plan.dropout > 0.0).then_some(7);
            let (decoder, parameters) = golden.load(&training, &cpu());
            let mut whole = Gradients::default();
            let share = 1.0 / batch.trained as f32;
            // Where there are experts, with the load-balancing loss.
            let staging = Staging { dropout, balance: 0.2, ..Staging::plain(0) };
            let loss = accumulate_whole_tape(&decoder, &parameters, &Likelihood, &batch, share, staging, &mut whole);
            for recompute in [0, 1, usize::MAX] {
                let staging = Staging { recompute, ..staging };
                let (ours, gradients) =
                    staged(&decoder, &parameters, &Likelihood, std::slice::from_ref(&batch), staging);
                assert!((ours - loss / batch.trained as f64).abs() < 1e-6, "{name}");
                assert_same(&name, &parameters, &gradients, &whole, 1e-5);
            }
        }
    }
}

/// Likelihood that does not say its weights beforehand, and is not linear, so that the general path is taken.
struct Squared;

impl Objective for Squared {
    fn loss(&self, logp: Tensor<1>, _: &Batch) -> Tensor<1> {
        (logp.clone() * logp).sum()
    }

    fn fixed_weights(&self, _: &Batch) -> Option<Vec<f32>> {
        None
    }
}

#[test]
fn an_objective_without_fixed_weights_has_the_gradients_of_the_whole_tape() {
    let golden = Golden::open(&names()[0]);
    let batch = golden.batch();
    let (decoder, parameters) = golden.load(&golden.lora(), &cpu());
    let mut whole = Gradients::default();
    let share = 1.0 / batch.trained as f32;
    let theirs = accumulate_whole_tape(&decoder, &parameters, &Squared, &batch, share, Staging::plain(0), &mut whole);
    let staging = Staging::plain(1);
    let (ours, gradients) = staged(&decoder, &parameters, &Squared, std::slice::from_ref(&batch), staging);
    assert!((ours - theirs / batch.trained as f64).abs() < 1e-5);
    assert_same("squared", &parameters, &gradients, &whole, 1e-5);
}

#[test]
fn recomputing_blocks_and_moving_their_inputs_changes_nothing_at_all() {
    let golden = Golden::open(&names()[0]);
    let (decoder, parameters) = golden.load(&lora_with_dropout(&golden, 0.2), &cpu());
    let batches = [golden.batch()];
    let run = |recompute, inputs_on_host| {
        let staging = Staging { dropout: Some(3), inputs_on_host, ..Staging::plain(recompute) };
        staged(&decoder, &parameters, &Likelihood, &batches, staging)
    };
    let (loss, none) = run(0, false);
    for (recompute, inputs_on_host) in [(usize::MAX, false), (1, true), (usize::MAX, true)] {
        let (again, others) = run(recompute, inputs_on_host);
        assert_eq!(loss.to_bits(), again.to_bits());
        for slot in 0..parameters.len() {
            assert_eq!(host(none.get(slot).unwrap().clone()), host(others.get(slot).unwrap().clone()));
        }
    }
}

#[test]
fn an_adapter_at_its_start_is_the_base() {
    for name in names() {
        let golden = Golden::open(&name);
        let Training::Lora(mut plan) = golden.lora() else { unreachable!() };
        plan.modules.values_mut().for_each(|m: &mut LoraModule| m.values = None);
        let (decoder, parameters) = golden.load(&Training::Lora(plan), &cpu());
        let batch = golden.batch();
        let context = decoder.context(&spans(&batch), &batch.positions);
        let logits = |pass: &Pass<'_>| host(decoder.logits(decoder.hidden(&batch.ids, &context, pass), pass));
        let with = logits(&Pass::plain(&parameters));
        let without = logits(&Pass::plain(&parameters).without_adapters());
        assert_eq!(with, without, "{name}");
    }
}

#[test]
fn micro_batches_of_one_are_one_batch_of_four() {
    for name in names() {
        let golden = Golden::open(&name);
        let rows = golden.batch();
        let width = rows.sequences[0].len;
        let labels = golden.i64("labels");
        // Rows of different lengths with different numbers of targets: means of means would differ.
        let cut = |row: usize, len: usize| {
            let at = row * width;
            batch(&rows.ids[at..at + len], &labels[at..at + len], &[len])
        };
        let small = [cut(0, width), cut(1, width - 4), cut(0, 9), cut(1, 13)];
        let ids: Vec<u32> = small.iter().flat_map(|b| b.ids.clone()).collect();
        let mut joined = batch(&ids, &vec![-100; ids.len()], &small.iter().map(|b| b.ids.len()).collect::<Vec<_>>());
        joined.targets = small.iter().flat_map(|b| b.targets.clone()).collect();
        joined.trained = small.iter().map(|b| b.trained).sum();
        let (decoder, parameters) = golden.load(&golden.lora(), &cpu());
        let staging = Staging::plain(0);
        let (a, apart) = staged(&decoder, &parameters, &Likelihood, &small, staging);
        let (b, together) = staged(&decoder, &parameters, &Likelihood, &[joined], staging);
        assert!((a - b).abs() < 1e-6, "{name}: {a} and {b}");
        // Products of other sizes add up in another order, which the gated norm of hybrids shows tenfold and more.
        let limit = if golden.is_hybrid() { 1e-4 } else { 1e-5 };
        assert_same(&name, &parameters, &apart, &together, limit);
    }
}

/// Rows of the golden cut to lengths that are no multiples of anything.
fn rows_of(golden: &Golden) -> Vec<Sample> {
    let whole = golden.batch();
    let width = whole.sequences[0].len;
    let cut = |row: usize, len: usize| Sample {
        ids: whole.ids[row * width..][..len].to_vec(),
        trained: (0..len).map(|t| t > 0 && t % 3 != 1).collect(),
        origin: Origin { source: 0, file: 0, row: row as u64 },
    };
    vec![cut(0, 7), cut(1, width - 3), cut(1, 5), cut(0, 9)]
}

#[test]
fn packed_rows_are_each_row_alone_and_a_layout_that_leaks_is_seen() {
    let mut largest: f32 = 0.0;
    for name in names() {
        let golden = Golden::open(&name);
        let (decoder, parameters) = golden.load(&golden.lora(), &cpu());
        let pass = Pass::plain(&parameters);
        let samples = rows_of(&golden);
        let rows: Vec<&Sample> = samples.iter().collect();
        let tolerance = packing_tolerance(&decoder.spec);
        let packed = Batch::from_rows(&[rows[..2].to_vec(), rows[2..].to_vec()]);
        let seen = packing_difference(&decoder, &pass, &packed, &rows);
        assert_eq!((seen.rows, seen.tokens), (4, packed.trained));
        assert!(seen.largest < tolerance, "{name}: {:e}", seen.largest);
        largest = largest.max(seen.largest);

        // Two rows taken for one; a row that begins too early.
        let mut joined = packed.clone();
        let second = joined.sequences.remove(1);
        joined.sequences[0].len += second.len;
        let mut shifted = packed.clone();
        shifted.sequences[1].len -= 2;
        shifted.sequences[2].start -= 2;
        shifted.sequences[2].len += 2;
        for (leak, what) in [(&joined, "joined"), (&shifted, "shifted")] {
            let seen = packing_difference(&decoder, &pass, leak, &rows);
            assert!(seen.largest > 2.0 * tolerance, "{name}: {what} shows as {:e} only", seen.largest);
        }
    }
    assert!(largest < 1e-4, "{largest:e}");
}

/// What `check` looks at: few blocks, a part of the vocabulary, and what each kind of layer may do wrong.
#[test]
fn a_part_of_a_model_shows_what_the_whole_would() {
    for name in names() {
        let golden = Golden::open(&name);
        let samples = rows_of(&golden).into_iter().map(Ok::<_, std::convert::Infallible>);
        let proof = PackingProof::new(&golden.model, samples, 512).unwrap();
        let seen = proof.run(&golden.lora(), Packing::BestFit, 40, &cpu()).unwrap();
        assert_eq!(seen.rows, 4, "{name}");
        assert!(seen.tokens > 10 && seen.largest < packing_tolerance(&golden.model.spec), "{name}: {seen:?}");
        let part =
            ModelPart { vocabulary: None, blocks: golden.model.spec.alike().iter().map(|kind| kind[0]).collect() };
        let (whole, _) = golden.load(&Training::Nothing, &cpu());
        let (some, parameters) =
            Decoder::load_part(&golden.model, &part, &Training::Nothing, &cpu(), DType::F32).unwrap();
        let pass = Pass::plain(&parameters);
        let batch = golden.batch();
        let context = some.context(&spans(&batch), &batch.positions);
        let logits = |decoder: &Decoder| host(decoder.logits(decoder.hidden(&batch.ids, &context, &pass), &pass));
        assert_eq!(logits(&some), logits(&whole.with_blocks(&part.blocks)), "{name}");
        let few = [3, 1, 2];
        let part = ModelPart { vocabulary: Some(few.to_vec()), ..part };
        let (narrow, _) = Decoder::load_part(&golden.model, &part, &Training::Nothing, &cpu(), DType::F32).unwrap();
        let context = some.context(&[(0, 3)], &[0, 1, 2]);
        let all = host(some.logits(some.hidden(&few, &context, &pass), &pass));
        let own = host(narrow.logits(narrow.hidden(&[0, 1, 2], &context, &pass), &pass));
        let vocabulary = some.spec.vocab_size;
        let expected: Vec<f32> =
            (0..3).flat_map(|t| few.iter().map(move |&id| t * vocabulary + id as usize)).map(|i| all[i]).collect();
        assert!(max_abs(&own, &expected) < 1e-5, "{name}");
    }
}

#[test]
fn generation_with_a_cache_gives_the_logits_of_the_whole_sequence() {
    for name in names() {
        let golden = Golden::open(&name);
        let (decoder, parameters) = golden.load(&golden.lora(), &cpu());
        let pass = Pass::plain(&parameters);
        let row = golden.batch();
        let ids = &row.ids[..row.sequences[0].len];
        let whole = decoder.context(&[(0, ids.len())], &row.positions[..ids.len()]);
        let expected = host(decoder.logits(decoder.hidden(ids, &whole, &pass), &pass));
        let mut cache = Cache::default();
        let mut logits = Vec::new();
        // A prompt of several tokens, then pieces of different sizes.
        for piece in [&ids[..7], &ids[7..8], &ids[8..11], &ids[11..12], &ids[12..]] {
            let context = Context::continuing(&decoder.spec.rope, cache, piece.len(), decoder.device());
            logits.extend(host(decoder.logits(decoder.hidden(piece, &context, &pass), &pass)));
            cache = context.cache.unwrap();
            cache.advance(piece.len());
        }
        let off = max_abs(&logits, &expected);
        assert!(off < 1e-4, "{name}: off by {off:e}");
    }
}

#[test]
fn greedy_generation_takes_the_most_likely_token_each_time() {
    let golden = Golden::open(&names()[0]);
    let (decoder, parameters) = golden.load(&golden.lora(), &cpu());
    let pass = Pass::plain(&parameters);
    let prompt = &golden.batch().ids[..5];
    let sampling = Sampling { max_tokens: 6, ..Sampling::default() };
    let made = generate(&decoder, &pass, prompt, &[], &sampling, |_| true).ids;
    assert_eq!(made.len(), 6);
    let mut ids = prompt.to_vec();
    for id in made {
        let positions: Vec<u32> = (0..ids.len() as u32).collect();
        let context = decoder.context(&[(0, ids.len())], &positions);
        let hidden = decoder.hidden(&ids, &context, &pass);
        let last = host(decoder.logits(hidden.narrow(0, ids.len() - 1, 1), &pass));
        let best = (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
        assert_eq!(id as usize, best);
        ids.push(id);
    }
}

#[test]
fn an_upstream_gradient_is_seeded_exactly() {
    let device = cpu();
    let x =
        Tensor::<2>::random([5, 7], Distribution::Normal(0.0, 1.0), (&device, DType::F32)).autodiff().require_grad();
    let g = Tensor::<2>::random([5, 7], Distribution::Normal(0.0, 1.0), (&device, DType::F32));
    let mut tape = (x.clone() * g.clone()).backward();
    assert_eq!(host(x.grad_remove(&mut tape).unwrap()), host(g));
}

/// Whatever way a checkpoint holds its experts, what is trained of them goes back into the same tensors.
#[test]
fn trained_experts_are_written_back_as_they_were_read() {
    let mut layouts = std::collections::BTreeSet::new();
    for name in names() {
        let golden = Golden::open(&name);
        let experts: Vec<_> = golden.model.inventory.iter().filter(|t| t.role == Role::Experts).collect();
        if experts.is_empty() {
            continue;
        }
        let changed: Vec<(TensorInfo, Vec<f32>)> = experts
            .iter()
            .map(|tensor| {
                let values: Vec<f32> = golden.model.read_f32(tensor).unwrap().iter().map(|v| v * 2.0 + 1.0).collect();
                (TensorInfo::new(tensor.name.clone(), Dtype::F32, tensor.shape.clone()), values)
            })
            .collect();
        let bytes = |(info, values): &(TensorInfo, Vec<f32>)| (info.clone(), encoding::encode(info, values).unwrap());
        let source = MemorySource::new(changed.iter().map(bytes).collect()).unwrap();
        let home = tempfile::tempdir().unwrap();
        let merged = export::merge(&golden.model, Change::Full(&source), &home.path().join("merged")).unwrap();
        let again = ModelDir::open(&merged.path).unwrap();
        let stored = |model: &ModelDir| model.checkpoint.tensors().to_vec();
        assert_eq!(stored(&again), stored(&golden.model), "{name}: names, types and shapes");
        for (info, values) in &changed {
            let tensor = again.inventory.iter().find(|tensor| tensor.name == info.name).unwrap();
            layouts.insert(golden.model.parts(tensor).len() / tensor.shape[0]);
            assert_eq!(&again.read_f32(tensor).unwrap(), values, "{name} {}", info.name);
        }
    }
    assert_eq!(Vec::from_iter(layouts), [0, 1, 2], "fused, one tensor an expert, gate and up apart");
}
