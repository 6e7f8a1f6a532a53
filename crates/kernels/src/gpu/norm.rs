//! One family of kernels for the norms: of a row alone, of a head that is rotated behind it, of a head that is gated.
//!
//! With `n = x·rstd ⊙ w` (and `w + 1` for a zero-centred weight) the result is `n`, `R·n` with `R` the rotation by the
//! token's angles, or `n ⊙ silu(z)`. A row is read once from memory and once more from the cache; see [`forward`] for what
//! bounds it.
//!
//! One file although it is long: the three share their loads, sums and gradients, and each kernel reads only beside the
//! launch that gives it its rows.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::float::{silu, silu_slope, sum};
use super::group::{Group, row, row_sum};
use super::tensor::{elem, elementwise, empty, reshaped, vector_size};

/// What happens to a normed row.
#[expect(clippy::large_enum_variant, reason = "one a norm")]
#[derive(Clone, Debug)]
pub(crate) enum Behind {
    Nothing,
    /// `cos` and `sin`, `[T, half]` in f32; a token has as many rows as there are to each row of the angles.
    Rotation(CubeTensor, CubeTensor),
    /// `z`, of the shape and type of `x`.
    Gate(CubeTensor),
}

/// [`Behind`] without its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Nothing,
    Rotation,
    Gate,
}

/// A norm and its operands, all in C order.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    /// Rows of `weight`'s size.
    pub(crate) x: CubeTensor,
    pub(crate) weight: CubeTensor,
    /// Added to the weight.
    pub(crate) offset: f32,
    pub(crate) behind: Behind,
}

impl Norm {
    fn size(&self) -> usize {
        self.weight.meta.shape()[0]
    }

    fn rows(&self) -> usize {
        self.x.meta.num_elements().checked_div(self.size()).unwrap_or(0)
    }

    fn kind(&self) -> Kind {
        match &self.behind {
            Behind::Nothing => Kind::Nothing,
            Behind::Rotation(cos, _) if cos.meta.shape()[1] == 0 => Kind::Nothing,
            Behind::Rotation(..) => Kind::Rotation,
            Behind::Gate(_) => Kind::Gate,
        }
    }

    /// Two more operands of the kernels; where there are none, ones that are not read.
    fn others(&self) -> [CubeTensor; 2] {
        match &self.behind {
            Behind::Nothing => [self.weight.clone(), self.weight.clone()],
            Behind::Rotation(cos, sin) => [cos.clone(), sin.clone()],
            Behind::Gate(z) => [z.clone(), self.weight.clone()],
        }
    }

    /// Rows of a token, and half the rotated elements of each.
    fn rotation(&self) -> (usize, usize) {
        match &self.behind {
            Behind::Rotation(cos, _) => {
                let [tokens, half] = [cos.meta.shape()[0], cos.meta.shape()[1]];
                (self.rows().checked_div(tokens).unwrap_or(1), half)
            }
            _ => (1, 0),
        }
    }

    fn vector(&self) -> usize {
        let mut dtypes = vec![self.x.dtype, self.weight.dtype];
        if self.kind() == Kind::Rotation {
            dtypes.push(DType::F32);
        }
        vector_size(&self.x, &dtypes[..1], &[self.size(), self.rotation().1])
    }

    /// The type of the second operand in [`Norm::others`].
    fn other_dtype(&self) -> DType {
        self.others()[0].dtype
    }

    /// The result and `rstd`, one number a row.
    ///
    /// Bytes: `x` in, the result out, 4 a row, for `R·n` the angles (once a token, then from the cache). About 4 operations
    /// an element: bound by memory everywhere; 2048 rows of 4096 in bf16 are 33.6 MB, 7.8 µs at 4.3 TB/s.
    pub(crate) fn forward(&self, eps: f64) -> (CubeTensor, CubeTensor) {
        let (rows, size, vector) = (self.rows(), self.size(), self.vector());
        let y = empty(&self.x, self.x.meta.shape().clone(), self.x.dtype);
        let rstd = empty(&self.x, [rows], DType::F32);
        if rows == 0 {
            return (y, rstd);
        }
        let ((heads, half), [one, two]) = (self.rotation(), self.others());
        let group = Group::of(&self.x, size / vector);
        let (count, dim) = group.launch(&self.x, rows);
        // SAFETY: the kernel reads and writes rows below `rows` of buffers that have as many.
        #[expect(unsafe_code, reason = "a launch without checks of every index")]
        unsafe {
            norm_forward::launch_unchecked(
                &self.x.client,
                count,
                dim,
                vector,
                self.x.clone().into_buffer_arg(),
                self.weight.clone().into_buffer_arg(),
                one.into_buffer_arg(),
                two.into_buffer_arg(),
                y.clone().into_buffer_arg(),
                rstd.clone().into_buffer_arg(),
                rows,
                size / vector,
                heads,
                half / vector,
                self.offset,
                eps as f32,
                self.kind(),
                group,
                elem(self.x.dtype),
                elem(self.weight.dtype),
                elem(self.other_dtype()),
            );
        }
        (y, rstd)
    }

    /// Gradient of `x`; of a gated norm that of `z` beside it.
    ///
    /// Bytes: `x` and `dy` in, `dx` out; of a gated norm `z` in and `dz` out beside them: bound by memory.
    pub(crate) fn input_gradient(&self, dy: &CubeTensor, rstd: &CubeTensor) -> (CubeTensor, Option<CubeTensor>) {
        let (rows, size, vector) = (self.rows(), self.size(), self.vector());
        let dx = empty(&self.x, self.x.meta.shape().clone(), self.x.dtype);
        let dz = (self.kind() == Kind::Gate).then(|| empty(&self.x, self.x.meta.shape().clone(), self.x.dtype));
        if rows == 0 {
            return (dx, dz);
        }
        let ((heads, half), [one, two]) = (self.rotation(), self.others());
        let group = Group::of(&self.x, size / vector);
        let (count, dim) = group.launch(&self.x, rows);
        // SAFETY: as in `forward`; without a gate the last output is another name of the one before and not written.
        #[expect(unsafe_code, reason = "a launch without checks of every index")]
        unsafe {
            norm_backward::launch_unchecked(
                &self.x.client,
                count,
                dim,
                vector,
                self.x.clone().into_buffer_arg(),
                self.weight.clone().into_buffer_arg(),
                one.into_buffer_arg(),
                two.into_buffer_arg(),
                dy.clone().into_buffer_arg(),
                rstd.clone().into_buffer_arg(),
                dx.clone().into_buffer_arg(),
                dz.as_ref().unwrap_or(&dx).clone().into_buffer_arg(),
                rows,
                size / vector,
                heads,
                half / vector,
                self.offset,
                self.kind(),
                group,
                elem(self.x.dtype),
                elem(self.weight.dtype),
                elem(self.other_dtype()),
            );
        }
        (dx, dz)
    }

    /// Sums of the weight's gradient over blocks of rows, `[blocks, size]` in f32.
    ///
    /// Bytes: `x` and `dy` (and `z`) in; the sums are a [`BLOCK_ROWS`]th of that.
    pub(crate) fn weight_gradient(&self, dy: &CubeTensor, rstd: &CubeTensor) -> CubeTensor {
        let (rows, size) = (self.rows(), self.size());
        let blocks = rows.div_ceil(BLOCK_ROWS).max(1);
        let sums = empty(&self.x, [blocks, size], DType::F32);
        let (heads, half) = self.rotation();
        let dy = match &self.behind {
            Behind::Rotation(cos, sin) if half > 0 => {
                let shape = [rows / heads, heads, size];
                rotated(&reshaped(dy.clone(), shape), cos, sin, -1.0)
            }
            _ => dy.clone(),
        };
        let gate = match &self.behind {
            Behind::Gate(z) => z.clone(),
            _ => self.x.clone(),
        };
        let vector = vector_size(&self.x, &[self.x.dtype], &[size]);
        let (count, dim) = elementwise(&self.x, blocks * size / vector);
        // SAFETY: the kernel ends beyond `blocks` blocks of `size` columns, and reads rows below `rows`.
        #[expect(unsafe_code, reason = "a launch without checks of every index")]
        unsafe {
            norm_weight_gradient::launch_unchecked(
                &self.x.client,
                count,
                dim,
                vector,
                self.x.clone().into_buffer_arg(),
                gate.into_buffer_arg(),
                dy.into_buffer_arg(),
                rstd.clone().into_buffer_arg(),
                sums.clone().into_buffer_arg(),
                rows,
                size / vector,
                blocks,
                BLOCK_ROWS,
                self.kind() == Kind::Gate,
                elem(self.x.dtype),
            );
        }
        sums
    }
}

/// Rows whose contributions to a weight's gradient a unit adds up.
const BLOCK_ROWS: usize = 64;

/// Every head of `x` `[T, heads, size]` turned by its token's angles, backwards with a `sign` of -1.
///
/// Bytes: `x` in, the result out, the angles once a token.
pub(crate) fn rotated(x: &CubeTensor, cos: &CubeTensor, sin: &CubeTensor, sign: f32) -> CubeTensor {
    let [tokens, heads, size] = [0, 1, 2].map(|axis| x.meta.shape()[axis]);
    let half = cos.meta.shape()[1];
    let y = empty(x, x.meta.shape().clone(), x.dtype);
    let vector = vector_size(x, &[x.dtype], &[size, half]);
    let units = tokens * heads * size / vector;
    if units == 0 {
        return y;
    }
    let (count, dim) = elementwise(x, units);
    // SAFETY: the kernel ends beyond `units` vectors; its angles are those of tokens below `tokens`.
    #[expect(unsafe_code, reason = "a launch without checks of every index")]
    unsafe {
        rotate::launch_unchecked(
            &x.client,
            count,
            dim,
            vector,
            x.clone().into_buffer_arg(),
            cos.clone().into_buffer_arg(),
            sin.clone().into_buffer_arg(),
            y.clone().into_buffer_arg(),
            units,
            size / vector,
            heads,
            half / vector,
            sign,
            elem(x.dtype),
        );
    }
    y
}

/// Where the other element of a rotated pair lies, which angle is theirs, and the sign of the sine.
#[derive(CubeType, Clone, Copy)]
struct Pair {
    other: usize,
    angle: usize,
    sign: f32,
    rotates: bool,
}

/// Of element `at` of a head of which `2·half` elements rotate.
#[cube]
fn pair(at: usize, half: usize) -> Pair {
    let (first, rotates) = (at < half, at < 2 * half);
    let behind = select(rotates, at - half, at);
    Pair {
        other: select(first, at + half, behind),
        angle: select(first, at, select(rotates, at - half, 0usize)),
        sign: select(first, -1.0f32, 1.0f32),
        rotates,
    }
}

#[cube(launch_unchecked)]
fn rotate<E: Float, N: Size>(
    x: &[Vector<E, N>],
    cos: &[Vector<f32, N>],
    sin: &[Vector<f32, N>],
    y: &mut [Vector<E, N>],
    units: usize,
    width: usize,
    heads: usize,
    half: usize,
    sign: f32,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= units {
        terminate!();
    }
    let head = ABSOLUTE_POS / width;
    let pair = pair(ABSOLUTE_POS - head * width, half);
    if pair.rotates {
        let angle = head / heads * half + pair.angle;
        let here = Vector::<f32, N>::cast_from(x[ABSOLUTE_POS]);
        let there = Vector::<f32, N>::cast_from(x[head * width + pair.other]);
        let sine = sin[angle] * Vector::new(sign * pair.sign);
        y[ABSOLUTE_POS] = Vector::cast_from(here * cos[angle] + there * sine);
    } else {
        y[ABSOLUTE_POS] = x[ABSOLUTE_POS];
    }
}

/// Row of the angles at which those of `row` begin.
#[cube]
fn angles(row: usize, heads: usize, half: usize) -> usize {
    row / heads * half
}

#[cube(launch_unchecked)]
fn norm_forward<E: Float, W: Float, O: Float, N: Size>(
    x: &[Vector<E, N>],
    weight: &[Vector<W, N>],
    one: &[Vector<O, N>],
    two: &[Vector<O, N>],
    y: &mut [Vector<E, N>],
    rstd: &mut [f32],
    rows: usize,
    width: usize,
    heads: usize,
    half: usize,
    offset: f32,
    eps: f32,
    #[comptime] kind: Kind,
    #[comptime] group: Group,
    #[define(E)] _dtype: ElemType,
    #[define(W)] _weight_dtype: ElemType,
    #[define(O)] _other_dtype: ElemType,
) {
    let row = row(group);
    let first = row * width;
    let end = select(row < rows, width, 0usize);
    let step = comptime!(group.units as usize);
    let mut squares = Vector::<f32, N>::new(0.0f32);
    let mut at = UNIT_POS_X as usize;
    while at < end {
        let value = Vector::<f32, N>::cast_from(x[first + at]);
        squares += value * value;
        at += step;
    }
    let total = row_sum(sum::<N>(squares), group);
    let elements = f32::cast_from(width * N::value());
    let scale = 1.0f32 / (total / elements + eps).sqrt();
    if row < rows && UNIT_POS_X == 0u32 {
        rstd[row] = scale;
    }
    let mut at = UNIT_POS_X as usize;
    while at < end {
        let here = normed::<E, W, N>(x, weight, first, at, scale, offset);
        if comptime!(kind == Kind::Rotation) {
            let pair = pair(at, half);
            if pair.rotates {
                let angle = angles(row, heads, half) + pair.angle;
                let there = normed::<E, W, N>(x, weight, first, pair.other, scale, offset);
                let cos = Vector::<f32, N>::cast_from(one[angle]);
                let sin = Vector::<f32, N>::cast_from(two[angle]);
                y[first + at] = Vector::cast_from(here * cos + there * sin * Vector::new(pair.sign));
            } else {
                y[first + at] = Vector::cast_from(here);
            }
        } else if comptime!(kind == Kind::Gate) {
            let gate = silu::<N>(Vector::cast_from(one[first + at]));
            y[first + at] = Vector::cast_from(here * gate);
        } else {
            y[first + at] = Vector::cast_from(here);
        }
        at += step;
    }
}

#[cube]
fn normed<E: Float, W: Float, N: Size>(
    x: &[Vector<E, N>],
    weight: &[Vector<W, N>],
    first: usize,
    at: usize,
    scale: f32,
    offset: f32,
) -> Vector<f32, N> {
    let factor = Vector::<f32, N>::cast_from(weight[at]) + Vector::new(offset);
    Vector::<f32, N>::cast_from(x[first + at]) * Vector::new(scale) * factor
}

/// Gradient of the normed row at `at`, before rotation or gate.
#[cube]
fn upstream<E: Float, O: Float, N: Size>(
    dy: &[Vector<E, N>],
    one: &[Vector<O, N>],
    two: &[Vector<O, N>],
    first: usize,
    at: usize,
    angle: usize,
    half: usize,
    #[comptime] kind: Kind,
) -> Vector<f32, N> {
    let mut here = Vector::<f32, N>::cast_from(dy[first + at]);
    if comptime!(kind == Kind::Rotation) {
        let pair = pair(at, half);
        if pair.rotates {
            let there = Vector::<f32, N>::cast_from(dy[first + pair.other]);
            let cos = Vector::<f32, N>::cast_from(one[angle + pair.angle]);
            let sin = Vector::<f32, N>::cast_from(two[angle + pair.angle]);
            here = here * cos - there * sin * Vector::new(pair.sign);
        }
    } else if comptime!(kind == Kind::Gate) {
        here *= silu::<N>(Vector::cast_from(one[first + at]));
    }
    here
}

/// With `g` the gradient of the normed row and `h = w ⊙ g`: `dx = rstd·h - x·rstd³·mean(h ⊙ x)`, and behind a gate
/// `dz = dy ⊙ x·rstd ⊙ w ⊙ silu'(z)`.
#[cube(launch_unchecked)]
fn norm_backward<E: Float, W: Float, O: Float, N: Size>(
    x: &[Vector<E, N>],
    weight: &[Vector<W, N>],
    one: &[Vector<O, N>],
    two: &[Vector<O, N>],
    dy: &[Vector<E, N>],
    rstd: &[f32],
    dx: &mut [Vector<E, N>],
    dz: &mut [Vector<E, N>],
    rows: usize,
    width: usize,
    heads: usize,
    half: usize,
    offset: f32,
    #[comptime] kind: Kind,
    #[comptime] group: Group,
    #[define(E)] _dtype: ElemType,
    #[define(W)] _weight_dtype: ElemType,
    #[define(O)] _other_dtype: ElemType,
) {
    let row = row(group);
    let first = row * width;
    let angle = angles(row, heads, half);
    let end = select(row < rows, width, 0usize);
    let step = comptime!(group.units as usize);
    let scale = rstd[select(row < rows, row, 0usize)];
    let mut products = Vector::<f32, N>::new(0.0f32);
    let mut at = UNIT_POS_X as usize;
    while at < end {
        let factor = Vector::<f32, N>::cast_from(weight[at]) + Vector::new(offset);
        let g = upstream::<E, O, N>(dy, one, two, first, at, angle, half, kind);
        products += g * factor * Vector::cast_from(x[first + at]);
        at += step;
    }
    let total = row_sum(sum::<N>(products), group);
    let along = total / f32::cast_from(width * N::value()) * scale * scale * scale;
    let mut at = UNIT_POS_X as usize;
    while at < end {
        let factor = Vector::<f32, N>::cast_from(weight[at]) + Vector::new(offset);
        let value = Vector::<f32, N>::cast_from(x[first + at]);
        let g = upstream::<E, O, N>(dy, one, two, first, at, angle, half, kind);
        if comptime!(kind == Kind::Gate) {
            let slope = silu_slope::<N>(Vector::cast_from(one[first + at]));
            let above = Vector::<f32, N>::cast_from(dy[first + at]);
            dz[first + at] = Vector::cast_from(above * value * Vector::new(scale) * factor * slope);
        }
        dx[first + at] = Vector::cast_from(g * factor * Vector::new(scale) - value * Vector::new(along));
        at += step;
    }
}

#[cube(launch_unchecked)]
fn norm_weight_gradient<E: Float, N: Size>(
    x: &[Vector<E, N>],
    z: &[Vector<E, N>],
    dy: &[Vector<E, N>],
    rstd: &[f32],
    sums: &mut [Vector<f32, N>],
    rows: usize,
    width: usize,
    blocks: usize,
    block_rows: usize,
    #[comptime] gated: bool,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= blocks * width {
        terminate!();
    }
    let block = ABSOLUTE_POS / width;
    let column = ABSOLUTE_POS - block * width;
    let mut total = Vector::<f32, N>::new(0.0f32);
    let mut row = block * block_rows;
    let end = min(row + block_rows, rows);
    while row < end {
        let at = row * width + column;
        let mut above = Vector::<f32, N>::cast_from(dy[at]);
        if comptime!(gated) {
            above *= silu::<N>(Vector::cast_from(z[at]));
        }
        total += above * Vector::cast_from(x[at]) * Vector::new(rstd[row]);
        row += 1;
    }
    sums[ABSOLUTE_POS] = total;
}
