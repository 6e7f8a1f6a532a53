//! The sums on a GPU. Bytes: 8 an element in, 4 out.

use burn::Tensor;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::gpu::many::{ends, launches, plain};
use crate::gpu::tensor::{dense, elementwise};
use crate::gpu::{Cube, Operand};

/// Most pairs a launch.
const TOGETHER: usize = 64;

/// The sums as they were when a tensor is not an f32 one of a GPU.
pub(super) fn accumulate(sums: Vec<Tensor<1>>, more: &[Tensor<1>]) -> Result<Vec<Tensor<1>>, Vec<Tensor<1>>> {
    let plain_more: Option<Vec<CubeTensor>> = more.iter().map(plain).collect();
    let Some(more) = plain_more.filter(|_| sums.iter().all(|sum| plain(sum).is_some())) else { return Err(sums) };
    let Some(like) = more.first() else { return Ok(sums) };
    let sums: Vec<CubeTensor> = sums.into_iter().map(own).collect();
    let lengths: Vec<usize> = more.iter().map(|tensor| tensor.meta.num_elements()).collect();
    for launch in launches(like, &lengths, TOGETHER, 2, 0) {
        let ends = ends(&launch, &lengths);
        let (cubes, dim) = elementwise(like, ends.last().copied().unwrap_or(0));
        let buffers = |of: &[CubeTensor]| launch.tensors.iter().map(|&at| of[at].clone().into_buffer_arg()).collect();
        // SAFETY: the kernel ends beyond the last vector; a unit reads its place before it writes it.
        #[expect(unsafe_code, reason = "a launch without checks of every index")]
        unsafe {
            add_pairs::launch_unchecked(
                &like.client,
                cubes,
                dim,
                launch.vector,
                buffers(&sums),
                buffers(&more),
                ends.into_iter().collect(),
            );
        }
    }
    Ok(sums.into_iter().map(Tensor::from_primitive::<Cube>).collect())
}

/// The tensor in memory that nobody else holds.
fn own(sum: Tensor<1>) -> CubeTensor {
    let sum = sum.try_into_primitive::<Cube>().expect("invariant: a tensor of a GPU");
    let sum = dense(&Operand::constant(sum));
    if sum.can_mut() || sum.meta.num_elements() == 0 { sum } else { sum.copy() }
}

#[cube(launch_unchecked)]
fn add_pairs<N: Size>(
    sums: &mut Sequence<Box<[Vector<f32, N>]>>,
    more: &Sequence<Box<[Vector<f32, N>]>>,
    ends: &Sequence<usize>,
) {
    let mut start = 0usize.runtime();
    #[unroll]
    for index in 0..more.len() {
        let end = ends[index];
        if ABSOLUTE_POS >= start && ABSOLUTE_POS < end {
            let at = ABSOLUTE_POS - start;
            let sum = sums.index_mut(index);
            sum[at] = sum[at] + more[index][at];
        }
        start = end;
    }
}
