//! One model on several devices: each holds a replica, that is frozen weights, trained tensors and their moments.
//!
//! A step's micro-batches are laid out as for one device and dealt out; every replica adds up the gradients of its share,
//! the sums are added over all replicas once a step, and each makes the same update with the same norm and clip. So all
//! hold the same bits, only gradients travel, and loss, norm and values are those of one device to rounding (a sum in
//! another order). Sending updated values from one device instead would move as many bytes and leave the others waiting.
//! Dropout masks belong to the micro-batch, whoever runs it.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::panic::resume_unwind;

use burn::tensor::distributed::{ReduceOperation, all_reduce};
use burn::tensor::{Device, Tensor, TensorData};
use qwen_tune_data::Batch;
use qwen_tune_kernels as kernels;
use qwen_tune_model::{Decoder, Parameters, mix};

use crate::backward::{Gradients, Passed, Staging, accumulate};
use crate::objective::Objective;
use crate::optimizer::AdamW;

/// The model on a further device.
pub struct Replica {
    /// Frozen weights there; shared with the first where that is the same device.
    pub decoder: Decoder,
    /// What is trained: the same bits everywhere.
    pub parameters: Parameters,
    /// Its moments: the same bits everywhere.
    pub optimizer: AdamW,
}

/// What is done with every micro-batch of a step.
pub(crate) struct Work<'a> {
    pub(crate) micro_batches: Vec<Batch>,
    /// Of the whole step, as are its trained ones.
    pub(crate) tokens: usize,
    pub(crate) trained: usize,
    pub(crate) objective: &'a dyn Objective,
    pub(crate) router_aux_loss_coef: f64,
    pub(crate) recompute: usize,
    pub(crate) ffn_chunk: Option<usize>,
    /// Key of the step's dropout masks.
    pub(crate) dropout: Option<u64>,
    /// Inputs of blocks that run again wait in host memory.
    pub(crate) inputs_on_host: bool,
}

impl Work<'_> {
    /// Loss of the step's trained tokens, and of each replica the gradients of its share of the step's mean.
    pub(crate) fn run(&self, replicas: &[(&Decoder, &Parameters)]) -> (Passed, Vec<Gradients>) {
        let tokens: Vec<usize> = self.micro_batches.iter().map(|batch| batch.ids.len()).collect();
        let shares = deal(&tokens, replicas.len());
        let (mut passed, mut gradients) = (BTreeMap::new(), Vec::new());
        for (losses, sum) in each(replicas.iter().zip(&shares), |(replica, share)| self.share(*replica, share)) {
            passed.extend(losses);
            gradients.push(sum);
        }
        // In the order of the data, whoever ran what: the loss is that of one device to the bit.
        let mut sum = Passed::default();
        passed.into_values().for_each(|one| sum.add(one));
        (sum, gradients)
    }

    fn share(
        &self,
        (decoder, parameters): (&Decoder, &Parameters),
        share: &[usize],
    ) -> (Vec<(usize, Passed)>, Gradients) {
        let mut gradients = Gradients::default();
        let mut one = |index: usize| {
            let batch = &self.micro_batches[index];
            let part = batch.ids.len() as f64 / self.tokens.max(1) as f64;
            let staging = Staging {
                recompute: self.recompute,
                ffn_chunk: self.ffn_chunk,
                dropout: self.dropout.map(|step| mix(step ^ index as u64)),
                share: part as f32,
                balance: (self.router_aux_loss_coef * part) as f32,
                inputs_on_host: self.inputs_on_host,
            };
            let share = 1.0 / self.trained.max(1) as f32;
            let gradients = &mut gradients;
            let run = || accumulate(decoder, parameters, self.objective, batch, share, staging, gradients);
            (index, kernels::on_pool(run))
        };
        let passed = share.iter().map(|&index| one(index)).collect();
        (passed, gradients)
    }
}

/// `work` on all of `parts`, the first on this thread and each other on one of its own.
fn each<P: Send, R: Send>(parts: impl Iterator<Item = P>, work: impl Fn(P) -> R + Sync) -> Vec<R> {
    let mut parts: Vec<P> = parts.collect();
    if parts.len() == 1 {
        return parts.drain(..).map(work).collect();
    }
    std::thread::scope(|scope| {
        let work = &work;
        let mut parts = parts.into_iter();
        let first = parts.next();
        let others: Vec<_> = parts.map(|part| scope.spawn(move || work(part))).collect();
        let first = first.map(work);
        let others = others.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        first.into_iter().chain(others).collect()
    })
}

/// Which micro-batches each replica runs, in the order of the data: the largest go first to whoever has least.
fn deal(tokens: &[usize], replicas: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..tokens.len()).collect();
    order.sort_by_key(|&index| Reverse(tokens[index]));
    let mut shares = vec![(0, Vec::new()); replicas];
    for index in order {
        let least = shares.iter_mut().min_by_key(|(load, _)| *load).expect("invariant: there is a replica");
        least.0 += tokens[index];
        least.1.push(index);
    }
    shares
        .into_iter()
        .map(|(_, mut share)| {
            share.sort_unstable();
            share
        })
        .collect()
}

/// How gradients are added over replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Exchange {
    /// Read to the host, added there in the order of the replicas, and sent to all: on every device, and for replicas on
    /// one and the same.
    #[default]
    Host,
    /// By the devices among themselves (NCCL), which add in an order of their own but give all the same bits. Its first
    /// sum is held against the host's.
    Collective {
        /// Whether that was done.
        checked: bool,
    },
}

/// Numbers that are exchanged at a time: 64 MiB, so that what is full-sized fits beside the model.
const BUCKET: usize = 16 << 20;
/// Part of the norm by which two orders of summing may differ: far more than rounding, far less than a lost part.
const TOLERANCE: f64 = 1e-4;

impl Exchange {
    /// Gives every replica the sum of all their gradients; says so if devices do not add as they should, in which case the
    /// host does from then on.
    pub(crate) fn sum(&mut self, gradients: &mut [Gradients], devices: &[&Device]) -> Option<String> {
        if devices.len() < 2 {
            return None;
        }
        let mut worst = 0.0f64;
        for bucket in buckets(gradients) {
            let sums = match *self {
                Self::Host => spread(&on_host(&bucket, gradients), devices),
                Self::Collective { checked: true } => collective(&bucket, gradients, devices),
                Self::Collective { checked: false } => {
                    let expected = on_host(&bucket, gradients);
                    let sums = collective(&bucket, gradients, devices);
                    let off = sums.iter().map(|sum| distance(&host(sum.clone()), &expected)).fold(0.0, larger);
                    worst = larger(worst, off);
                    if off <= TOLERANCE { sums } else { spread(&expected, devices) }
                }
            };
            for (gradients, sum) in gradients.iter_mut().zip(sums) {
                let mut start = 0;
                for &(slot, length) in &bucket {
                    gradients.put(slot, sum.clone().narrow(0, start, length));
                    start += length;
                }
            }
        }
        if *self == Self::Host {
            return None;
        }
        *self = if worst <= TOLERANCE { Self::Collective { checked: true } } else { Self::Host };
        (*self == Self::Host).then(|| {
            format!("the devices' own sum of gradients is off by {worst:.1e} of its norm: they are added on the host instead")
        })
    }
}

/// Slots in which any replica has a gradient, with their lengths, so many together as are exchanged at a time.
fn buckets(gradients: &[Gradients]) -> Vec<Vec<(usize, usize)>> {
    let slots: BTreeMap<usize, usize> = gradients.iter().flat_map(Gradients::lengths).collect();
    let mut buckets: Vec<Vec<(usize, usize)>> = Vec::new();
    let mut filled = 0;
    for (slot, length) in slots {
        match buckets.last_mut() {
            Some(bucket) if filled + length <= BUCKET => bucket.push((slot, length)),
            _ => {
                buckets.push(vec![(slot, length)]);
                filled = 0;
            }
        }
        filled += length;
    }
    buckets
}

/// A bucket's sums on the host, one slot after another.
fn on_host(bucket: &[(usize, usize)], gradients: &[Gradients]) -> Vec<f32> {
    let read = each(gradients.iter(), |gradients| {
        let there: Vec<Tensor<1>> = bucket.iter().filter_map(|(slot, _)| gradients.get(*slot).cloned()).collect();
        if there.is_empty() { Vec::new() } else { host(Tensor::cat(there, 0)) }
    });
    let mut sums = vec![0.0; bucket.iter().map(|(_, length)| length).sum()];
    for (gradients, values) in gradients.iter().zip(&read) {
        let (mut values, mut start) = (&values[..], 0);
        for &(slot, length) in bucket {
            if gradients.get(slot).is_some() {
                let (own, rest) = values.split_at(length);
                sums[start..start + length].iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
                values = rest;
            }
            start += length;
        }
    }
    sums
}

fn spread(sums: &[f32], devices: &[&Device]) -> Vec<Tensor<1>> {
    let tensor = |device: &&Device| Tensor::from_data(TensorData::new(sums.to_vec(), [sums.len()]), *device);
    devices.iter().map(tensor).collect()
}

/// A bucket's sums by the devices themselves.
fn collective(bucket: &[(usize, usize)], gradients: &[Gradients], devices: &[&Device]) -> Vec<Tensor<1>> {
    let all: Vec<Device> = devices.iter().map(|&device| device.clone()).collect();
    // All at once: a device waits for the others.
    each(gradients.iter().zip(devices), |(gradients, device)| {
        let part = |&(slot, length): &(usize, usize)| {
            gradients.get(slot).cloned().unwrap_or_else(|| Tensor::zeros([length], *device))
        };
        let flat = Tensor::cat(bucket.iter().map(part).collect(), 0);
        all_reduce(flat, ReduceOperation::Sum, all.clone()).resolve()
    })
}

fn host(tensor: Tensor<1>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().try_to_vec().expect("invariant: converted to f32")
}

/// `‖found - expected‖ / ‖expected‖`; 0 where both are nothing or no numbers, which the step's norm sees to.
fn distance(found: &[f32], expected: &[f32]) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let norm = square(&mut expected.iter().map(|&e| f64::from(e)));
    let difference = square(&mut found.iter().zip(expected).map(|(f, e)| f64::from(*f) - f64::from(*e)));
    if norm == 0.0 || !norm.is_finite() { 0.0 } else { difference / norm }
}

/// What is no number is larger than any.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    use super::*;

    #[test]
    fn shares_are_even_whole_and_in_the_order_of_the_data() {
        assert_eq!(deal(&[5, 5, 5, 5], 2), [vec![0, 2], vec![1, 3]]);
        assert_eq!(deal(&[1, 9, 3, 4, 2], 2), [vec![0, 1], vec![2, 3, 4]]);
        assert_eq!(deal(&[7], 3), [vec![0], vec![], vec![]]);
        assert_eq!(deal(&[3, 1, 2], 1), [vec![0, 1, 2]]);
        assert_eq!(deal(&[], 2), [Vec::<usize>::new(), vec![]]);
    }

    #[test]
    fn every_replica_gets_the_sum_of_all_and_what_only_one_has() {
        let device = crate::device::open("cpu", Default::default()).expect("a CPU is always there").device;
        let tensor = |values: &[f32]| Tensor::<1>::from_data(values, &device);
        let mut gradients = [Gradients::default(), Gradients::default(), Gradients::default()];
        gradients[0].add(0, tensor(&[1.0, 2.0]));
        gradients[0].add(4, tensor(&[0.5]));
        gradients[1].add(0, tensor(&[10.0, f32::NAN]));
        gradients[1].add(2, tensor(&[-3.0, 1.0, 4.0]));
        let mut exchange = Exchange::default();
        assert_eq!(exchange.sum(&mut gradients, &[&device; 3]), None);
        for gradients in &gradients {
            let of = |slot| gradients.get(slot).map(|gradient| host(gradient.clone()));
            let first = of(0).unwrap_or_default();
            assert!(first[0] == 11.0 && first[1].is_nan(), "{first:?}");
            assert_eq!((of(2), of(4), of(1)), (Some(vec![-3.0, 1.0, 4.0]), Some(vec![0.5]), None));
            assert!(gradients.norm().is_nan());
        }
    }

    #[test]
    fn buckets_hold_every_slot_once() {
        let device = crate::device::open("cpu", Default::default()).expect("a CPU is always there").device;
        let mut gradients = Gradients::default();
        for (slot, length) in [(0, BUCKET - 1), (1, 1), (2, 1), (5, 3)] {
            gradients.add(slot, Tensor::zeros([length], &device));
        }
        let buckets = buckets(&[gradients]);
        assert_eq!(buckets, [vec![(0, BUCKET - 1), (1, 1)], vec![(2, 1), (5, 3)]]);
    }
}
