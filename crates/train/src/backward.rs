//! Staged backward: gradients of a whole micro-batch with one block's tape at a time.
//!
//! The forward keeps one input per block. The head turns the last hidden states into token log-probabilities and the
//! gradient of the loss, chunk by chunk. Then the blocks run in reverse, each on a small tape of its own seeded with the
//! gradient from above by [`kernels::seed`]. A block either kept its
//! tape from the forward or is run again; one forward function serves both, and dropout masks are functions of the step
//! and the module, so both see the same ones.

mod block;

use std::collections::BTreeMap;

use burn::tensor::{DType, Tensor, TensorData};
use qwen_tune_data::Batch;
use qwen_tune_kernels::{self as kernels, HostCopy};
use qwen_tune_model::{Context, Decoder, Parameters, Pass, Routing, Spread};

use self::block::{Sweep, Taped, input_leaf};
use crate::balance::{Auxiliary, Balance};
use crate::loss::Loss;
use crate::objective::Objective;

/// Gradients by slot of [`Parameters`], flat f32; absent where nothing flowed.
#[derive(Debug, Default)]
pub struct Gradients {
    slots: BTreeMap<usize, Tensor<1>>,
}

impl Gradients {
    /// The gradient of a slot.
    #[must_use]
    pub fn get(&self, slot: usize) -> Option<&Tensor<1>> {
        self.slots.get(&slot)
    }

    /// Adds to a slot, in f32: a tensor held in bf16 has its gradients in bf16, of which a sum would lose the small ones.
    pub fn add(&mut self, slot: usize, gradient: Tensor<1>) {
        self.add_all(vec![(slot, gradient)]);
    }

    /// Adds to several slots at once.
    fn add_all(&mut self, gradients: Vec<(usize, Tensor<1>)>) {
        let (mut slots, mut sums, mut more) = (Vec::new(), Vec::new(), Vec::new());
        for (slot, gradient) in gradients {
            let gradient = if gradient.dtype() == DType::F32 { gradient } else { gradient.cast(DType::F32) };
            match self.slots.remove(&slot) {
                Some(sum) => {
                    slots.push(slot);
                    sums.push(sum);
                    more.push(gradient);
                }
                None => {
                    self.slots.insert(slot, gradient);
                }
            }
        }
        self.slots.extend(slots.into_iter().zip(kernels::accumulate(sums, more)));
    }

    /// Puts a slot's gradient in the place of what was there.
    pub(crate) fn put(&mut self, slot: usize, gradient: Tensor<1>) {
        self.slots.insert(slot, gradient);
    }

    /// Slots that have a gradient, with its length.
    pub(crate) fn lengths(&self) -> impl Iterator<Item = (usize, usize)> {
        self.slots.iter().map(|(&slot, gradient)| (slot, gradient.dims()[0]))
    }

    fn add_leaves(&mut self, leaves: BTreeMap<usize, Tensor<1>>, tape: &mut burn::tensor::Gradients) {
        let gradient = |(slot, leaf): (usize, Tensor<1>)| leaf.grad_remove(tape).map(|gradient| (slot, gradient));
        self.add_all(leaves.into_iter().filter_map(gradient).collect());
    }

    /// `√Σ g²` over all slots; waits for it.
    #[must_use]
    pub fn norm(&self) -> f64 {
        self.norm_beside(&[]).value()
    }

    /// The same where it is computed, beside what else must be finite for an update.
    pub(crate) fn norm_beside(&self, witnesses: &[Tensor<1>]) -> kernels::Norm {
        kernels::Norm::of(&self.slots.values().collect::<Vec<_>>(), &witnesses.iter().collect::<Vec<_>>())
    }
}

/// How one micro-batch is run.
#[derive(Debug, Clone, Copy)]
pub struct Staging {
    /// This many of the lowest blocks are run again in the backward; the others keep their tapes.
    pub recompute: usize,
    /// Tokens that go through the feed-forward part of such a block together, at most; `None` takes all.
    pub ffn_chunk: Option<usize>,
    /// Key of this micro-batch's dropout masks.
    pub dropout: Option<u64>,
    /// This micro-batch's share of the step's tokens, for the load-balancing loss.
    pub share: f32,
    /// Factor of that loss in this micro-batch: the recipe's coefficient times the share.
    pub balance: f32,
    /// Inputs of blocks that run again wait in host memory.
    pub inputs_on_host: bool,
}

impl Staging {
    /// Everything in one micro-batch, on its device, without dropout or a load-balancing loss.
    #[must_use]
    pub fn plain(recompute: usize) -> Self {
        Self { recompute, ffn_chunk: None, dropout: None, share: 1.0, balance: 0.0, inputs_on_host: false }
    }
}

/// What the forward of a micro-batch said.
#[derive(Debug, Default)]
pub struct Passed {
    /// The objective's loss summed over the trained tokens, unscaled and without the load-balancing loss.
    pub loss: Loss,
    /// Numbers that are finite where the loss is, on the device; nothing where the host knows the loss.
    pub(crate) witnesses: Vec<Tensor<1>>,
    /// How tokens were spread over experts; nothing where there are none.
    pub balance: Balance,
}

impl Passed {
    /// Adds another micro-batch of the same step.
    pub(crate) fn add(&mut self, other: Self) {
        self.loss.add(other.loss);
        self.witnesses.extend(other.witnesses);
        self.balance.add(&other.balance);
    }
}

#[expect(clippy::large_enum_variant, reason = "one a block, for the length of a step")]
enum Kept<'a> {
    /// Below everything trained: nothing to do in the backward.
    Nothing,
    /// Run again from this input.
    Input(Tensor<2>),
    /// The same, once it is brought back.
    Away(HostCopy<2>),
    /// The tape itself.
    Tape(Taped<'a>),
}

/// Adds the gradients of `batch` to `gradients`.
///
/// `share` multiplies every token's loss: one over the trained tokens of the whole step, so that micro-batches add up to
/// the mean over the step. The load-balancing loss is pooled over the layers and tokens of this batch, as transformers has
/// it: its gradient needs the choices of all layers, but nothing else of them, so it enters each block's own tape.
pub fn accumulate(
    decoder: &Decoder,
    parameters: &Parameters,
    objective: &dyn Objective,
    batch: &Batch,
    share: f32,
    staging: Staging,
    gradients: &mut Gradients,
) -> Passed {
    let sequences: Vec<(usize, usize)> = batch.sequences.iter().map(|s| (s.start, s.len)).collect();
    let context = decoder.context(&sequences, &batch.positions);
    let trains_embedding = decoder.embedding().is_trained();

    // Embedding. Its gradient needs no tape, only dx of the lowest block.
    let mut x = decoder.embed(&batch.ids, &Pass::plain(parameters));

    // Forward through the blocks.
    let mut kept = Vec::with_capacity(decoder.blocks().len());
    let mut spreads = Vec::new();
    let mut tracked = trains_embedding;
    for (index, block) in decoder.blocks().iter().enumerate() {
        let trains = tracked || block.is_trained();
        let (next, keep) = if !trains {
            let pass = Pass::plain(parameters).in_chunks(staging.ffn_chunk).observed();
            let y = block.forward(x, &context, &pass);
            spreads.extend(Spread::of(&pass.routing()));
            (y, Kept::Nothing)
        } else if index < staging.recompute {
            let pass = Pass::untaped(parameters, staging.dropout).in_chunks(staging.ffn_chunk).observed();
            let y = block.forward(x.clone(), &context, &pass);
            spreads.extend(Spread::of(&pass.routing()));
            (y, if staging.inputs_on_host { Kept::Away(HostCopy::of(x)) } else { Kept::Input(x) })
        } else {
            let pass = Pass::taped(parameters, staging.dropout).observed();
            let leaf = input_leaf(x, tracked);
            let y = block.forward(leaf.clone(), &context, &pass);
            let routing = pass.routing();
            spreads.extend(Spread::of(&routing));
            (y.clone().inner(), Kept::Tape(Taped { leaf, y, pass, routing }))
        };
        tracked = trains;
        x = next;
        kept.push(keep);
    }

    // Final norm and head: value and gradient in one pass where the objective's gradient is known beforehand.
    let pass = Pass::taped(parameters, None);
    let leaf = input_leaf(x, true);
    let h = decoder.finish(leaf.clone(), &pass);
    let head_pass = Pass::taped(parameters, None);
    let head = head_pass.matrix(decoder.head());
    let (known, weights) = match objective.fixed_weights(batch) {
        Some(weights) => (None, weights),
        None => {
            let logp = kernels::token_logp(h.clone().inner(), head.clone().inner(), &batch.targets);
            let logp = logp.autodiff().require_grad();
            let loss = objective.loss(logp.clone(), batch);
            let mut tape = loss.backward();
            let upstream = logp.grad_remove(&mut tape).expect("invariant: an objective depends on log-probabilities");
            (Some(scalar(loss.inner())), host(upstream.neg()))
        }
    };
    let scaled: Vec<f32> = weights.iter().map(|w| w * share).collect();
    let out = kernels::head_loss(h.clone().inner(), head, &batch.targets, &scaled);
    let (loss, witnesses) = match known {
        Some(nats) => (Loss::known(nats), Vec::new()),
        // Nothing waits for it: the device has the whole backward before it.
        None => (Loss::weighted(HostCopy::of(out.logp.clone()), weights), vec![out.logp]),
    };
    if let (Some(dhead), Some(slot)) = (out.dhead, decoder.head().slot()) {
        let elements = dhead.shape().num_elements();
        gradients.add(slot, dhead.reshape([elements]));
    }
    let mut tape = kernels::seed(h, out.dh).backward();
    let mut upstream = leaf.grad_remove(&mut tape).expect("invariant: the final norm depends on its input");
    gradients.add_leaves(pass.into_leaves(), &mut tape);
    drop((leaf, tape));

    // Blocks in reverse.
    let passed = Passed { loss, witnesses, balance: Balance::of(&spreads, f64::from(staging.share)) };
    let slope = Auxiliary::of(&spreads).filter(|_| staging.balance > 0.0).map(|auxiliary| {
        let slope: Vec<f32> = auxiliary.slope.iter().map(|slope| slope * staging.balance).collect();
        let experts = slope.len();
        Tensor::<2>::from_data(TensorData::new(slope, [1, experts]), decoder.device())
    });
    let sweep = Sweep { parameters, context: &context, staging, slope };
    bring_last(&mut kept);
    while let Some(keep) = kept.pop() {
        let block = &decoder.blocks()[kept.len()];
        let below = match keep {
            Kept::Nothing => return passed,
            Kept::Tape(taped) => sweep.of_tape(taped, upstream, gradients),
            Kept::Away(_) => unreachable!("invariant: it was brought while the block above ran"),
            Kept::Input(x) => sweep.again(block, x, upstream, gradients),
        };
        block.give_back();
        // The device is busy with this block for as long as that takes.
        bring_last(&mut kept);
        match below {
            Some(gradient) => upstream = gradient,
            None => return passed,
        }
    }
    if let Some(slot) = decoder.embedding().slot() {
        gradients.add(slot, decoder.embedding_gradient(&batch.ids, upstream));
    }
    passed
}

/// The same gradients by one tape through the whole model: the reference that [`accumulate`] is tested against.
pub fn accumulate_whole_tape(
    decoder: &Decoder,
    parameters: &Parameters,
    objective: &dyn Objective,
    batch: &Batch,
    share: f32,
    staging: Staging,
    gradients: &mut Gradients,
) -> f64 {
    let sequences: Vec<(usize, usize)> = batch.sequences.iter().map(|s| (s.start, s.len)).collect();
    let context: Context = decoder.context(&sequences, &batch.positions);
    let pass = Pass::taped(parameters, staging.dropout).observed();
    let hidden = decoder.hidden(&batch.ids, &context, &pass);
    let logp = kernels::token_logp(hidden, pass.matrix(decoder.head()), &batch.targets);
    let loss = objective.loss(logp, batch);
    let mut total = loss.clone().mul_scalar(share);
    if staging.balance > 0.0
        && let Some(auxiliary) = pooled_auxiliary(&pass.routing())
    {
        total = total + auxiliary.mul_scalar(staging.balance);
    }
    let mut tape = total.backward();
    gradients.add_leaves(pass.into_leaves(), &mut tape);
    scalar(loss.inner())
}

/// The load-balancing loss as plain tensor operations.
fn pooled_auxiliary(routings: &[Routing]) -> Option<Tensor<1>> {
    let experts = routings.first()?.spread.rows.len();
    let places: usize = routings.iter().map(|routing| routing.spread.tokens).sum();
    let all = Tensor::cat(routings.iter().map(|routing| routing.probabilities.clone()).collect(), 0);
    let chosen: Vec<f32> = (0..experts).map(|e| routings.iter().map(|r| r.spread.rows[e] as f32).sum()).collect();
    let chosen = Tensor::<1>::from_data(TensorData::new(chosen, [experts]), &all.device());
    let mean: Tensor<1> = all.mean_dim(0).reshape([experts]);
    Some((mean * chosen.div_scalar(places as f32)).sum().mul_scalar(experts as f32))
}

/// Puts the input of the block that runs next back on the device, where it waits elsewhere.
fn bring_last(kept: &mut [Kept<'_>]) {
    if let Some(last @ Kept::Away(_)) = kept.last_mut()
        && let Kept::Away(copy) = std::mem::replace(last, Kept::Nothing)
    {
        *last = Kept::Input(copy.bring());
    }
}

fn scalar(x: Tensor<1>) -> f64 {
    f64::from(x.into_scalar::<f32>())
}

fn host(x: Tensor<1>) -> Vec<f32> {
    x.into_data().convert::<f32>().try_to_vec().expect("invariant: converted to f32")
}
