//! The two products of a team, each with tensor cores or without: scores of its own rows with a strip, and weights times a
//! strip added to its sums.
//!
//! Tensor cores: fragments of 16·16, operands in 16 bits from shared memory, sums in f32 in registers. Without: units of a team
//! hold a quarter of its rows by every eighth vector of columns, and multiply from shared memory.

use cubecl::cmma::{self, MatrixIdent, MatrixLayout};
use cubecl::prelude::*;

use super::sums::{Sums, zero_fragment};
use super::tile::{ACROSS, DOWN, FRAGMENT, Tile};
use crate::gpu::float::sum;

/// The team's rows of `own·stripᵀ`, `[team_rows, strip]` in f32.
#[cube]
pub(super) fn scores<E: Float, N: Size>(
    own: &Shared<[Vector<E, N>]>,
    strip: &Shared<[Vector<E, N>]>,
    out: &mut Shared<[f32]>,
    #[comptime] tile: Tile,
) {
    if comptime!(tile.cores) {
        scores_of_fragments::<E, N>(own, strip, out, tile);
    } else {
        scores_of_vectors::<E, N>(own, strip, out, tile);
    }
}

#[cube]
fn scores_of_fragments<E: Float, N: Size>(
    own: &Shared<[Vector<E, N>]>,
    strip: &Shared<[Vector<E, N>]>,
    out: &mut Shared<[f32]>,
    #[comptime] tile: Tile,
) {
    let stride = comptime!(tile.stride());
    let row_numbers = comptime!((stride * tile.vector) as u32);
    let columns = comptime!(tile.strip / FRAGMENT);
    let first = UNIT_POS_Y as usize * comptime!(tile.team_rows);
    let mut sums = Sequence::<cmma::Matrix<f32>>::new();
    #[unroll]
    for _ in 0..comptime!(tile.fragment_rows() * columns) {
        sums.push(zero_fragment());
    }
    #[unroll]
    for depth in 0..comptime!(tile.fragment_columns()) {
        let within = comptime!(depth * FRAGMENT / tile.vector);
        let mut left = Sequence::<cmma::Matrix<Vector<E, N>>>::new();
        #[unroll]
        for row in 0..comptime!(tile.fragment_rows()) {
            let from = (first + comptime!(row * FRAGMENT)) * stride + within;
            left.push(operand::<E, N>(&own[from..own.len()], row_numbers, MatrixIdent::A, MatrixLayout::RowMajor));
        }
        #[unroll]
        for column in 0..columns {
            let from = comptime!(column * FRAGMENT * stride + within);
            let right = operand::<E, N>(&strip[from..strip.len()], row_numbers, MatrixIdent::B, MatrixLayout::ColMajor);
            #[unroll]
            for row in 0..comptime!(tile.fragment_rows()) {
                let sum = sums.index(comptime!(row * columns + column));
                cmma::execute(left.index(row), &right, sum, sum);
            }
        }
    }
    let out_stride = comptime!(tile.score_stride());
    #[unroll]
    for row in 0..comptime!(tile.fragment_rows()) {
        #[unroll]
        for column in 0..columns {
            let from = (first + comptime!(row * FRAGMENT)) * out_stride + comptime!(column * FRAGMENT);
            let len = out.len();
            cmma::store(
                &mut out[from..len],
                sums.index(comptime!(row * columns + column)),
                comptime!(out_stride as u32),
                MatrixLayout::RowMajor,
            );
        }
    }
}

#[cube]
fn operand<E: Float, N: Size>(
    from: &[Vector<E, N>],
    stride: u32,
    #[comptime] ident: MatrixIdent,
    #[comptime] layout: MatrixLayout,
) -> cmma::Matrix<Vector<E, N>> {
    cmma::Matrix::<Vector<E, N>>::from_slice(ident, FRAGMENT, FRAGMENT, FRAGMENT, layout, from, stride)
}

#[cube]
fn scores_of_vectors<E: Float, N: Size>(
    own: &Shared<[Vector<E, N>]>,
    strip: &Shared<[Vector<E, N>]>,
    out: &mut Shared<[f32]>,
    #[comptime] tile: Tile,
) {
    let stride = comptime!(tile.stride());
    let unit_columns = comptime!(tile.strip / ACROSS);
    let row = UNIT_POS_Y as usize * comptime!(tile.team_rows) + UNIT_POS_X as usize / ACROSS;
    let column = UNIT_POS_X as usize % ACROSS;
    let mut sums = Array::<Vector<f32, N>>::new(comptime!(tile.unit_rows() * unit_columns));
    #[unroll]
    for at in 0..comptime!(tile.unit_rows() * unit_columns) {
        sums[at] = Vector::new(0.0f32);
    }
    let mut left = Array::<Vector<f32, N>>::new(comptime!(tile.unit_rows()));
    for depth in 0..comptime!(tile.width() / tile.vector) {
        #[unroll]
        for down in 0..comptime!(tile.unit_rows()) {
            left[down] = Vector::cast_from(own[(row + comptime!(down * DOWN)) * stride + depth]);
        }
        #[unroll]
        for across in 0..unit_columns {
            let right = Vector::<f32, N>::cast_from(strip[(column + comptime!(across * ACROSS)) * stride + depth]);
            #[unroll]
            for down in 0..comptime!(tile.unit_rows()) {
                sums[comptime!(down * unit_columns + across)] += left[down] * right;
            }
        }
    }
    #[unroll]
    for down in 0..comptime!(tile.unit_rows()) {
        #[unroll]
        for across in 0..unit_columns {
            let place =
                (row + comptime!(down * DOWN)) * comptime!(tile.score_stride()) + column + comptime!(across * ACROSS);
            out[place] = sum::<N>(sums[comptime!(down * unit_columns + across)]);
        }
    }
}

/// `sums += weights·strip`, of the team's rows of weights.
#[cube]
pub(super) fn accumulate<E: Float, N: Size>(
    sums: &mut Sums<N>,
    weights: &Shared<[E]>,
    strip: &Shared<[Vector<E, N>]>,
    #[comptime] tile: Tile,
) {
    if comptime!(tile.cores) {
        accumulate_fragments::<E, N>(sums, weights, strip, tile);
    } else {
        accumulate_vectors::<E, N>(sums, weights, strip, tile);
    }
}

#[cube]
fn accumulate_fragments<E: Float, N: Size>(
    sums: &mut Sums<N>,
    weights: &Shared<[E]>,
    strip: &Shared<[Vector<E, N>]>,
    #[comptime] tile: Tile,
) {
    let stride = comptime!(tile.stride());
    let weight_stride = comptime!(tile.weight_stride());
    let columns = comptime!(tile.fragment_columns());
    let first = UNIT_POS_Y as usize * comptime!(tile.team_rows);
    #[unroll]
    for depth in 0..comptime!(tile.strip / FRAGMENT) {
        let mut left = Sequence::<cmma::Matrix<E>>::new();
        #[unroll]
        for row in 0..comptime!(tile.fragment_rows()) {
            let from = (first + comptime!(row * FRAGMENT)) * weight_stride + comptime!(depth * FRAGMENT);
            left.push(cmma::Matrix::<E>::from_slice(
                MatrixIdent::A,
                FRAGMENT,
                FRAGMENT,
                FRAGMENT,
                MatrixLayout::RowMajor,
                &weights[from..weights.len()],
                comptime!(weight_stride as u32),
            ));
        }
        #[unroll]
        for column in 0..columns {
            let from = comptime!(depth * FRAGMENT * stride + column * FRAGMENT / tile.vector);
            let right = operand::<E, N>(
                &strip[from..strip.len()],
                comptime!((stride * tile.vector) as u32),
                MatrixIdent::B,
                MatrixLayout::RowMajor,
            );
            #[unroll]
            for row in 0..comptime!(tile.fragment_rows()) {
                let sum = sums.fragments.index(comptime!(row * columns + column));
                cmma::execute(left.index(row), &right, sum, sum);
            }
        }
    }
}

#[cube]
fn accumulate_vectors<E: Float, N: Size>(
    sums: &mut Sums<N>,
    weights: &Shared<[E]>,
    strip: &Shared<[Vector<E, N>]>,
    #[comptime] tile: Tile,
) {
    let row = UNIT_POS_Y as usize * comptime!(tile.team_rows) + UNIT_POS_X as usize / ACROSS;
    let column = UNIT_POS_X as usize % ACROSS;
    let columns = comptime!(tile.unit_columns());
    let mut left = Array::<f32>::new(comptime!(tile.unit_rows()));
    for depth in 0..comptime!(tile.strip) {
        #[unroll]
        for down in 0..comptime!(tile.unit_rows()) {
            let place = (row + comptime!(down * DOWN)) * comptime!(tile.weight_stride()) + depth;
            left[down] = f32::cast_from(weights[place]);
        }
        #[unroll]
        for across in 0..columns {
            let place = depth * comptime!(tile.stride()) + column + comptime!(across * ACROSS);
            let right = Vector::<f32, N>::cast_from(strip[place]);
            #[unroll]
            for down in 0..comptime!(tile.unit_rows()) {
                sums.vectors[comptime!(down * columns + across)] += Vector::new(left[down]) * right;
            }
        }
    }
}
