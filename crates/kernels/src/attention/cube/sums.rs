//! What a team adds up: rows of outputs or gradients, in registers from the first strip to the last.
//!
//! Which unit holds which number of a fragment is not known, so that rows of fragments are reached by way of the team's scores,
//! in shared memory.

use cubecl::cmma::{self, MatrixIdent, MatrixLayout};
use cubecl::prelude::*;

use super::cells::{cell_column, cell_row, lane, sync_team};
use super::panel::Rows;
use super::tile::{ACROSS, DOWN, FRAGMENT, Tile};

/// Sums of a team, `[team_rows, width]` in f32: fragments, row by row, or vectors, row by row.
#[derive(CubeType)]
pub(super) struct Sums<N: Size> {
    pub(super) fragments: Sequence<cmma::Matrix<f32>>,
    pub(super) vectors: Array<Vector<f32, N>>,
}

impl Tile {
    pub(super) fn fragment_rows(self) -> usize {
        self.team_rows / FRAGMENT
    }

    pub(super) fn fragment_columns(self) -> usize {
        self.width() / FRAGMENT
    }

    /// Rows and vectors of columns that a unit has of the sums.
    pub(super) fn unit_rows(self) -> usize {
        self.team_rows / DOWN
    }

    pub(super) fn unit_columns(self) -> usize {
        self.width() / self.vector / ACROSS
    }

    /// Fragments or vectors of [`Sums`].
    pub(super) fn fragments(self) -> usize {
        if self.cores { self.fragment_rows() * self.fragment_columns() } else { 0 }
    }

    pub(super) fn vectors(self) -> usize {
        if self.cores { 1 } else { self.unit_rows() * self.unit_columns() }
    }
}

/// A fragment of sums.
#[cube]
pub(super) fn zero_fragment() -> cmma::Matrix<f32> {
    cmma::Matrix::<f32>::from_value(
        MatrixIdent::Accumulator,
        FRAGMENT,
        FRAGMENT,
        FRAGMENT,
        MatrixLayout::Undefined,
        0.0f32,
    )
}

#[cube]
pub(super) fn zero_sums<N: Size>(#[comptime] tile: Tile) -> Sums<N> {
    let mut fragments = Sequence::<cmma::Matrix<f32>>::new();
    #[unroll]
    for _ in 0..comptime!(tile.fragments()) {
        fragments.push(zero_fragment());
    }
    let mut vectors = Array::<Vector<f32, N>>::new(comptime!(tile.vectors()));
    #[unroll]
    for at in 0..comptime!(tile.vectors()) {
        vectors[at] = Vector::new(0.0f32);
    }
    Sums::<N> { fragments, vectors }
}

/// Strips of columns of fragments that pass through the scores on their way.
fn passes(tile: Tile) -> usize {
    tile.width().div_ceil(tile.strip)
}

/// Fragment at (`row`, `column`) of pass `pass`, if there is one.
fn fragment_of(tile: Tile, pass: usize, row: usize, column: usize) -> Option<usize> {
    let column = pass * (tile.strip / FRAGMENT) + column;
    (column < tile.fragment_columns()).then_some(row * tile.fragment_columns() + column)
}

/// Columns `pass·strip..` of the sums into the team's scores.
#[cube]
fn spill<N: Size>(sums: &mut Sums<N>, scores: &mut Shared<[f32]>, #[comptime] pass: usize, #[comptime] tile: Tile) {
    let stride = comptime!(tile.score_stride());
    let first = UNIT_POS_Y as usize * comptime!(tile.team_rows);
    #[unroll]
    for row in 0..comptime!(tile.fragment_rows()) {
        #[unroll]
        for column in 0..comptime!(tile.strip / FRAGMENT) {
            let found = comptime!(fragment_of(tile, pass, row, column));
            if comptime!(found.is_some()) {
                let from = (first + comptime!(row * FRAGMENT)) * stride + comptime!(column * FRAGMENT);
                let len = scores.len();
                cmma::store(
                    &mut scores[from..len],
                    sums.fragments.index(comptime!(found.unwrap_or(0))),
                    comptime!(stride as u32),
                    MatrixLayout::RowMajor,
                );
            }
        }
    }
}

/// The same columns back.
#[cube]
fn refill<N: Size>(sums: &mut Sums<N>, scores: &mut Shared<[f32]>, #[comptime] pass: usize, #[comptime] tile: Tile) {
    let stride = comptime!(tile.score_stride());
    let first = UNIT_POS_Y as usize * comptime!(tile.team_rows);
    #[unroll]
    for row in 0..comptime!(tile.fragment_rows()) {
        #[unroll]
        for column in 0..comptime!(tile.strip / FRAGMENT) {
            let found = comptime!(fragment_of(tile, pass, row, column));
            if comptime!(found.is_some()) {
                let from = (first + comptime!(row * FRAGMENT)) * stride + comptime!(column * FRAGMENT);
                cmma::load_with_layout(
                    sums.fragments.index_mut(comptime!(found.unwrap_or(0))),
                    &scores[from..scores.len()],
                    comptime!(stride as u32),
                    MatrixLayout::RowMajor,
                );
            }
        }
    }
}

/// Multiplies the rows of the sums by `factors`, a number a row of the cube. `wanted`: whether a factor of the unit's row is
/// not 1. With fragments a team skips it when none of its units wants it; the team's scores are overwritten.
#[cube]
pub(super) fn scale_rows<N: Size>(
    sums: &mut Sums<N>,
    factors: &Shared<[f32]>,
    wanted: bool,
    scores: &mut Shared<[f32]>,
    #[comptime] tile: Tile,
) {
    if comptime!(tile.cores) {
        if plane_any(wanted) {
            let row = cell_row(tile);
            let factor = factors[row];
            #[unroll]
            for pass in 0..comptime!(passes(tile)) {
                spill::<N>(sums, scores, pass, tile);
                sync_team(tile);
                let first = row * comptime!(tile.score_stride());
                #[unroll]
                for cell in 0..comptime!(tile.cells()) {
                    scores[first + cell_column(cell, tile)] *= factor;
                }
                sync_team(tile);
                refill::<N>(sums, scores, pass, tile);
                sync_team(tile);
            }
        }
    } else {
        let row = UNIT_POS_Y as usize * comptime!(tile.team_rows) + UNIT_POS_X as usize / ACROSS;
        #[unroll]
        for down in 0..comptime!(tile.unit_rows()) {
            let factor = Vector::<f32, N>::new(factors[row + comptime!(down * DOWN)]);
            #[unroll]
            for across in 0..comptime!(tile.unit_columns()) {
                sums.vectors[comptime!(down * tile.unit_columns() + across)] *= factor;
            }
        }
    }
}

/// Writes the sums as rows `first..` of `out`, those that the sequence has; the team's scores are overwritten.
#[cube]
pub(super) fn write_rows<E: Float, N: Size>(
    sums: &mut Sums<N>,
    out: &mut [Vector<E, N>],
    to: &Rows,
    first: usize,
    scores: &mut Shared<[f32]>,
    #[comptime] tile: Tile,
) {
    let vectors = comptime!(tile.size / tile.vector);
    if comptime!(tile.cores) {
        let row = cell_row(tile);
        let of_strip = comptime!(tile.strip / tile.vector);
        let lane = lane(tile);
        #[unroll]
        for pass in 0..comptime!(passes(tile)) {
            spill::<N>(sums, scores, pass, tile);
            sync_team(tile);
            #[unroll]
            for step in 0..comptime!(of_strip.div_ceil(tile.lanes())) {
                let at = lane + comptime!(step * tile.lanes());
                let column = comptime!(pass * of_strip) + at;
                if first + row < to.len && at < of_strip && column < vectors {
                    let mut vector = Vector::<E, N>::new(E::new(0.0f32));
                    #[unroll]
                    for part in 0..comptime!(tile.vector) {
                        let place = row * comptime!(tile.score_stride()) + at * comptime!(tile.vector) + part;
                        vector.insert(part, E::cast_from(scores[place]));
                    }
                    out[to.place(first + row) * vectors + column] = vector;
                }
            }
            sync_team(tile);
        }
    } else {
        let row = UNIT_POS_Y as usize * comptime!(tile.team_rows) + UNIT_POS_X as usize / ACROSS;
        #[unroll]
        for down in 0..comptime!(tile.unit_rows()) {
            let own = first + row + comptime!(down * DOWN);
            #[unroll]
            for across in 0..comptime!(tile.unit_columns()) {
                let column = UNIT_POS_X as usize % ACROSS + comptime!(across * ACROSS);
                if own < to.len && column < vectors {
                    let sum = sums.vectors[comptime!(down * tile.unit_columns() + across)];
                    out[to.place(own) * vectors + column] = Vector::cast_from(sum);
                }
            }
        }
    }
}
