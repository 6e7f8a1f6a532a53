//! What lies between the products of chunks.

use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::CHUNK;
use crate::gpu::tensor::{elem, elementwise, vector_size};

/// See [`super::slots::Slots::gather`]; `heads` of the output, heads of it that one of the input serves, their size.
pub(super) fn chunked(x: &CubeTensor, tokens: &CubeTensor, out: &CubeTensor, [heads, group, size]: [usize; 3]) {
    let vector = vector_size(x, &[x.dtype], &[size]);
    let units = out.meta.num_elements() / vector;
    let (count, dim) = elementwise(x, units);
    // SAFETY: the kernel ends beyond `units` vectors, and reads tokens that the input has.
    #[expect(unsafe_code, reason = "a launch without checks of every index")]
    unsafe {
        gather::launch_unchecked(
            &x.client,
            count,
            dim,
            vector,
            x.clone().into_buffer_arg(),
            tokens.clone().into_buffer_arg(),
            out.clone().into_buffer_arg(),
            units,
            heads,
            group,
            size / vector,
            x.meta.shape()[0] as u32,
            CHUNK,
            elem(x.dtype),
        );
    }
}

#[cube(launch_unchecked)]
fn gather<E: Float, N: Size>(
    x: &[Vector<E, N>],
    tokens: &[u32],
    out: &mut [Vector<f32, N>],
    units: usize,
    heads: usize,
    group: usize,
    width: usize,
    end: u32,
    #[comptime] chunk: usize,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= units {
        terminate!();
    }
    let row = ABSOLUTE_POS / width;
    let (place, of_head) = (row % chunk, row / chunk);
    let (head, slot) = (of_head % heads, of_head / heads);
    let token = tokens[slot * chunk + place];
    let mut value = Vector::<f32, N>::new(0.0f32);
    if token < end {
        let source = token as usize * (heads / group) + head / group;
        value = Vector::cast_from(x[source * width + (ABSOLUTE_POS - row * width)]);
    }
    out[ABSOLUTE_POS] = value;
}

/// See [`super::slots::Slots::gather_back`]; arguments as of [`chunked`], the other way round.
pub(super) fn unchunked(chunks: &CubeTensor, places: &CubeTensor, out: &CubeTensor, [heads, group, size]: [usize; 3]) {
    let vector = vector_size(chunks, &[chunks.dtype], &[size]);
    let units = out.meta.num_elements() / vector;
    let (count, dim) = elementwise(chunks, units);
    // SAFETY: the kernel ends beyond `units` vectors, and reads places that the chunks have.
    #[expect(unsafe_code, reason = "a launch without checks of every index")]
    unsafe {
        gather_back::launch_unchecked(
            &chunks.client,
            count,
            dim,
            vector,
            chunks.clone().into_buffer_arg(),
            places.clone().into_buffer_arg(),
            out.clone().into_buffer_arg(),
            units,
            heads,
            group,
            size / vector,
            CHUNK,
            elem(out.dtype),
        );
    }
}

#[cube(launch_unchecked)]
fn gather_back<E: Float, N: Size>(
    chunks: &[Vector<f32, N>],
    places: &[u32],
    out: &mut [Vector<E, N>],
    units: usize,
    heads: usize,
    group: usize,
    width: usize,
    #[comptime] chunk: usize,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= units {
        terminate!();
    }
    let row = ABSOLUTE_POS / width;
    let own_heads = heads / group;
    let (own, token) = (row % own_heads, row / own_heads);
    let place = places[token] as usize;
    let (slot, place) = (place / chunk, place % chunk);
    let mut total = Vector::<f32, N>::new(0.0f32);
    for member in 0..group {
        let source = (slot * heads + own * group + member) * chunk + place;
        total += chunks[source * width + (ABSOLUTE_POS - row * width)];
    }
    out[ABSOLUTE_POS] = Vector::cast_from(total);
}

/// Rows `[P', H, ..]` of a part and the whole it belongs to, counted in vectors.
struct Rows {
    vector: usize,
    units: usize,
    /// Of a head.
    width: usize,
    /// Of a slot.
    slot: usize,
}

impl Rows {
    fn of(part: &CubeTensor) -> Self {
        let [slots, heads, rows, columns] = [0, 1, 2, 3].map(|axis| part.meta.shape()[axis]);
        let vector = vector_size(part, &[part.dtype], &[columns]);
        let width = rows * columns / vector;
        Self { vector, units: slots * heads * width, width, slot: heads * width }
    }
}

/// `N = U - read`, in place from slot `first` on.
pub(super) fn written(read: &CubeTensor, values: &CubeTensor, first: usize) {
    add_scaled_at(read, values, first, -1.0);
}

/// `sum += part`, from slot `first` on.
pub(super) fn added(part: &CubeTensor, sum: &CubeTensor, first: usize) {
    add_scaled_at(part, sum, first, 1.0);
}

fn add_scaled_at(part: &CubeTensor, sum: &CubeTensor, first: usize, scale: f32) {
    let Rows { vector, units, slot, .. } = Rows::of(part);
    let (count, dim) = elementwise(part, units);
    // SAFETY: the kernel ends beyond `units` vectors, which the sum has from `first` on.
    #[expect(unsafe_code, reason = "a launch without checks of every index")]
    unsafe {
        add_scaled::launch_unchecked(
            &part.client,
            count,
            dim,
            vector,
            part.clone().into_buffer_arg(),
            sum.clone().into_buffer_arg(),
            units,
            first * slot,
            scale,
        );
    }
}

#[cube(launch_unchecked)]
fn add_scaled<N: Size>(part: &[Vector<f32, N>], sum: &mut [Vector<f32, N>], units: usize, offset: usize, scale: f32) {
    if ABSOLUTE_POS >= units {
        terminate!();
    }
    sum[offset + ABSOLUTE_POS] += part[ABSOLUTE_POS] * Vector::new(scale);
}

/// State after each of the chunks from slot `here` on, at slot `there` on: `e^G[last]·S + added`.
pub(super) fn advance(added: &CubeTensor, reach: &CubeTensor, states: &CubeTensor, here: usize, there: usize) {
    let Rows { vector, units, width, slot } = Rows::of(added);
    let (count, dim) = elementwise(added, units);
    // SAFETY: the kernel ends beyond `units` vectors, which the states have from `here` and from `there` on.
    #[expect(unsafe_code, reason = "a launch without checks of every index")]
    unsafe {
        next_states::launch_unchecked(
            &added.client,
            count,
            dim,
            vector,
            added.clone().into_buffer_arg(),
            reach.clone().into_buffer_arg(),
            states.clone().into_buffer_arg(),
            units,
            width,
            here * slot,
            there * slot,
            CHUNK,
        );
    }
}

#[cube(launch_unchecked)]
fn next_states<N: Size>(
    added: &[Vector<f32, N>],
    reach: &[f32],
    states: &mut [Vector<f32, N>],
    units: usize,
    width: usize,
    here: usize,
    there: usize,
    #[comptime] chunk: usize,
) {
    if ABSOLUTE_POS >= units {
        terminate!();
    }
    let head = (here + ABSOLUTE_POS) / width;
    let whole = Vector::<f32, N>::new(reach[head * chunk + comptime!(chunk - 1)]);
    states[there + ABSOLUTE_POS] = states[here + ABSOLUTE_POS] * whole + added[ABSOLUTE_POS];
}

/// `dS -= change` from slot `here` on, and for the first `after` slots `dS += e^G[last]·dS'`, which lie from `there` on.
pub(super) fn regressed(
    change: &CubeTensor,
    reach: &CubeTensor,
    dstates: &CubeTensor,
    here: usize,
    there: usize,
    after: usize,
) {
    let Rows { vector, units, width, slot } = Rows::of(change);
    let (count, dim) = elementwise(change, units);
    // SAFETY: as in `advance`.
    #[expect(unsafe_code, reason = "a launch without checks of every index")]
    unsafe {
        previous_states::launch_unchecked(
            &change.client,
            count,
            dim,
            vector,
            change.clone().into_buffer_arg(),
            reach.clone().into_buffer_arg(),
            dstates.clone().into_buffer_arg(),
            units,
            width,
            here * slot,
            there * slot,
            after * slot,
            CHUNK,
        );
    }
}

#[cube(launch_unchecked)]
fn previous_states<N: Size>(
    change: &[Vector<f32, N>],
    reach: &[f32],
    dstates: &mut [Vector<f32, N>],
    units: usize,
    width: usize,
    here: usize,
    there: usize,
    after: usize,
    #[comptime] chunk: usize,
) {
    if ABSOLUTE_POS >= units {
        terminate!();
    }
    let mut total = dstates[here + ABSOLUTE_POS] - change[ABSOLUTE_POS];
    if ABSOLUTE_POS < after {
        let head = (here + ABSOLUTE_POS) / width;
        let whole = Vector::<f32, N>::new(reach[head * chunk + comptime!(chunk - 1)]);
        total += dstates[there + ABSOLUTE_POS] * whole;
    }
    dstates[here + ABSOLUTE_POS] = total;
}

/// Of each slot what the slot behind it in `next` has, 0 where there is none.
pub(super) fn following(slots: &CubeTensor, next: &CubeTensor) -> CubeTensor {
    let Rows { vector, units, slot, .. } = Rows::of(slots);
    let out = crate::gpu::tensor::empty(slots, slots.meta.shape().clone(), slots.dtype);
    let (count, dim) = elementwise(slots, units);
    // SAFETY: the kernel ends beyond `units` vectors and reads slots that there are.
    #[expect(unsafe_code, reason = "a launch without checks of every index")]
    unsafe {
        follow::launch_unchecked(
            &slots.client,
            count,
            dim,
            vector,
            slots.clone().into_buffer_arg(),
            next.clone().into_buffer_arg(),
            out.clone().into_buffer_arg(),
            units,
            slot,
            (units / slot) as u32,
        );
    }
    out
}

#[cube(launch_unchecked)]
fn follow<N: Size>(
    slots: &[Vector<f32, N>],
    next: &[u32],
    out: &mut [Vector<f32, N>],
    units: usize,
    width: usize,
    end: u32,
) {
    if ABSOLUTE_POS >= units {
        terminate!();
    }
    let slot = ABSOLUTE_POS / width;
    let source = next[slot];
    let mut value = Vector::<f32, N>::new(0.0f32);
    if source < end {
        value = slots[source as usize * width + (ABSOLUTE_POS - slot * width)];
    }
    out[ABSOLUTE_POS] = value;
}
