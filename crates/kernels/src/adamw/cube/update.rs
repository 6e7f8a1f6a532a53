//! The update on a GPU, in place where nothing else holds a tensor's memory.

use burn::Tensor;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::super::norm::CLIP_EPS;
use super::super::{AdamW, Trained};
use super::Total;
use crate::gpu::many::{Launch, ends, launches, plain};
use crate::gpu::tensor::{dense, elementwise};
use crate::gpu::{Cube, Operand};

/// Most tensors a launch.
const TOGETHER: usize = 32;

/// What gradients are multiplied by.
#[derive(Clone, Copy)]
pub(in super::super) enum Clip<'a> {
    /// The rule's own factor.
    Rule,
    /// So that their norm is at most this much. Where the norm or a witness is no finite number, nothing is updated.
    To(&'a Total, f64),
}

/// Gradient, value, first and second moment.
struct One {
    tensors: [CubeTensor; 4],
    kept: f32,
    elements: usize,
}

/// `false`, and nothing is changed, when a tensor is not an f32 one of a GPU.
///
/// Bytes: 16 an element in, 12 out, about 15 operations: bound by memory; 44 million trained numbers (8B, rank 16) are 1.2 GB,
/// 0.3 ms at 4.3 TB/s.
pub(in super::super) fn adamw(trained: &mut [Trained<'_>], rule: &AdamW, clip: Clip<'_>) -> bool {
    let ours = |trained: &Trained<'_>| {
        [&*trained.value, trained.gradient, &*trained.first, &*trained.second].into_iter().all(|t| plain(t).is_some())
    };
    if !trained.iter().all(ours) {
        return false;
    }
    let Some(nothing) = trained.first().map(|first| Tensor::empty([0], &first.value.device())) else { return true };
    let all: Vec<One> = trained.iter_mut().map(|trained| one(trained, rule, &nothing)).collect();
    if let Some(first) = all.first() {
        let lengths: Vec<usize> = all.iter().map(|one| one.elements).collect();
        for launch in launches(&first.tensors[0], &lengths, TOGETHER, 4, 1) {
            update(&all, &launch, &ends(&launch, &lengths), rule, clip);
        }
    }
    for (trained, One { tensors: [_, tensors @ ..], .. }) in trained.iter_mut().zip(all) {
        let [value, first, second] = tensors.map(Tensor::<1>::from_primitive::<Cube>);
        (*trained.value, *trained.first, *trained.second) = (value, first, second);
    }
    true
}

/// Takes the tensors out of their slots, in which `nothing` stays; what others share is copied first.
fn one(trained: &mut Trained<'_>, rule: &AdamW, nothing: &Tensor<1>) -> One {
    let gradient = plain(trained.gradient).expect("invariant: checked before the first update");
    let elements = gradient.meta.num_elements();
    let [value, first, second] = [&mut *trained.value, &mut *trained.first, &mut *trained.second].map(|slot| {
        let tensor = std::mem::replace(slot, nothing.clone()).try_into_primitive::<Cube>();
        let tensor = tensor.expect("invariant: checked before the first update");
        let tensor = dense(&Operand::constant(tensor));
        if tensor.can_mut() || elements == 0 { tensor } else { tensor.copy() }
    });
    One { tensors: [gradient, value, first, second], kept: rule.kept(trained.weight_decay) as f32, elements }
}

fn update(all: &[One], launch: &Launch, ends: &[usize], rule: &AdamW, clip: Clip<'_>) {
    let like = &all[0].tensors[0];
    let these = || launch.tensors.iter().map(|&at| &all[at]);
    let (cubes, dim) = elementwise(like, ends.last().copied().unwrap_or(0));
    let buffers = |which: usize| these().map(|one| one.tensors[which].clone().into_buffer_arg()).collect();
    let (norm, most) = match clip {
        Clip::Rule => (like.clone(), 0.0),
        Clip::To(total, most) => (total.buffer(), most),
    };
    // SAFETY: the kernel ends beyond the last vector; a unit reads each of its places before it writes it.
    #[expect(unsafe_code, reason = "a launch without checks of every index")]
    unsafe {
        adamw_updates::launch_unchecked(
            &like.client,
            cubes,
            dim,
            launch.vector,
            buffers(0),
            buffers(1),
            buffers(2),
            buffers(3),
            norm.into_buffer_arg(),
            ends.iter().copied().collect(),
            these().map(|one| one.kept).collect(),
            rule.clip as f32,
            most as f32,
            CLIP_EPS as f32,
            rule.beta1 as f32,
            (1.0 - rule.beta1) as f32,
            rule.beta2 as f32,
            (1.0 - rule.beta2) as f32,
            rule.step_size() as f32,
            (1.0 / rule.root_correction()) as f32,
            rule.eps as f32,
            matches!(clip, Clip::To(..)),
        );
    }
}

/// Whether a number is finite, by its bits: a compiler may take it for granted that every number is.
#[cube]
fn finite(x: f32) -> bool {
    u32::reinterpret(x) & 0x7f80_0000u32 != 0x7f80_0000u32
}

#[cube(launch_unchecked)]
fn adamw_updates<N: Size>(
    gradients: &Sequence<Box<[Vector<f32, N>]>>,
    values: &mut Sequence<Box<[Vector<f32, N>]>>,
    firsts: &mut Sequence<Box<[Vector<f32, N>]>>,
    seconds: &mut Sequence<Box<[Vector<f32, N>]>>,
    norm: &[f32],
    ends: &Sequence<usize>,
    kept: &Sequence<f32>,
    clip: f32,
    most: f32,
    clip_eps: f32,
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    step_size: f32,
    correction: f32,
    eps: f32,
    #[comptime] to_norm: bool,
) {
    let mut factor = clip;
    if comptime!(to_norm) {
        let norm_here = norm[0];
        if !finite(norm_here) || !finite(norm[1]) {
            terminate!();
        }
        factor = select(most > 0.0f32 && norm_here > most, most / (norm_here + clip_eps), 1.0f32);
    }
    let mut start = 0usize.runtime();
    #[unroll]
    for index in 0..gradients.len() {
        let end = ends[index];
        if ABSOLUTE_POS >= start && ABSOLUTE_POS < end {
            let at = ABSOLUTE_POS - start;
            let value = values.index_mut(index);
            let first = firsts.index_mut(index);
            let second = seconds.index_mut(index);
            let g = gradients[index][at] * Vector::new(factor);
            let m = first[at] * Vector::new(beta1) + g * Vector::new(rest1);
            let v = second[at] * Vector::new(beta2) + g * g * Vector::new(rest2);
            let denominator = v.sqrt() * Vector::new(correction) + Vector::new(eps);
            value[at] = value[at] * Vector::new(kept[index]) - m / denominator * Vector::new(step_size);
            first[at] = m;
            second[at] = v;
        }
        start = end;
    }
}
