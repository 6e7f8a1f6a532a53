//! The products of [`super::super::blockwise`] with one kernel a block between them, in each direction.

use burn::Tensor;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use crate::attention::blockwise::{Block, Layout, Steps};
use crate::gpu::float::{largest, sum};
use crate::gpu::group::{Group, row, row_max, row_sum};
use crate::gpu::places::starts;
use crate::gpu::product::{product, wide_product};
use crate::gpu::tensor::{dense, elem, elementwise, empty, primitive, vector_size};
use crate::gpu::{Cube, Operand};

/// The steps as kernels.
#[derive(Debug)]
pub(super) struct Kernels;

/// A plain tensor, dense.
pub(super) fn buffer<const D: usize>(tensor: Tensor<D>) -> CubeTensor {
    dense(&Operand::constant(primitive(tensor)))
}

fn tensor<const D: usize>(buffer: CubeTensor) -> Tensor<D> {
    Tensor::from_primitive::<Cube>(buffer)
}

/// The window in tokens, without one more than there ever are.
fn window(layout: &Layout) -> usize {
    layout.window.unwrap_or(u32::MAX as usize)
}

impl Steps for Kernels {
    fn product(a: Tensor<3>, b: Tensor<3>) -> Tensor<3> {
        product(a, b)
    }

    fn wide_product(a: Tensor<3>, b: Tensor<3>) -> Tensor<3> {
        wide_product(a, b)
    }

    fn softmax(layout: &Layout, block: &Block, scores: Tensor<3>, dtype: DType) -> (Tensor<3>, Tensor<2>) {
        let ([heads, rows, keys], scores) = (scores.dims(), buffer(scores));
        let weights = empty(&scores, [heads, rows, keys], dtype);
        let lse = empty(&scores, [heads, rows], DType::F32);
        let vector = vector_size(&scores, &[DType::F32], &[keys]);
        let group = Group::of(&scores, keys / vector);
        let (count, dim) = group.launch(&scores, heads * rows);
        // SAFETY: the kernel reads and writes rows below `heads·rows`, and the starts of the block's tokens.
        #[expect(unsafe_code, reason = "a launch without checks of every index")]
        unsafe {
            scores_forward::launch_unchecked(
                &scores.client,
                count,
                dim,
                vector,
                scores.clone().into_buffer_arg(),
                starts(&layout.segments, &scores).into_buffer_arg(),
                weights.clone().into_buffer_arg(),
                lse.clone().into_buffer_arg(),
                heads * rows,
                keys / vector,
                block.tokens.start,
                block.tokens.len(),
                block.from,
                layout.group,
                window(layout),
                layout.scale,
                group,
                elem(dtype),
            );
        }
        (tensor(weights), tensor(lse))
    }

    fn softmax_backward(
        layout: &Layout,
        block: &Block,
        [scores, dweights]: [Tensor<3>; 2],
        lse: Tensor<2>,
        delta: Tensor<2>,
        dtype: DType,
    ) -> [Tensor<3>; 2] {
        let ([heads, rows, keys], scores) = (scores.dims(), buffer(scores));
        let [weights, dscores] = [0; 2].map(|_| empty(&scores, [heads, rows, keys], dtype));
        let vector = vector_size(&scores, &[DType::F32], &[keys]);
        let group = Group::of(&scores, keys / vector);
        let (count, dim) = group.launch(&scores, heads * rows);
        // SAFETY: as in `softmax`.
        #[expect(unsafe_code, reason = "a launch without checks of every index")]
        unsafe {
            scores_backward::launch_unchecked(
                &scores.client,
                count,
                dim,
                vector,
                scores.clone().into_buffer_arg(),
                buffer(dweights).into_buffer_arg(),
                buffer(lse).into_buffer_arg(),
                buffer(delta).into_buffer_arg(),
                starts(&layout.segments, &scores).into_buffer_arg(),
                weights.clone().into_buffer_arg(),
                dscores.clone().into_buffer_arg(),
                heads * rows,
                keys / vector,
                block.tokens.start,
                block.tokens.len(),
                block.from,
                layout.group,
                heads,
                window(layout),
                layout.scale,
                group,
                elem(dtype),
            );
        }
        [weights, dscores].map(tensor)
    }

    /// Bytes: both tensors in; bound by memory.
    fn row_products(a: &Tensor<3>, b: &Tensor<3>) -> Tensor<2> {
        let [tokens, heads, size] = a.dims();
        let (a, b) = (buffer(a.clone()), buffer(b.clone()));
        let sums = empty(&a, [tokens, heads], DType::F32);
        let vector = vector_size(&a, &[a.dtype], &[size]);
        let group = Group::of(&a, size / vector);
        let (count, dim) = group.launch(&a, tokens * heads);
        // SAFETY: the kernel reads and writes rows below `tokens·heads`.
        #[expect(unsafe_code, reason = "a launch without checks of every index")]
        unsafe {
            row_products::launch_unchecked(
                &a.client,
                count,
                dim,
                vector,
                a.clone().into_buffer_arg(),
                b.into_buffer_arg(),
                sums.clone().into_buffer_arg(),
                tokens * heads,
                size / vector,
                group,
                elem(a.dtype),
            );
        }
        tensor(sums)
    }

    /// Bytes: the part in, its rows of the sum in and out.
    fn add_rows(sum: Tensor<3>, part: Tensor<3>, from: usize) -> Tensor<3> {
        let ([_, sum_rows, _], [heads, rows, size]) = (sum.dims(), part.dims());
        let (sum, part) = (buffer(sum), buffer(part));
        let vector = vector_size(&sum, &[DType::F32], &[size]);
        let units = heads * rows * size / vector;
        let (count, dim) = elementwise(&sum, units);
        // SAFETY: the kernel ends beyond `units` vectors of the part, whose rows the sum has from `from` on.
        #[expect(unsafe_code, reason = "a launch without checks of every index")]
        unsafe {
            add_rows::launch_unchecked(
                &sum.client,
                count,
                dim,
                vector,
                part.into_buffer_arg(),
                sum.clone().into_buffer_arg(),
                units,
                rows * size / vector,
                sum_rows * size / vector,
                from * size / vector,
            );
        }
        tensor(sum)
    }
}

/// Columns `first..end` of a block's scores that the row sees.
#[derive(CubeType, Clone, Copy)]
struct Visible {
    first: usize,
    end: usize,
}

#[cube]
fn visible(
    row: usize,
    starts: &[u32],
    token: usize,
    tokens: usize,
    from: usize,
    group: usize,
    window: usize,
) -> Visible {
    let query = token + row / group % tokens;
    let start = starts[query] as usize;
    let oldest = select(query >= window, query + 1 - min(window, query + 1), 0usize);
    Visible { first: max(start, oldest) - from, end: query + 1 - from }
}

/// `scale·scores` of the vector `at`, and `other` where the row does not see them.
#[cube]
fn seen<N: Size>(scores: Vector<f32, N>, at: usize, visible: &Visible, scale: f32, other: f32) -> Vector<f32, N> {
    let mut seen = Vector::<f32, N>::new(other);
    #[unroll]
    for part in 0..N::value() {
        let column = at * N::value() + part;
        let is_seen = column >= visible.first && column < visible.end;
        seen.insert(part, select(is_seen, scores.extract(part) * scale, other));
    }
    seen
}

/// Score of a pair that does not see each other.
const HIDDEN: f32 = -1e30;

#[cube(launch_unchecked)]
fn scores_forward<E: Float, N: Size>(
    scores: &[Vector<f32, N>],
    starts: &[u32],
    weights: &mut [Vector<E, N>],
    lse: &mut [f32],
    rows: usize,
    width: usize,
    token: usize,
    tokens: usize,
    from: usize,
    heads: usize,
    window: usize,
    scale: f32,
    #[comptime] group: Group,
    #[define(E)] _dtype: ElemType,
) {
    let row = row(group);
    let inside = row < rows;
    let row_or_first = select(inside, row, 0usize);
    let first = row_or_first * width;
    let visible = visible(row_or_first, starts, token, tokens, from, heads, window);
    let step = comptime!(group.units as usize);
    let end = select(inside, (visible.end - 1) / N::value() + 1, 0usize);
    let begin = visible.first / N::value() / step * step + UNIT_POS_X as usize;
    let mut highest = f32::new(HIDDEN);
    let mut at = begin;
    while at < end {
        highest = max(highest, largest::<N>(seen::<N>(scores[first + at], at, &visible, scale, HIDDEN)));
        at += step;
    }
    let highest = row_max(highest, group);
    let mut total = Vector::<f32, N>::new(0.0f32);
    let mut at = begin;
    while at < end {
        total += (seen::<N>(scores[first + at], at, &visible, scale, HIDDEN) - Vector::new(highest)).exp();
        at += step;
    }
    let sum = highest + row_sum(sum::<N>(total), group).ln();
    if inside && UNIT_POS_X == 0u32 {
        lse[row] = sum;
    }
    let mut at = UNIT_POS_X as usize;
    let end = select(inside, width, 0usize);
    while at < end {
        let weight = (seen::<N>(scores[first + at], at, &visible, scale, HIDDEN) - Vector::new(sum)).exp();
        weights[first + at] = Vector::cast_from(weight);
        at += step;
    }
}

#[cube(launch_unchecked)]
fn scores_backward<E: Float, N: Size>(
    scores: &[Vector<f32, N>],
    dweights: &[Vector<f32, N>],
    lse: &[f32],
    delta: &[f32],
    starts: &[u32],
    weights: &mut [Vector<E, N>],
    dscores: &mut [Vector<E, N>],
    rows: usize,
    width: usize,
    token: usize,
    tokens: usize,
    from: usize,
    heads: usize,
    kv_heads: usize,
    window: usize,
    scale: f32,
    #[comptime] group: Group,
    #[define(E)] _dtype: ElemType,
) {
    let row = row(group);
    if row < rows {
        let first = row * width;
        let visible = visible(row, starts, token, tokens, from, heads, window);
        let key_head = row / heads / tokens;
        let of_token = row / heads % tokens * (kv_heads * heads);
        let delta = delta[of_token + key_head * heads + row % heads];
        let sum = lse[row];
        // The weight of a single key is 1 whatever its score: a difference would leave its rounding.
        let alone = visible.end - visible.first == 1usize;
        let mut at = UNIT_POS_X as usize;
        while at < width {
            let above = seen::<N>(dweights[first + at], at, &visible, 1.0f32, delta);
            let weight = (seen::<N>(scores[first + at], at, &visible, scale, HIDDEN) - Vector::new(sum)).exp();
            let slope = weight * (above - Vector::new(delta)) * Vector::new(select(alone, 0.0f32, scale));
            weights[first + at] = Vector::cast_from(weight);
            dscores[first + at] = Vector::cast_from(slope);
            at += comptime!(group.units as usize);
        }
    }
}

#[cube(launch_unchecked)]
fn row_products<E: Float, N: Size>(
    a: &[Vector<E, N>],
    b: &[Vector<E, N>],
    sums: &mut [f32],
    rows: usize,
    width: usize,
    #[comptime] group: Group,
    #[define(E)] _dtype: ElemType,
) {
    let row = row(group);
    let end = select(row < rows, width, 0usize);
    let mut total = Vector::<f32, N>::new(0.0f32);
    let mut at = UNIT_POS_X as usize;
    while at < end {
        let place = row * width + at;
        total += Vector::<f32, N>::cast_from(a[place]) * Vector::cast_from(b[place]);
        at += comptime!(group.units as usize);
    }
    let total = row_sum(sum::<N>(total), group);
    if row < rows && UNIT_POS_X == 0u32 {
        sums[row] = total;
    }
}

/// `width` vectors of a head in the part, `sum_width` in the sum, where the part's begin at `offset`.
#[cube(launch_unchecked)]
fn add_rows<N: Size>(
    part: &[Vector<f32, N>],
    sum: &mut [Vector<f32, N>],
    units: usize,
    width: usize,
    sum_width: usize,
    offset: usize,
) {
    if ABSOLUTE_POS >= units {
        terminate!();
    }
    let head = ABSOLUTE_POS / width;
    let at = head * sum_width + offset + (ABSOLUTE_POS - head * width);
    sum[at] += part[ABSOLUTE_POS];
}
