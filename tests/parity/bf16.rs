//! bf16 against f32: no farther from it than transformers and PEFT are in bf16 (`scripts/make_bf16_goldens.py`, which says how
//! theirs were taken).
//!
//! Two roundings of one model lie at independent distances from it, and on tiny models the distance itself is a matter of
//! luck: the gated norm of a hybrid divides by next to nothing, and a router may by a hair choose another expert, which
//! changes a token's gradient altogether. Chosen experts are therefore left as each computation chooses them, changed
//! choices are counted and compared, and so many batches are taken that a few of them do not decide: losses by their root
//! mean square, gradients by their median. What is left of luck is a factor of [`ONE_CASE`] for a case; over all cases
//! luck averages out, to [`ALL_CASES`].

use std::collections::BTreeMap;

use burn::tensor::DType;
use qwen_tune_data::Batch;
use qwen_tune_model::{Decoder, Parameters, Pass, Training};
use qwen_tune_qwen::FfnSpec;
use serde::Deserialize;

use super::{gradients_of, ten_steps_of};
use crate::golden::{Golden, host, names, relative, spans};

/// Largest ratio of our distance to theirs for a case.
const ONE_CASE: f64 = 2.0;
/// Largest geometric mean of the ratios of all cases. (It is 0.7 to 0.8 with every instruction set: our operations round
/// their results once, torch's often on the way too.)
const ALL_CASES: f64 = 1.0;
/// Less than this of a gradient's size is no bf16: its numbers have eight bits.
const BF16_AT_ALL: f64 = 1e-3;

/// What `bf16.json` has of a case.
#[derive(Deserialize)]
struct Theirs {
    loss: Vec<f64>,
    gradient: Vec<f64>,
    routes: usize,
    routed: usize,
    curve: Vec<f64>,
    #[serde(default)]
    full_curve: Vec<f64>,
}

/// Added to tokens and labels from batch to batch.
const SHIFT: usize = 7;

fn cases() -> Vec<(Golden, Theirs)> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/bf16.json");
    let cases: BTreeMap<String, Theirs> = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    assert!(cases.keys().eq(&names()), "bf16.json has other cases than there are");
    cases.into_iter().map(|(name, theirs)| (Golden::open(&name), theirs)).collect()
}

type Model = (Decoder, Parameters);

fn load(golden: &Golden, dtype: DType, training: &Training) -> Model {
    // What is held against f32 may be asked of another device; f32 itself is the CPU's.
    let asked = super::test_device().filter(|_| dtype == DType::BF16).map(|(_, device)| device);
    let cpu = || qwen_tune_train::device::open("cpu", Default::default()).unwrap().device;
    golden.load_as(dtype, training, &asked.unwrap_or_else(cpu))
}

/// Loss, and gradients of all adapters as one vector.
fn step((decoder, parameters): &Model, batch: &Batch) -> (f64, Vec<f32>) {
    let (loss, gradients) = gradients_of(decoder, parameters, batch, 0);
    (loss, (0..parameters.len()).flat_map(|slot| host(gradients.get(slot).unwrap().clone())).collect())
}

/// For each token of each sparse layer, the experts it goes to.
fn routes((decoder, parameters): &Model, batch: &Batch) -> Vec<Vec<usize>> {
    let context = decoder.context(&spans(batch), &batch.positions);
    let pass = Pass::plain(parameters);
    let mut x = decoder.embed(&batch.ids, &pass);
    let mut routes = Vec::new();
    for (block, spec) in decoder.blocks().iter().zip(&decoder.spec.layers) {
        if let FfnSpec::Sparse(sparse) = &spec.ffn {
            for scores in host(block.router_logits(x.clone(), &context, &pass).unwrap()).chunks_exact(sparse.experts) {
                let mut order: Vec<usize> = (0..sparse.experts).collect();
                order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
                order.truncate(sparse.active);
                order.sort_unstable();
                routes.push(order);
            }
        }
        x = block.forward(x, &context, &pass);
    }
    routes
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    f64::midpoint(values[half], values[values.len() - 1 - half])
}

/// Root mean square.
fn rms(values: impl IntoIterator<Item = f64>) -> f64 {
    let squares: Vec<f64> = values.into_iter().map(|value| value * value).collect();
    (squares.iter().sum::<f64>() / squares.len() as f64).sqrt()
}

/// Our distances to theirs, case by case.
#[derive(Default)]
struct Ratios(Vec<f64>);

impl Ratios {
    #[track_caller]
    fn push(&mut self, case: &str, ours: f64, theirs: f64) {
        let ratio = ours / theirs;
        assert!(ratio < ONE_CASE, "{case}: {ours:.3e} from f32, torch {theirs:.3e}");
        self.0.push(ratio);
    }

    #[track_caller]
    fn check(&self) {
        let mean = (self.0.iter().map(|ratio| ratio.ln()).sum::<f64>() / self.0.len() as f64).exp();
        assert!(mean < ALL_CASES, "{mean:.3} of torch's distances in the mean");
    }
}

#[test]
fn losses_and_gradients_are_as_near_to_f32_as_those_of_torch() {
    let (mut losses, mut gradients) = (Ratios::default(), Ratios::default());
    let (mut our_routes, mut their_routes) = (0, 0);
    for (golden, theirs) in cases() {
        let name = &golden.name;
        let [plain, rounded] = [DType::F32, DType::BF16].map(|dtype| load(&golden, dtype, &golden.lora()));
        let (mut off, mut distances) = (Vec::new(), Vec::new());
        for index in 0..theirs.loss.len() {
            let batch = golden.shifted_batch(index * SHIFT);
            let ((loss, gradient), (exact_loss, exact_gradient)) = (step(&rounded, &batch), step(&plain, &batch));
            off.push(loss - exact_loss);
            distances.push(relative(&gradient, &exact_gradient));
            let (ours, exact) = (routes(&rounded, &batch), routes(&plain, &batch));
            assert_eq!((ours.len(), exact.len()), (theirs.routed, theirs.routed), "{name}");
            our_routes += ours.iter().zip(&exact).filter(|(a, b)| a != b).count();
        }
        their_routes += theirs.routes;
        assert!(distances.iter().all(|distance| *distance > BF16_AT_ALL), "{name}: {distances:?}");
        losses.push(name, rms(off), rms(theirs.loss));
        gradients.push(name, median(distances), median(theirs.gradient));
    }
    losses.check();
    gradients.check();
    let limit = ALL_CASES * their_routes as f64;
    assert!(
        0 < our_routes && our_routes as f64 <= limit,
        "{our_routes} choices of experts changed, {their_routes} of torch's"
    );
}

/// Our curve in bf16 from our curve in f32, which another test holds to torch's.
fn curve(golden: &Golden, training: &Training, batch: &Batch) -> f64 {
    let [exact, ours] = [DType::F32, DType::BF16].map(|dtype| ten_steps_of(load(golden, dtype, training), batch).0);
    // It learns: rounding takes little of what the steps gain. One loss of a hybrid may jump, in f32 too.
    let gained = |losses: &[f64]| losses[0] - losses[5..].iter().sum::<f64>() / 5.0;
    assert!(gained(&ours) > 0.75 * gained(&exact), "{}: {ours:?} for {exact:?}", golden.name);
    rms(ours.iter().zip(&exact).map(|(a, b)| a - b))
}

#[test]
fn ten_steps_of_adamw_stay_as_near_to_f32_as_those_of_torch() {
    let mut ratios = Ratios::default();
    for (golden, theirs) in cases() {
        let ours = (0..theirs.curve.len()).map(|s| curve(&golden, &golden.lora(), &golden.shifted_batch(s * SHIFT)));
        ratios.push(&golden.name, rms(ours), rms(theirs.curve.iter().copied()));
    }
    ratios.check();
}

#[test]
fn full_fine_tuning_stays_as_near_to_f32_as_that_of_torch() {
    let mut ratios = Ratios::default();
    for (golden, theirs) in cases() {
        assert_eq!(golden.has("full_losses"), !theirs.full_curve.is_empty(), "{}", golden.name);
        if golden.has("full_losses") {
            let batches = (0..theirs.full_curve.len()).map(|s| golden.shifted_batch(s * SHIFT));
            let ours = batches.map(|batch| curve(&golden, &golden.full(), &batch));
            ratios.push(&golden.name, rms(ours), rms(theirs.full_curve.iter().copied()));
        }
    }
    ratios.check();
}
