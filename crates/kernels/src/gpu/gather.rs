//! Rows of a matrix taken in another order.

use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::tensor::{elem, elementwise, empty, vector_size};

/// Row `i` of the result is row `rows[i]` of `x` `[R, W]`, or zeros where `x` has no such row; `rows` in u32.
///
/// Bytes: the result out, the rows of it in.
pub(crate) fn gather_rows(x: &CubeTensor, rows: &CubeTensor) -> CubeTensor {
    let ([count, width], taken) = ([x.meta.shape()[0], x.meta.shape()[1]], rows.meta.shape()[0]);
    let y = empty(x, [taken, width], x.dtype);
    let vector = vector_size(x, &[x.dtype], &[width]);
    let units = taken * width / vector;
    if units == 0 {
        return y;
    }
    // A matrix without rows has no memory to name.
    let source = if count == 0 { &y } else { x };
    let (cubes, dim) = elementwise(x, units);
    // SAFETY: the kernel ends beyond `units` vectors and reads rows below `count`.
    #[expect(unsafe_code, reason = "a launch without checks of every index")]
    unsafe {
        take_rows::launch_unchecked(
            &x.client,
            cubes,
            dim,
            vector,
            source.clone().into_buffer_arg(),
            rows.clone().into_buffer_arg(),
            y.clone().into_buffer_arg(),
            units,
            width / vector,
            count as u32,
            elem(x.dtype),
        );
    }
    y
}

#[cube(launch_unchecked)]
fn take_rows<E: Float, N: Size>(
    x: &[Vector<E, N>],
    rows: &[u32],
    y: &mut [Vector<E, N>],
    units: usize,
    width: usize,
    end: u32,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= units {
        terminate!();
    }
    let row = ABSOLUTE_POS / width;
    let source = rows[row];
    let mut value = Vector::<E, N>::cast_from(Vector::<f32, N>::new(0.0f32));
    if source < end {
        value = x[source as usize * width + (ABSOLUTE_POS - row * width)];
    }
    y[ABSOLUTE_POS] = value;
}
