//! A run on several devices is the run on one: here copies on the CPU, which go through the same code.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::tensor::Tensor;
use qwen_tune_data::{
    Batch, BatchPlan, Cursor, Dataset, Encoder, Packing, SourceConfig, StepSize, Stream, TokensConfig,
};
use qwen_tune_kernels::Moment;
use qwen_tune_model::{LoraModule, LoraPlan, Parameters, Training};
use qwen_tune_qwen::memory::Offload;
use qwen_tune_qwen::{ModelDir, inventory};
use qwen_tune_train::{
    AdamW, Ahead, Artefact, BadSteps, Checkpoints, Event, Exchange, Likelihood, Objective, OnBadStep, OptimizerConfig,
    Provenance, Replica, Run, ScheduleConfig, Sink, Step, StopFlag, TrainError, TrainState,
};
use qwen_tune_weights::lock::{Cache, Lock};

use super::cpu;
use crate::golden::{host, relative};

const STEPS: u64 = 6;

/// What is held against another number of devices.
pub(super) struct Outcome {
    pub(super) steps: Vec<Step>,
    /// Steps that were passed over, or ended the run.
    pub(super) bad: Vec<u64>,
    pub(super) end: Result<(), TrainError>,
    /// Step, micro-batch and recomputed blocks after each time that memory ran out.
    retreats: Vec<(u64, usize, usize)>,
    /// At the end.
    micro_batch: usize,
    /// Values and both moments, of every device.
    pub(super) devices: Vec<Vec<Vec<f32>>>,
}

#[derive(Default)]
struct Steps {
    made: Vec<Step>,
    bad: Vec<u64>,
    retreats: Vec<(u64, usize, usize)>,
}

impl Sink for Steps {
    fn event(&mut self, event: &Event) -> io::Result<()> {
        match event {
            Event::Step(step) => self.made.push(step.clone()),
            Event::OutOfMemory { step, micro_batch, recompute, .. } => {
                self.retreats.push((*step, *micro_batch, *recompute));
            }
            Event::BadStep(bad) => self.bad.push(bad.step),
            Event::Warned { message } => panic!("{message}"),
            _ => {}
        }
        Ok(())
    }
}

pub(super) fn lora(model: &ModelDir) -> Training {
    let adapted = model.inventory.iter().filter(|tensor| tensor.layer.is_some() && tensor.matrices().is_some());
    let module = |tensor: &qwen_tune_qwen::TensorSpec| tensor.module.clone();
    let lora = LoraModule { rank: 4, scale: 2.0, values: None };
    let modules = adapted.filter_map(module).map(|module| (module, lora.clone())).collect();
    Training::Lora(LoraPlan { modules, dropout: 0.2, seed: 3, ..LoraPlan::default() })
}

/// Everything but the embedding, which a token that no batch holds would leave without a gradient.
fn full(model: &ModelDir) -> Training {
    let names: BTreeSet<String> = inventory(&model.spec).into_iter().map(|tensor| tensor.name).collect();
    Training::Full(names.into_iter().filter(|name| !name.starts_with("embed_tokens")).collect())
}

fn train(directory: &Path, devices: usize, make: fn(&ModelDir) -> Training, micro_batch: usize, aux: f64) -> Outcome {
    train_for(Box::new(Likelihood), directory, devices, make, micro_batch, aux).unwrap()
}

fn train_for(
    objective: Box<dyn Objective>,
    directory: &Path,
    devices: usize,
    make: fn(&ModelDir) -> Training,
    micro_batch: usize,
    aux: f64,
) -> Result<Outcome, TrainError> {
    let kind = (OnBadStep::Stop, Ahead::OfDevice);
    let mut outcome = run_for(objective, directory, devices, make, micro_batch, aux, kind);
    std::mem::replace(&mut outcome.end, Ok(())).map(|()| outcome)
}

pub(super) fn run_for(
    objective: Box<dyn Objective>,
    directory: &Path,
    devices: usize,
    make: fn(&ModelDir) -> Training,
    micro_batch: usize,
    aux: f64,
    (policy, ahead): (OnBadStep, Ahead),
) -> Outcome {
    let model = ModelDir::open(directory).unwrap();
    let training = make(&model);
    let config = TokensConfig { max_length: 64, ..TokensConfig::default() };
    let encoder = Arc::new(Encoder::from_dir(directory, &config, model.spec.vocab_size).unwrap());
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let rows = SourceConfig::new("datasets/shakespeare_chat.parquet");
    let dataset = Dataset::open(&[rows], encoder, &[root]).unwrap();
    let plan = BatchPlan {
        step: StepSize::Rows(7),
        micro_batch,
        seed: 5,
        shuffle: true,
        packing: Packing::BestFit,
        max_length: 64,
    };
    let home = tempfile::tempdir().unwrap();
    let optimizer_config = OptimizerConfig { learning_rate: 1e-3, ..OptimizerConfig::default() };
    let (decoder, parameters) =
        qwen_tune_model::Decoder::load(&model, &training, &cpu(), burn::tensor::DType::F32).unwrap();
    let optimizer = |parameters: &Parameters| AdamW::new(optimizer_config.clone(), parameters);
    let other =
        |_| Replica { decoder: decoder.clone(), parameters: parameters.clone(), optimizer: optimizer(&parameters) };
    let data = Lock::of(Vec::new(), &Cache::none()).unwrap();
    let mut run = Run {
        decoder: &decoder,
        others: (1..devices).map(other).collect(),
        exchange: Exchange::Host,
        optimizer: optimizer(&parameters),
        parameters: parameters.clone(),
        optimizer_config: optimizer_config.clone(),
        schedule: ScheduleConfig::default(),
        objective,
        router_aux_loss_coef: aux,
        data: Box::new(Stream::start(Arc::new(dataset.clone()), plan, Cursor::default()).unwrap()),
        eval: None,
        eval_every: None,
        early_stop: None,
        checkpoints: Checkpoints::new(home.path(), None, 1, Artefact::Full),
        saved: None,
        bad_steps: BadSteps { policy, spike: None, directory: home.path().join("bad-batches"), dataset },
        ahead,
        recompute: 1,
        offload: Offload::None,
        dropout: matches!(training, Training::Lora(_)),
        state: TrainState::new(5, STEPS, micro_batch, Provenance { recipe: serde_json::Value::Null, base: None, data }),
        stop: StopFlag::default(),
    };
    let mut steps = Steps::default();
    let end = run.execute(&mut steps).map(|_| ()).map_err(|failed| *failed.cause);
    let held = |parameters: &Parameters, optimizer: &AdamW| -> Vec<Vec<f32>> {
        let values = parameters.iter().map(|parameter| host(parameter.value.clone()));
        let moments = optimizer.moments().iter().flatten().map(|moment| match moment {
            Moment::Wide(tensor) => host(tensor.clone()),
            Moment::Codes(_) => unreachable!("the default optimizer's moments are f32"),
        });
        values.chain(moments).collect()
    };
    let first = held(&run.parameters, &run.optimizer);
    let others = run.others.iter().map(|other| held(&other.parameters, &other.optimizer));
    let devices = std::iter::once(first).chain(others).collect();
    let Steps { made, bad, retreats } = steps;
    Outcome { steps: made, bad, end, retreats, micro_batch: run.state.micro_batch, devices }
}

pub(super) fn bits(held: &[Vec<f32>]) -> Vec<Vec<u32>> {
    held.iter().map(|tensor| tensor.iter().map(|value| value.to_bits()).collect()).collect()
}

#[test]
fn several_devices_train_as_one_and_hold_the_same_bits() {
    let datasets = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("datasets");
    for (model, make, micro_batch, aux) in [
        ("tiny-qwen3", lora as fn(&ModelDir) -> Training, 1, 0.0),
        ("tiny-qwen3", full, 2, 0.0),
        ("tiny-qwen3_moe", lora, 1, 0.01),
        ("tiny-qwen3_5", lora, 2, 0.0),
    ] {
        let directory = datasets.join(model);
        let one = train(&directory, 1, make, micro_batch, aux);
        assert_eq!(one.steps.len() as u64, STEPS);
        for devices in [2, 3] {
            let what = format!("{model} on {devices}");
            let many = train(&directory, devices, make, micro_batch, aux);
            assert_eq!(many.devices.len(), devices);
            for other in &many.devices[1..] {
                assert!(bits(other) == bits(&many.devices[0]), "{what}: devices differ");
            }
            for (one, many) in one.steps.iter().zip(&many.steps) {
                let near = |a: f64, b: f64, limit: f64| (a - b).abs() <= limit * a.abs();
                assert!(near(one.loss, many.loss, 1e-6), "{what}: {} and {}", one.loss, many.loss);
                assert!(near(one.grad_norm, many.grad_norm, 5e-6), "{what}: {} and {}", one.grad_norm, many.grad_norm);
                assert_eq!((one.tokens, one.trained_tokens), (many.tokens, many.trained_tokens));
                let aux = |step: &Step| step.experts.as_ref().map(|experts| experts.aux_loss);
                assert_eq!(aux(one).is_some(), model == "tiny-qwen3_moe");
                assert!(near(aux(one).unwrap_or(0.0), aux(many).unwrap_or(0.0), 1e-6), "{what}");
            }
            // Nothing has been updated before the first step's loss: there only the order of a sum could differ, and does not.
            assert_eq!(one.steps[0].loss.to_bits(), many.steps[0].loss.to_bits(), "{what}");
            for (one, many) in one.devices[0].iter().zip(&many.devices[0]) {
                let off = relative(many, one);
                assert!(off < 1e-4, "{what}: a tensor is off by {off:e}");
            }
        }
    }
}

/// The likelihood on a device that has room for so many laid-out rows in a forward, from its third forward on; what it says
/// then is what Burn's read of a CubeCL device says.
struct Cramped {
    rows: usize,
    forwards: AtomicUsize,
}

impl Objective for Cramped {
    fn loss(&self, logp: Tensor<1>, batch: &Batch) -> Tensor<1> {
        Likelihood.loss(logp, batch)
    }

    fn fixed_weights(&self, batch: &Batch) -> Option<Vec<f32>> {
        let forwards = self.forwards.fetch_add(1, Ordering::SeqCst);
        assert!(
            forwards < 2 || batch.rows <= self.rows,
            "Error while reading data: WithContext {{ reason: \"out of device memory allocating 512 bytes\nat alloc\" }}"
        );
        Likelihood.fixed_weights(batch)
    }
}

fn frozen_dropout(model: &ModelDir) -> Training {
    let Training::Lora(plan) = lora(model) else { unreachable!() };
    // Masks belong to the micro-batch.
    Training::Lora(LoraPlan { dropout: 0.0, ..plan })
}

#[test]
fn a_step_that_does_not_fit_is_made_again_with_less_at_a_time_and_gives_the_same() {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("datasets/tiny-qwen3");
    let cramped = |rows: usize| Box::new(Cramped { rows, forwards: AtomicUsize::new(0) });
    let roomy = train(&directory, 1, frozen_dropout, 4, 0.0);
    assert!(roomy.retreats.is_empty());
    for devices in [1, 2] {
        let tight = train_for(cramped(1), &directory, devices, frozen_dropout, 4, 0.0).unwrap();
        let blocks = 1;
        assert_eq!(tight.retreats.iter().map(|(_, rows, _)| *rows).collect::<Vec<_>>(), [2, 1], "{:?}", tight.retreats);
        assert!(tight.retreats.iter().all(|(step, _, recompute)| *step <= 2 && *recompute == blocks));
        assert_eq!(tight.micro_batch, 1);
        for (a, b) in roomy.steps.iter().zip(&tight.steps) {
            assert!((a.loss - b.loss).abs() < 1e-6 * a.loss, "{} and {}", a.loss, b.loss);
            assert_eq!(a.tokens, b.tokens);
        }
        for (a, b) in roomy.devices[0].iter().zip(&tight.devices[0]) {
            assert!(relative(b, a) < 1e-4);
        }
    }
    // Not even one row: every block is run again, and then there is nothing left to try.
    match train_for(cramped(0), &directory, 1, frozen_dropout, 2, 0.0) {
        Err(TrainError::OutOfMemory { step, said }) => {
            assert!(step <= 2 && said == "out of device memory allocating 512 bytes", "{step}: {said}");
        }
        Ok(_) => panic!("it had no room"),
        Err(other) => panic!("{other}"),
    }
}
