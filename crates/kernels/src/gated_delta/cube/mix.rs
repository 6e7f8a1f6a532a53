//! Decays, the matrices they weigh and the inverse, of one chunk and value head a cube; and their gradients.
//!
//! A sum of `g` between two tokens is added up from one of them to the other, never taken as a difference of longer sums: a small
//! decay beside a strong one keeps its digits.

use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use super::CHUNK;

/// A cube a chunk and head, a unit a token.
fn launch(like: &CubeTensor, chunks: usize) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new_1d(CHUNK as u32);
    (calculate_cube_count_elemwise(&like.client, chunks * CHUNK, dim), dim)
}

/// From `k̂·k̂ᵀ`, `q̂·k̂ᵀ`, g and beta: `(I + M)⁻¹` and `P`; `e^G` and `F`.
///
/// Bytes: 2 matrices of 64 in, 2 out; 90 thousand operations and 4 thousand exponentials: bound by memory, if the cubes'
/// shared memory (16 KiB each) leaves enough of them on a multiprocessor.
pub(super) fn mixed(inputs: [&CubeTensor; 4], matrices: &[CubeTensor; 2], gates: &[CubeTensor; 2]) {
    let [kk, qk, g, beta] = inputs.map(|input| input.clone().into_buffer_arg());
    let chunks = inputs[2].meta.num_elements() / CHUNK;
    let (count, dim) = launch(inputs[0], chunks);
    // SAFETY: a cube reads and writes the matrices and gates of its chunk, and ends beyond the last one.
    #[expect(unsafe_code, reason = "a launch without checks of every index")]
    unsafe {
        mix::launch_unchecked(
            &inputs[0].client,
            count,
            dim,
            kk,
            qk,
            g,
            beta,
            matrices[0].clone().into_buffer_arg(),
            matrices[1].clone().into_buffer_arg(),
            gates[0].clone().into_buffer_arg(),
            gates[1].clone().into_buffer_arg(),
            chunks,
            CHUNK,
        );
    }
}

#[cube(launch_unchecked)]
fn mix(
    kk: &[f32],
    qk: &[f32],
    g: &[f32],
    beta: &[f32],
    inverse: &mut [f32],
    weights: &mut [f32],
    reach: &mut [f32],
    remains: &mut [f32],
    chunks: usize,
    #[comptime] n: usize,
) {
    // The same for all units of a cube: none of them waits for one that has left.
    if CUBE_POS >= chunks {
        terminate!();
    }
    let (gates, first) = (CUBE_POS * n, CUBE_POS * comptime!(n * n));
    let column = UNIT_POS as usize;
    let mut rows = Shared::<[f32]>::new_slice(comptime!(n * n));
    let mut sum = 0.0f32;
    for row in 0..n {
        let at = row * n + column;
        let mut decay = 0.0f32;
        if row > column {
            sum += g[gates + row];
        }
        if row >= column {
            decay = sum.exp();
        }
        weights[first + at] = qk[first + at] * decay;
        rows[at] = select(row > column, beta[gates + row] * kk[first + at] * decay, 0.0f32);
    }
    remains[gates + column] = sum.exp();
    let mut until = 0.0f32;
    for row in 0..column + 1 {
        until += g[gates + row];
    }
    reach[gates + column] = until.exp();
    sync_cube();
    // Each unit solves for its own column, which no other reads.
    for row in 0..n {
        let mut value = select(row == column, 1.0f32, 0.0f32);
        for before in column..row {
            value -= rows[row * n + before] * inverse[first + before * n + column];
        }
        inverse[first + row * n + column] = value;
    }
}

/// From the gradients of `-M` (before it is cut to below the diagonal) and of P, the overlaps, and what else gives `G`
/// (`reads`, `fades` a token and `whole` a chunk): those of the overlaps; of g, and of beta as far as it comes from M.
pub(super) fn mixed_backward(
    inputs: &[CubeTensor; 7],
    gates: [&CubeTensor; 3],
    matrices: &[CubeTensor; 2],
    out: &[CubeTensor; 2],
) {
    let chunks = gates[0].meta.num_elements() / CHUNK;
    let (count, dim) = launch(&inputs[0], chunks);
    let [dmix, dweights, kk, qk, reads, fades, whole] = inputs.each_ref().map(|input| input.clone().into_buffer_arg());
    let [g, beta, reach] = gates.map(|gate| gate.clone().into_buffer_arg());
    // SAFETY: as in `mixed`.
    #[expect(unsafe_code, reason = "a launch without checks of every index")]
    unsafe {
        mix_backward::launch_unchecked(
            &inputs[0].client,
            count,
            dim,
            dmix,
            dweights,
            kk,
            qk,
            reads,
            fades,
            whole,
            g,
            beta,
            reach,
            matrices[0].clone().into_buffer_arg(),
            matrices[1].clone().into_buffer_arg(),
            out[0].clone().into_buffer_arg(),
            out[1].clone().into_buffer_arg(),
            chunks,
            CHUNK,
        );
    }
}

#[cube(launch_unchecked)]
fn mix_backward(
    dmix: &[f32],
    dweights: &[f32],
    kk: &[f32],
    qk: &[f32],
    reads: &[f32],
    fades: &[f32],
    whole: &[f32],
    g: &[f32],
    beta: &[f32],
    reach: &[f32],
    dkk: &mut [f32],
    dqk: &mut [f32],
    dg: &mut [f32],
    dbeta: &mut [f32],
    chunks: usize,
    #[comptime] n: usize,
) {
    if CUBE_POS >= chunks {
        terminate!();
    }
    let (gates, first) = (CUBE_POS * n, CUBE_POS * comptime!(n * n));
    let unit = UNIT_POS as usize;
    let mut sums = Shared::<[f32]>::new_slice(n);
    // Down the column: the gradients of the overlaps, and what `G` of the column loses.
    let mut sum = 0.0f32;
    let mut lost = 0.0f32;
    for row in 0..n {
        let at = first + row * n + unit;
        let mut of_keys = 0.0f32;
        let mut of_queries = 0.0f32;
        if row >= unit {
            if row > unit {
                sum += g[gates + row];
            }
            let decay = sum.exp();
            of_queries = dweights[at] * decay;
            if row > unit {
                of_keys = -dmix[at] * beta[gates + row] * decay;
                lost += of_keys * kk[at] + of_queries * qk[at];
            }
        }
        dkk[at] = of_keys;
        dqk[at] = of_queries;
    }
    // Along the row, backwards: what `G` and beta of the row get.
    let mut sum = 0.0f32;
    let mut gained = 0.0f32;
    let mut of_beta = 0.0f32;
    for step in 0..unit {
        let column = unit - 1 - step;
        sum += g[gates + column + 1];
        let at = first + unit * n + column;
        let decay = sum.exp();
        let of_keys = -dmix[at] * kk[at] * decay;
        of_beta += of_keys;
        gained += of_keys * beta[gates + unit] + dweights[at] * decay * qk[at];
    }
    dbeta[gates + unit] = of_beta;
    // A later token's g is part of every `G` from it on.
    sums[unit] = gained - lost + reads[gates + unit] - fades[gates + unit];
    sync_cube();
    let mut total = whole[CUBE_POS] * reach[gates + comptime!(n - 1)];
    for token in 0..n {
        total += fades[gates + token];
        if token >= unit {
            total += sums[token];
        }
    }
    dg[gates + unit] = total;
}
