//! Scores and weights of a team on their way between two products: which unit has which, and what units of a row make of them.

use cubecl::prelude::*;

use super::tile::{ALIGNMENT, Tile};

/// Cells that a unit of a plane reads at once.
const RUN: usize = 4;

/// Row of the cube's own that the unit has cells of.
#[cube]
pub(super) fn cell_row(#[comptime] tile: Tile) -> usize {
    UNIT_POS_Y as usize * comptime!(tile.team_rows) + UNIT_POS_X as usize / comptime!(tile.lanes())
}

/// Which of its row's units this is.
#[cube]
pub(super) fn lane(#[comptime] tile: Tile) -> usize {
    UNIT_POS_X as usize % comptime!(tile.lanes())
}

/// Cells side by side that are one unit's, before those of the next.
fn run(tile: Tile) -> usize {
    if tile.cores { RUN } else { 1 }
}

/// Column of the unit's cell `at`; units of a row take turns.
#[cube]
pub(super) fn cell_column(#[comptime] at: usize, #[comptime] tile: Tile) -> usize {
    let run = comptime!(run(tile));
    (lane(tile) + comptime!(at / run * tile.lanes())) * run + comptime!(at % run)
}

/// Scores of the cube's rows, not written yet.
#[cube]
pub(super) fn new_scores(#[comptime] tile: Tile) -> Shared<[f32]> {
    Shared::<[f32]>::new_aligned_slice(comptime!(tile.rows() * tile.score_stride()), ALIGNMENT)
}

/// Weights of the cube's rows, not written yet.
#[cube]
pub(super) fn new_weights<E: Float>(#[comptime] tile: Tile) -> Shared<[E]> {
    Shared::<[E]>::new_aligned_slice(comptime!(tile.rows() * tile.weight_stride()), ALIGNMENT)
}

/// Numbers for a list of rows, not written yet.
#[cube]
pub(super) fn new_numbers(#[comptime] len: usize) -> Shared<[f32]> {
    Shared::<[f32]>::new_aligned_slice(len, ALIGNMENT)
}

/// The unit's cells of the scores.
#[cube]
pub(super) fn read_cells(cells: &mut Array<f32>, scores: &Shared<[f32]>, #[comptime] tile: Tile) {
    let first = cell_row(tile) * comptime!(tile.score_stride());
    if comptime!(tile.cores) {
        let size!(W) = RUN;
        let runs = scores.as_vectorized().with_vector_size::<W>();
        #[unroll]
        for at in 0..comptime!(tile.cells() / RUN) {
            let run = runs[(first + cell_column(comptime!(at * RUN), tile)) / RUN];
            #[unroll]
            for part in 0..RUN {
                cells[comptime!(at * RUN + part)] = run.extract(part);
            }
        }
    } else {
        #[unroll]
        for at in 0..comptime!(tile.cells()) {
            cells[at] = scores[first + cell_column(at, tile)];
        }
    }
}

/// Writes the unit's cells as weights of the next product.
#[cube]
pub(super) fn write_cells<E: Float>(cells: &Array<f32>, weights: &mut Shared<[E]>, #[comptime] tile: Tile) {
    let first = cell_row(tile) * comptime!(tile.weight_stride());
    if comptime!(tile.cores) {
        let size!(W) = RUN;
        let runs = weights.as_vectorized_mut().with_vector_size_mut::<W>();
        #[unroll]
        for at in 0..comptime!(tile.cells() / RUN) {
            let mut run = Vector::<f32, W>::new(0.0f32);
            #[unroll]
            for part in 0..RUN {
                run.insert(part, cells[comptime!(at * RUN + part)]);
            }
            runs[(first + cell_column(comptime!(at * RUN), tile)) / RUN] = Vector::cast_from(run);
        }
    } else {
        #[unroll]
        for at in 0..comptime!(tile.cells()) {
            weights[first + cell_column(at, tile)] = E::cast_from(cells[at]);
        }
    }
}

/// Waits until the team's units have written what others of the team read.
#[cube]
pub(super) fn sync_team(#[comptime] tile: Tile) {
    if comptime!(tile.cores) {
        sync_plane();
    } else {
        sync_cube();
    }
}

/// What is made of the numbers that the units of a row have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Join {
    Sum,
    Max,
}

#[cube]
fn joined(one: f32, other: f32, #[comptime] join: Join) -> f32 {
    if comptime!(join == Join::Sum) { one + other } else { max(one, other) }
}

/// Over the units of the row, the same for all of them; through `exchange`, a number a unit, where units are no plane.
#[cube]
pub(super) fn over_row(
    value: f32,
    exchange: &mut Shared<[f32]>,
    #[comptime] join: Join,
    #[comptime] tile: Tile,
) -> f32 {
    let mut total = value;
    let lanes = comptime!(tile.lanes());
    if comptime!(lanes > 1 && tile.cores) {
        #[unroll]
        for step in 0..comptime!(lanes.trailing_zeros()) {
            total = joined(total, plane_shuffle_xor(total, 1u32 << step), join);
        }
    }
    if comptime!(lanes > 1 && !tile.cores) {
        exchange[UNIT_POS as usize] = value;
        sync_cube();
        let first = UNIT_POS as usize / lanes * lanes;
        total = exchange[first];
        #[unroll]
        for lane in 1..lanes {
            total = joined(total, exchange[first + lane], join);
        }
        // The next exchange writes what this one still reads.
        sync_cube();
    }
    total
}
