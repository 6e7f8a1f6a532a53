//! The output and the log-sum-exp of each row, in one walk along the keys (FlashAttention-2, arXiv 2307.08691, algorithm 1).
//!
//! Sums of a row are kept relative to a number `m` that follows its largest score. Usually it is the largest so far; here it
//! moves only when the largest passes it by more than [`SLACK`], because sums in fragments can be rescaled only by way of
//! shared memory: weights stay below `e⁸`, which f32 sums and every 16-bit type hold with their full precision, and after the
//! first strips of a row almost no strip rescales.
//!
//! FLOP: `4·d` a visible pair of query head and key, and half a cube's tokens by a strip more on the diagonal; 8B (32 heads of
//! 128) at 2,048 tokens: 0.60 GFLOP a token. Bytes: queries and output once, keys and values once a piece from the cache. What
//! should bound it: [`super::tile`]; 2.2 us a token on an H100.

use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::cells::{
    Join, cell_column, cell_row, lane, new_numbers, new_scores, new_weights, over_row, read_cells, sync_team,
    write_cells,
};
use super::panel::{brought, fetch, own_panel, panel, piece, put};
use super::product::{accumulate, scores};
use super::sums::{scale_rows, write_rows, zero_sums};
use super::tile::Tile;

/// How far above `m` a score may be. In the exponent: weights up to `e⁸`.
const SLACK: f32 = 8.0;
/// Below every score: `m` of a row that has seen no key yet.
pub(super) const NONE: f32 = -1e30;

/// `q` and `out` `[T, N, d]`, `k` and `v` `[T, K, d]`, `lse` `[T, N]`; `window` in tokens, at most those of the batch.
#[cube(launch_unchecked)]
pub(super) fn forward<E: Float, N: Size>(
    q: &[Vector<E, N>],
    k: &[Vector<E, N>],
    v: &[Vector<E, N>],
    pieces: &[u32],
    out: &mut [Vector<E, N>],
    lse: &mut [f32],
    kv_heads: usize,
    window: usize,
    scale: f32,
    #[comptime] group: usize,
    #[comptime] tile: Tile,
    #[define(E)] _dtype: ElemType,
) {
    let piece = piece(pieces, kv_heads, group);
    let queries = piece.queries;
    let keys = piece.keys;
    let first = piece.first;
    let strip = comptime!(tile.strip);
    let q_own = own_panel::<E, N>(q, &queries, first, comptime!(tile.rows()), tile);
    let mut k_strip = panel::<E, N>(strip, tile);
    let mut v_strip = panel::<E, N>(strip, tile);
    let mut scored = new_scores(tile);
    let mut weights = new_weights::<E>(tile);
    let mut factors = new_numbers(comptime!(tile.rows()));
    let mut exchange = new_numbers(comptime!(tile.units()));

    // The row of this unit's cells, and the keys it sees; none beyond the sequence.
    let own = cell_row(tile);
    let row = first + own;
    let token = row / group;
    let inside = row < queries.len;
    let end = select(inside, token + 1, 0usize);
    let oldest = token + 1 - min(window, token + 1);

    // The keys that any row of the cube sees.
    let last = min(first + comptime!(tile.rows()), queries.len) - 1;
    let all_end = last / group + 1;
    let first_token = first / group;
    let mut at = (first_token + 1 - min(window, first_token + 1)) / strip * strip;

    let mut sums = zero_sums::<N>(tile);
    let mut highest = f32::new(NONE);
    let mut total = f32::new(0.0);
    let mut cells = Array::<f32>::new(comptime!(tile.cells()));
    let mut next_k = brought::<E, N>(strip, tile);
    let mut next_v = brought::<E, N>(strip, tile);
    fetch::<E, N>(&mut next_k, k, &keys, at, strip, tile);
    while at < all_end {
        // All have left the keys of the strip before: they wrote its weights, and met, after reading them.
        put::<E, N>(&next_k, &mut k_strip, strip, tile);
        fetch::<E, N>(&mut next_v, v, &keys, at, strip, tile);
        sync_cube();
        scores::<E, N>(&q_own, &k_strip, &mut scored, tile);
        sync_team(tile);
        read_cells(&mut cells, &scored, tile);
        let mut largest = f32::new(NONE);
        #[unroll]
        for cell in 0..comptime!(tile.cells()) {
            let key = at + cell_column(cell, tile);
            cells[cell] = select(key >= oldest && key < end, cells[cell] * scale, NONE);
            largest = max(largest, cells[cell]);
        }
        let largest = over_row(largest, &mut exchange, Join::Max, tile);
        let above = select(largest > highest + SLACK, largest, highest);
        let factor = (highest - above).exp();
        // So that what is not seen weighs nothing in a row that sees nothing either.
        let base = max(above, 0.5f32 * NONE);
        let mut of_strip = f32::new(0.0);
        #[unroll]
        for cell in 0..comptime!(tile.cells()) {
            cells[cell] = (cells[cell] - base).exp();
            of_strip += cells[cell];
        }
        write_cells::<E>(&cells, &mut weights, tile);
        total = total * factor + of_strip;
        // A row that has no sums yet has none to rescale.
        let moved = above > highest && highest > NONE;
        highest = above;
        if lane(tile) == 0usize {
            factors[own] = factor;
        }
        put::<E, N>(&next_v, &mut v_strip, strip, tile);
        at += strip;
        fetch::<E, N>(&mut next_k, k, &keys, at, strip, tile);
        sync_cube();
        scale_rows::<N>(&mut sums, &factors, moved, &mut scored, tile);
        accumulate::<E, N>(&mut sums, &weights, &v_strip, tile);
    }

    let total = over_row(total, &mut exchange, Join::Sum, tile);
    sync_cube();
    if lane(tile) == 0usize {
        factors[own] = 1.0f32 / total;
        if inside {
            lse[queries.place(row)] = highest + total.ln();
        }
    }
    sync_cube();
    scale_rows::<N>(&mut sums, &factors, true, &mut scored, tile);
    write_rows::<E, N>(&mut sums, out, &queries, first, &mut scored, tile);
}
