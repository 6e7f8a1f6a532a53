//! Gradients of the queries: a walk along the keys that a piece of queries sees.
//!
//! With `p = exp(scale·s - lse)`, `delta = Σ dout·out` and `ds = scale·p ⊙ (dout·vᵀ - delta)`: `dq = ds·k`. Scores are formed
//! again, so a visible pair of query head and key costs `6·d` FLOP, 0.90 GFLOP a token of 8B at 2,048 tokens; bound as said
//! in [`super::tile`], 3.2 us on an H100. Bytes as forwards, and the upstream gradient.

use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::cells::{cell_column, cell_row, new_scores, new_weights, read_cells, sync_team, write_cells};
use super::panel::{brought, fetch, own_panel, panel, piece, put};
use super::product::{accumulate, scores};
use super::sums::{write_rows, zero_sums};
use super::tile::Tile;

/// `q`, `dout` and `dq` `[T, N, d]`, `k` and `v` `[T, K, d]`, `lse` and `delta` `[T, N]`.
#[cube(launch_unchecked)]
pub(super) fn queries_backward<E: Float, N: Size>(
    q: &[Vector<E, N>],
    k: &[Vector<E, N>],
    v: &[Vector<E, N>],
    dout: &[Vector<E, N>],
    lse: &[f32],
    delta: &[f32],
    pieces: &[u32],
    dq: &mut [Vector<E, N>],
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
    let dout_own = own_panel::<E, N>(dout, &queries, first, comptime!(tile.rows()), tile);
    let mut k_strip = panel::<E, N>(strip, tile);
    let mut v_strip = panel::<E, N>(strip, tile);
    let mut scored = new_scores(tile);
    let mut weights = new_weights::<E>(tile);

    let own = cell_row(tile);
    let row = first + own;
    let token = row / group;
    let inside = row < queries.len;
    let end = select(inside, token + 1, 0usize);
    let oldest = token + 1 - min(window, token + 1);
    let place = queries.place(select(inside, row, 0usize));
    let (sum, product) = (lse[place], delta[place]);
    // The weight of a single key is 1 whatever its score: a difference would leave its rounding.
    let slope = select(token - oldest == 0usize, 0.0f32, scale);

    let last = min(first + comptime!(tile.rows()), queries.len) - 1;
    let all_end = last / group + 1;
    let first_token = first / group;
    let mut at = (first_token + 1 - min(window, first_token + 1)) / strip * strip;

    let mut sums = zero_sums::<N>(tile);
    let mut cells = Array::<f32>::new(comptime!(tile.cells()));
    let mut probabilities = Array::<f32>::new(comptime!(tile.cells()));
    let mut next_k = brought::<E, N>(strip, tile);
    let mut next_v = brought::<E, N>(strip, tile);
    fetch::<E, N>(&mut next_k, k, &keys, at, strip, tile);
    fetch::<E, N>(&mut next_v, v, &keys, at, strip, tile);
    while at < all_end {
        sync_cube();
        put::<E, N>(&next_k, &mut k_strip, strip, tile);
        put::<E, N>(&next_v, &mut v_strip, strip, tile);
        sync_cube();
        fetch::<E, N>(&mut next_k, k, &keys, at + strip, strip, tile);
        fetch::<E, N>(&mut next_v, v, &keys, at + strip, strip, tile);
        scores::<E, N>(&q_own, &k_strip, &mut scored, tile);
        sync_team(tile);
        read_cells(&mut probabilities, &scored, tile);
        #[unroll]
        for cell in 0..comptime!(tile.cells()) {
            let key = at + cell_column(cell, tile);
            let weight = (probabilities[cell] * scale - sum).exp();
            probabilities[cell] = select(key >= oldest && key < end, weight * slope, 0.0f32);
        }
        sync_team(tile);
        scores::<E, N>(&dout_own, &v_strip, &mut scored, tile);
        sync_team(tile);
        read_cells(&mut cells, &scored, tile);
        #[unroll]
        for cell in 0..comptime!(tile.cells()) {
            cells[cell] = probabilities[cell] * (cells[cell] - product);
        }
        write_cells::<E>(&cells, &mut weights, tile);
        sync_team(tile);
        accumulate::<E, N>(&mut sums, &weights, &k_strip, tile);
        at += strip;
    }
    sync_cube();
    write_rows::<E, N>(&mut sums, dq, &queries, first, &mut scored, tile);
}
