//! `√Σ g²` on the device: sums of each tensor's squares in parts, then one sum of all parts.

use burn::Tensor;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::super::norm::numbers;
use crate::gpu::Cube;
use crate::gpu::float::sum;
use crate::gpu::group::{Group, row, row_sum};
use crate::gpu::many::{launches, plain};
use crate::gpu::tensor::{CUBE_UNITS, empty};

/// Sums that a tensor's squares are added up in.
const PARTS: usize = 16;
/// Most tensors a launch.
const TOGETHER: usize = 64;

/// The norm, and the sum of the witnesses' squares: a finite number where all of them are.
#[derive(Clone, Debug)]
pub(in super::super) struct Total(CubeTensor);

impl Total {
    /// `[norm, witnesses]`.
    pub(in super::super) fn numbers(&self) -> Tensor<1> {
        Tensor::from_primitive::<Cube>(self.0.clone())
    }

    /// The same on the host.
    pub(in super::super) fn read(&self) -> [f64; 2] {
        numbers(self.numbers().into_data())
    }

    /// # Panics
    /// If what it is made of could not be queued: a launch whose input was never made is none itself, down to here.
    pub(in super::super) fn check_queued(&self) {
        if let Err(error) = self.0.client.check([&self.0.handle]) {
            panic!("a step was not queued: {error:?}");
        }
    }

    pub(super) fn buffer(&self) -> CubeTensor {
        self.0.clone()
    }
}

/// `None` when there are no numbers, or a tensor is not an f32 one of a GPU.
///
/// Bytes: the gradients in, once.
pub(in super::super) fn total(gradients: &[&Tensor<1>], witnesses: &[&Tensor<1>]) -> Option<Total> {
    let full = |tensors: &[&Tensor<1>]| -> Option<Vec<CubeTensor>> {
        tensors.iter().filter(|tensor| tensor.dims() != [0]).map(|tensor| plain(tensor)).collect()
    };
    let (gradients, witnesses) = (full(gradients)?, full(witnesses)?);
    let like = gradients.first()?.clone();
    let count = gradients.len() + witnesses.len();
    let sums = empty(&like, [count, PARTS], DType::F32);
    let mut first = 0;
    for tensors in [&gradients, &witnesses] {
        first = squares(tensors, &sums, first);
    }
    let result = empty(&like, [2], DType::F32);
    let group = Group::of(&like, CUBE_UNITS as usize);
    let (cubes, dim) = group.launch(&like, 1);
    // SAFETY: one row of units walks the sums, and its first writes the two numbers.
    #[expect(unsafe_code, reason = "a launch without checks of every index")]
    unsafe {
        sums_of_sums::launch_unchecked(
            &like.client,
            cubes,
            dim,
            sums.into_buffer_arg(),
            result.clone().into_buffer_arg(),
            gradients.len() * PARTS,
            count * PARTS,
            group,
        );
    }
    Some(Total(result))
}

/// Writes the sums of each tensor's squares into rows from `first` on; the row behind the last of them.
fn squares(tensors: &[CubeTensor], sums: &CubeTensor, first: usize) -> usize {
    let lengths: Vec<usize> = tensors.iter().map(|tensor| tensor.meta.num_elements()).collect();
    let mut row = first;
    for launch in launches(sums, &lengths, TOGETHER, 1, 1) {
        let widths: Vec<usize> = launch.tensors.iter().map(|&at| lengths[at] / launch.vector).collect();
        let longest = widths.iter().copied().max().unwrap_or(0);
        let group = Group::of(sums, longest.div_ceil(PARTS));
        let (cubes, dim) = group.launch(sums, widths.len() * PARTS);
        // SAFETY: the kernel reads vectors below each width and writes `PARTS` sums a tensor from `row` on.
        #[expect(unsafe_code, reason = "a launch without checks of every index")]
        unsafe {
            sums_of_squares::launch_unchecked(
                &sums.client,
                cubes,
                dim,
                launch.vector,
                launch.tensors.iter().map(|&at| tensors[at].clone().into_buffer_arg()).collect(),
                widths.into_iter().collect(),
                sums.clone().into_buffer_arg(),
                row * PARTS,
                PARTS,
                group,
            );
        }
        row += launch.tensors.len();
    }
    row
}

#[cube(launch_unchecked)]
fn sums_of_squares<N: Size>(
    tensors: &Sequence<Box<[Vector<f32, N>]>>,
    widths: &Sequence<usize>,
    sums: &mut [f32],
    first: usize,
    #[comptime] parts: usize,
    #[comptime] group: Group,
) {
    let row = row(group);
    let tensor = row / parts;
    let start = (row - tensor * parts) * comptime!(group.units as usize) + UNIT_POS_X as usize;
    let step = comptime!(group.units as usize * parts);
    let mut total = Vector::<f32, N>::new(0.0f32);
    #[unroll]
    for index in 0..tensors.len() {
        if tensor == index {
            let mut at = start;
            while at < widths[index] {
                let value = tensors[index][at];
                total += value * value;
                at += step;
            }
        }
    }
    let total = row_sum(sum::<N>(total), group);
    if tensor < tensors.len() && UNIT_POS_X == 0u32 {
        sums[first + row] = total;
    }
}

#[cube(launch_unchecked)]
fn sums_of_sums(sums: &[f32], result: &mut [f32], gradients: usize, all: usize, #[comptime] group: Group) {
    let step = comptime!(group.units as usize);
    let mut of_gradients = 0.0f32;
    let mut of_witnesses = 0.0f32;
    let mut at = UNIT_POS_X as usize;
    while at < all {
        let part = sums[at];
        if at < gradients {
            of_gradients += part;
        } else {
            of_witnesses += part;
        }
        at += step;
    }
    let of_gradients = row_sum(of_gradients, group);
    let of_witnesses = row_sum(of_witnesses, group);
    if row(group) == 0usize && UNIT_POS_X == 0u32 {
        result[0] = of_gradients.sqrt();
        result[1] = of_witnesses;
    }
}
