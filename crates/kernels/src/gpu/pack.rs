//! Small matrices brought into the type and order that products read, several into one.

use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::tensor::{elem, elementwise};

/// Writes `source` `[rows, columns]` in the type of `target` into its rows from `first` on, or where it is to be `turned`, as
/// `[columns, rows]`. Both in C order; `target` has as many columns as what is written. Bytes: both once.
pub(crate) fn pack(source: &CubeTensor, target: &CubeTensor, first: usize, turned: bool) {
    let [rows, columns] = [source.meta.shape()[0], source.meta.shape()[1]];
    let [out_rows, out_columns] = if turned { [columns, rows] } else { [rows, columns] };
    let [target_rows, target_columns] = [target.meta.shape()[0], target.meta.shape()[1]];
    assert!(out_columns == target_columns && first + out_rows <= target_rows, "invariant: a target that it fits into");
    let units = rows * columns;
    if units == 0 {
        return;
    }
    let (count, dim) = elementwise(source, units);
    // SAFETY: the kernel ends beyond `units` elements, which source and, from the offset on, target have.
    #[expect(unsafe_code, reason = "a launch without checks of every index")]
    unsafe {
        pack_matrix::launch_unchecked(
            &source.client,
            count,
            dim,
            source.clone().into_buffer_arg(),
            target.clone().into_buffer_arg(),
            units,
            first * target_columns,
            out_columns,
            columns,
            turned,
            elem(source.dtype),
            elem(target.dtype),
        );
    }
}

#[cube(launch_unchecked)]
fn pack_matrix<S: Float, E: Float>(
    source: &[S],
    target: &mut [E],
    units: usize,
    offset: usize,
    out_columns: usize,
    columns: usize,
    #[comptime] turned: bool,
    #[define(S)] _source_dtype: ElemType,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= units {
        terminate!();
    }
    let mut from = ABSOLUTE_POS;
    if comptime!(turned) {
        let row = ABSOLUTE_POS / out_columns;
        from = (ABSOLUTE_POS - row * out_columns) * columns + row;
    }
    target[offset + ABSOLUTE_POS] = E::cast_from(source[from]);
}
