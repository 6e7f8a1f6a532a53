//! The update and the norm on a GPU: one kernel a tensor, in place where nothing else holds its memory.

use burn::Tensor;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::reference::taken;
use super::{AdamW, Trained};
use crate::gpu::float::sum;
use crate::gpu::group::{Group, row, row_sum};
use crate::gpu::tensor::{dense, elementwise, empty, float_operand, vector_size};
use crate::gpu::{Cube, Operand};

/// `false`, and nothing is changed, when a tensor is not an f32 one of a GPU.
///
/// Bytes: 16 an element in, 12 out, about 15 operations: bound by memory; 44 million trained numbers (8B, rank 16) are 1.2 GB,
/// 0.3 ms at 4.3 TB/s, beside about as many microseconds of launches as there are tensors, times five.
pub(super) fn adamw(trained: &mut [Trained<'_>], rule: &AdamW) -> bool {
    let ours = |trained: &Trained<'_>| {
        [&*trained.value, trained.gradient, &*trained.first, &*trained.second].into_iter().all(|t| plain(t).is_some())
    };
    if !trained.iter().all(ours) {
        return false;
    }
    for trained in trained {
        update(trained, rule);
    }
    true
}

/// `√Σ g²`; `None` when a tensor is not an f32 one of a GPU. The only wait for the device.
pub(super) fn global_norm(gradients: &[&Tensor<1>]) -> Option<f64> {
    let gradients: Vec<CubeTensor> = gradients.iter().map(|gradient| plain(gradient)).collect::<Option<_>>()?;
    let first = gradients.first()?;
    let sums = empty(first, [gradients.len(), PARTS], DType::F32);
    for (index, gradient) in gradients.iter().enumerate() {
        squares(gradient, &sums, index);
    }
    let sums = Tensor::<2>::from_primitive::<Cube>(sums).into_data().try_to_vec::<f32>();
    let sums = sums.expect("invariant: sums are f32");
    Some(sums.into_iter().map(f64::from).sum::<f64>().sqrt())
}

fn plain(tensor: &Tensor<1>) -> Option<CubeTensor> {
    if tensor.dtype() != DType::F32 || tensor.is_tracked() {
        return None;
    }
    float_operand(tensor).map(|operand| dense(&operand))
}

fn update(trained: &mut Trained<'_>, rule: &AdamW) {
    let gradient = plain(trained.gradient).expect("invariant: checked before the first update");
    let slots = [&mut *trained.value, &mut *trained.first, &mut *trained.second];
    let inputs = slots.map(|slot| {
        let tensor = taken(slot).try_into_primitive::<Cube>().expect("invariant: checked before the first update");
        dense(&Operand::constant(tensor))
    });
    let outputs = inputs.each_ref().map(|input| {
        if input.can_mut() { input.clone() } else { empty(input, input.meta.shape().clone(), DType::F32) }
    });
    let len = gradient.meta.num_elements();
    let vector = vector_size(&gradient, &[DType::F32], &[len]);
    if len > 0 {
        let (count, dim) = elementwise(&gradient, len / vector);
        let [value, first, second] = inputs;
        let [value_out, first_out, second_out] = outputs.clone();
        // SAFETY: the kernel ends beyond the last vector; where an output is its input, a unit reads it before it writes.
        #[expect(unsafe_code, reason = "a launch without checks of every index")]
        unsafe {
            adamw_update::launch_unchecked(
                &gradient.client.clone(),
                count,
                dim,
                vector,
                gradient.into_buffer_arg(),
                value.into_buffer_arg(),
                first.into_buffer_arg(),
                second.into_buffer_arg(),
                value_out.into_buffer_arg(),
                first_out.into_buffer_arg(),
                second_out.into_buffer_arg(),
                len / vector,
                rule.clip as f32,
                rule.beta1 as f32,
                (1.0 - rule.beta1) as f32,
                rule.beta2 as f32,
                (1.0 - rule.beta2) as f32,
                rule.step_size() as f32,
                (1.0 / rule.root_correction()) as f32,
                rule.eps as f32,
                rule.kept(trained.weight_decay) as f32,
            );
        }
    }
    let [value, first, second] = outputs.map(Tensor::<1>::from_primitive::<Cube>);
    (*trained.value, *trained.first, *trained.second) = (value, first, second);
}

#[cube(launch_unchecked)]
fn adamw_update<N: Size>(
    gradient: &[Vector<f32, N>],
    value: &[Vector<f32, N>],
    first: &[Vector<f32, N>],
    second: &[Vector<f32, N>],
    value_out: &mut [Vector<f32, N>],
    first_out: &mut [Vector<f32, N>],
    second_out: &mut [Vector<f32, N>],
    units: usize,
    clip: f32,
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    step_size: f32,
    correction: f32,
    eps: f32,
    kept: f32,
) {
    if ABSOLUTE_POS >= units {
        terminate!();
    }
    let g = gradient[ABSOLUTE_POS] * Vector::new(clip);
    let m = first[ABSOLUTE_POS] * Vector::new(beta1) + g * Vector::new(rest1);
    let v = second[ABSOLUTE_POS] * Vector::new(beta2) + g * g * Vector::new(rest2);
    let denominator = v.sqrt() * Vector::new(correction) + Vector::new(eps);
    value_out[ABSOLUTE_POS] = value[ABSOLUTE_POS] * Vector::new(kept) - m / denominator * Vector::new(step_size);
    first_out[ABSOLUTE_POS] = m;
    second_out[ABSOLUTE_POS] = v;
}

/// Sums that a tensor's squares are added up in.
const PARTS: usize = 16;

/// Writes the sums of a tensor's squares into row `index`.
fn squares(gradient: &CubeTensor, sums: &CubeTensor, index: usize) {
    let len = gradient.meta.num_elements();
    let vector = vector_size(gradient, &[DType::F32], &[len]);
    let group = Group::of(gradient, (len / vector).div_ceil(PARTS));
    let (count, dim) = group.launch(gradient, PARTS);
    // An empty tensor has no memory to name.
    let read = if len == 0 { sums } else { gradient };
    // SAFETY: the kernel reads vectors below `len` and writes the row's `PARTS` sums.
    #[expect(unsafe_code, reason = "a launch without checks of every index")]
    unsafe {
        sum_of_squares::launch_unchecked(
            &gradient.client,
            count,
            dim,
            vector,
            read.clone().into_buffer_arg(),
            sums.clone().into_buffer_arg(),
            len / vector,
            index * PARTS,
            PARTS,
            group,
        );
    }
}

#[cube(launch_unchecked)]
fn sum_of_squares<N: Size>(
    gradient: &[Vector<f32, N>],
    sums: &mut [f32],
    width: usize,
    first: usize,
    #[comptime] parts: usize,
    #[comptime] group: Group,
) {
    let part = row(group);
    let mut total = Vector::<f32, N>::new(0.0f32);
    let step = comptime!(group.units as usize * parts);
    let mut at = part * comptime!(group.units as usize) + UNIT_POS_X as usize;
    let end = select(part < parts, width, 0usize);
    while at < end {
        let value = gradient[at];
        total += value * value;
        at += step;
    }
    let total = row_sum(sum::<N>(total), group);
    if part < parts && UNIT_POS_X == 0u32 {
        sums[first + part] = total;
    }
}
