//! How rows are spread over the units of a cube, and sums and maxima over the units of a row.

use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::features::Plane;
use cubecl::prelude::*;

use super::tensor::CUBE_UNITS;

/// A cube holds `rows` rows and gives `units` units, a power of two, to each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Group {
    pub(crate) units: u32,
    pub(crate) rows: u32,
    /// Units that exchange numbers without shared memory; 0 where that is not to be relied on.
    pub(crate) plane: u32,
}

impl Group {
    /// For rows that a unit walks in `steps` steps of all units of the row.
    pub(crate) fn of(like: &CubeTensor, steps: usize) -> Self {
        let properties = like.client.properties();
        let hardware = &properties.hardware;
        let most = CUBE_UNITS.min(hardware.max_units_per_cube);
        let units = (steps.max(1).next_power_of_two() as u32).min(most);
        let one_size = hardware.plane_size_min == hardware.plane_size_max;
        let plane =
            if one_size && properties.features.plane.contains(Plane::Ops) { hardware.plane_size_max } else { 0 };
        Self { units, rows: (most / units).max(1), plane }
    }

    pub(crate) fn launch(self, like: &CubeTensor, rows: usize) -> (CubeCount, CubeDim) {
        let dim = CubeDim::new_2d(self.units, self.rows);
        (calculate_cube_count_elemwise(&like.client, rows * self.units as usize, dim), dim)
    }

    /// Units whose numbers meet without shared memory.
    fn near(self) -> u32 {
        self.plane.clamp(1, self.units)
    }
}

/// The row of this unit; beyond the last row the unit only takes part in sums.
#[cube]
pub(crate) fn row(#[comptime] group: Group) -> usize {
    CUBE_POS * comptime!(group.rows as usize) + UNIT_POS_Y as usize
}

/// What is made of two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Join {
    Sum,
    Max,
}

#[cube]
fn joined(one: f32, other: f32, #[comptime] join: Join) -> f32 {
    if comptime!(join == Join::Sum) { one + other } else { max(one, other) }
}

/// Sum of `value` over the units of the row; every unit of the cube has to ask for it.
#[cube]
pub(crate) fn row_sum(value: f32, #[comptime] group: Group) -> f32 {
    over_row(value, group, Join::Sum)
}

/// Maximum of `value` over the units of the row; every unit of the cube has to ask for it.
#[cube]
pub(crate) fn row_max(value: f32, #[comptime] group: Group) -> f32 {
    over_row(value, group, Join::Max)
}

/// Within planes by exchange, across planes through shared memory; where planes are not to be relied on, by halves through
/// shared memory. The order depends on the group alone.
#[cube]
fn over_row(value: f32, #[comptime] group: Group, #[comptime] join: Join) -> f32 {
    let near = comptime!(group.near());
    let parts = comptime!(group.units / near);
    let mut total = value;
    #[unroll]
    for step in 0..comptime!(near.trailing_zeros()) {
        total = joined(total, plane_shuffle_xor(total, 1u32 << step), join);
    }
    if comptime!(parts > 1) {
        let mut shared = Shared::<[f32]>::new_slice(comptime!((parts * group.rows) as usize));
        if UNIT_POS % near == 0u32 {
            shared[(UNIT_POS / near) as usize] = total;
        }
        sync_cube();
        if comptime!(near > 1) {
            let first = UNIT_POS_Y * parts;
            total = shared[first as usize];
            for part in 1..parts {
                total = joined(total, shared[(first + part) as usize], join);
            }
        } else {
            let mut half = comptime!(group.units / 2).runtime();
            while half > 0u32 {
                if UNIT_POS_X < half {
                    let other = shared[(UNIT_POS + half) as usize];
                    shared[UNIT_POS as usize] = joined(shared[UNIT_POS as usize], other, join);
                }
                sync_cube();
                half /= 2u32;
            }
            total = shared[(UNIT_POS_Y * parts) as usize];
        }
    }
    total
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use burn::Tensor;
    use burn::tensor::DType;

    use super::*;
    use crate::gpu::Cube;
    use crate::gpu::tensor::{empty, primitive};
    use crate::oracle::{Random, gpu, values};

    #[cube(launch_unchecked)]
    fn sum_and_maximum(numbers: &[f32], out: &mut [f32], rows: usize, #[comptime] group: Group) {
        let row = row(group);
        let mut number = 0.0f32;
        if row < rows {
            number = numbers[row * comptime!(group.units as usize) + UNIT_POS_X as usize];
        }
        let (sum, largest) = (row_sum(number, group), row_max(number, group));
        if row < rows {
            out[2 * row] = sum;
            out[2 * row + 1] = largest;
        }
    }

    /// With planes and without, for rows of one unit to a whole cube's.
    #[test]
    fn rows_are_summed_by_themselves() {
        let Some(device) = gpu() else { return };
        let mut random = Random::new(1);
        for units in [1, 2, 8, 16, 64, 256] {
            for rows in [1, 5, 300] {
                let numbers = random.tensor([rows, units]) + 2.0;
                let on_device = primitive(numbers.clone().to_device(&device));
                let found = Group::of(&on_device, units);
                for group in [found, Group { plane: 0, ..found }] {
                    let out = empty(&on_device, [rows, 2], DType::F32);
                    let (count, dim) = group.launch(&on_device, rows);
                    // SAFETY: the kernel stays below `rows` rows.
                    #[expect(unsafe_code, reason = "a launch without checks of every index")]
                    unsafe {
                        sum_and_maximum::launch_unchecked(
                            &on_device.client,
                            count,
                            dim,
                            on_device.clone().into_buffer_arg(),
                            out.clone().into_buffer_arg(),
                            rows,
                            group,
                        );
                    }
                    let out = values(&Tensor::<2>::from_primitive::<Cube>(out));
                    for (row, numbers) in values(&numbers).chunks_exact(units).enumerate() {
                        let (sum, largest) = (numbers.iter().sum::<f64>(), numbers.iter().copied().fold(0.0, f64::max));
                        assert!((out[2 * row] / sum - 1.0).abs() < 1e-6, "{group:?}: {} for {sum}", out[2 * row]);
                        assert_eq!(out[2 * row + 1], largest, "{group:?}");
                    }
                }
            }
        }
    }
}
