//! Gradients of keys and values: a walk along the queries that see a piece of keys, of all query heads of the key head, so
//! that no two cubes add to the same numbers and the order of every sum is that of memory.
//!
//! With `p` and `ds` as for the queries: `dv = pᵀ·dout`, `dk = dsᵀ·q`. Rows here are keys: products give `sᵀ` and `dpᵀ` as they
//! are wanted. A visible pair of query head and key costs `8·d` FLOP, 1.2 GFLOP a token of 8B at 2,048 tokens; bound as said in
//! [`super::tile`], 4.3 us on an H100. Heads above 128, whose two sums do not fit the registers of a team, take values and keys
//! in two launches and `10·d`. Bytes: keys, values and both gradients once, queries and upstream gradients once a piece from the
//! cache.

use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::cells::{cell_column, cell_row, new_numbers, new_scores, new_weights, read_cells, sync_team, write_cells};
use super::panel::{Rows, brought, fetch, own_panel, panel, piece, put};
use super::product::{accumulate, scores};
use super::sums::{write_rows, zero_sums};
use super::tile::{Side, Tile};

/// `q` and `dout` `[T, N, d]`, `k`, `v`, `dk` and `dv` `[T, K, d]`, `lse` and `delta` `[T, N]`. What `side` leaves out is not
/// touched.
#[cube(launch_unchecked)]
pub(super) fn keys_backward<E: Float, N: Size>(
    q: &[Vector<E, N>],
    k: &[Vector<E, N>],
    v: &[Vector<E, N>],
    dout: &[Vector<E, N>],
    lse: &[f32],
    delta: &[f32],
    pieces: &[u32],
    dk: &mut [Vector<E, N>],
    dv: &mut [Vector<E, N>],
    kv_heads: usize,
    window: usize,
    scale: f32,
    #[comptime] group: usize,
    #[comptime] side: Side,
    #[comptime] tile: Tile,
    #[define(E)] _dtype: ElemType,
) {
    let piece = piece(pieces, kv_heads, group);
    let queries = piece.queries;
    let keys = piece.keys;
    let first = piece.first;
    let strip = comptime!(tile.strip);
    let k_own = own_panel::<E, N>(k, &keys, first, comptime!(tile.rows()), tile);
    // Not read where only values are wanted.
    let v_own = own_panel::<E, N>(v, &keys, first, comptime!(if side.keys() { tile.rows() } else { 1 }), tile);
    let mut q_strip = panel::<E, N>(strip, tile);
    let mut dout_strip = panel::<E, N>(strip, tile);
    let mut scored = new_scores(tile);
    let mut weights = new_weights::<E>(tile);
    let mut sums_of_rows = new_numbers(strip);
    let mut products_of_rows = new_numbers(strip);

    // The key of this unit's cells, and the rows that see it; none beyond the sequence.
    let own = cell_row(tile);
    let key = first + own;
    let begin = key * group;
    let end = select(key < keys.len, min(begin + window * group, queries.len), 0usize);

    // The rows that see any key of the cube.
    let last = min(first + comptime!(tile.rows()), keys.len) - 1;
    let all_end = min((last + window) * group, queries.len);
    let mut at = first * group / strip * strip;

    let mut dk_sums = zero_sums::<N>(tile);
    let mut dv_sums = zero_sums::<N>(tile);
    let mut cells = Array::<f32>::new(comptime!(tile.cells()));
    let mut probabilities = Array::<f32>::new(comptime!(tile.cells()));
    let mut next_q = brought::<E, N>(strip, tile);
    let mut next_dout = brought::<E, N>(strip, tile);
    fetch::<E, N>(&mut next_q, q, &queries, at, strip, tile);
    fetch::<E, N>(&mut next_dout, dout, &queries, at, strip, tile);
    while at < all_end {
        sync_cube();
        put::<E, N>(&next_q, &mut q_strip, strip, tile);
        put::<E, N>(&next_dout, &mut dout_strip, strip, tile);
        put_rows(&mut sums_of_rows, lse, &queries, at, tile);
        put_rows(&mut products_of_rows, delta, &queries, at, tile);
        sync_cube();
        fetch::<E, N>(&mut next_q, q, &queries, at + strip, strip, tile);
        fetch::<E, N>(&mut next_dout, dout, &queries, at + strip, strip, tile);
        scores::<E, N>(&k_own, &q_strip, &mut scored, tile);
        sync_team(tile);
        read_cells(&mut probabilities, &scored, tile);
        #[unroll]
        for cell in 0..comptime!(tile.cells()) {
            let column = cell_column(cell, tile);
            let is_seen = at + column >= begin && at + column < end;
            let weight = (probabilities[cell] * scale - sums_of_rows[column]).exp();
            probabilities[cell] = select(is_seen, weight, 0.0f32);
        }
        if comptime!(side.values()) {
            write_cells::<E>(&probabilities, &mut weights, tile);
        }
        sync_team(tile);
        if comptime!(side.values()) {
            accumulate::<E, N>(&mut dv_sums, &weights, &dout_strip, tile);
        }
        if comptime!(side.keys()) {
            scores::<E, N>(&v_own, &dout_strip, &mut scored, tile);
            sync_team(tile);
            read_cells(&mut cells, &scored, tile);
            #[unroll]
            for cell in 0..comptime!(tile.cells()) {
                let column = cell_column(cell, tile);
                // The weight of a single key is 1 whatever its score: a difference would leave its rounding.
                let alone = window == 1usize || at + column < group;
                let slope = probabilities[cell] * (cells[cell] - products_of_rows[column]) * scale;
                cells[cell] = select(alone, 0.0f32, slope);
            }
            write_cells::<E>(&cells, &mut weights, tile);
            sync_team(tile);
            accumulate::<E, N>(&mut dk_sums, &weights, &q_strip, tile);
        }
        at += strip;
    }
    sync_cube();
    if comptime!(side.values()) {
        write_rows::<E, N>(&mut dv_sums, dv, &keys, first, &mut scored, tile);
    }
    if comptime!(side.keys()) {
        write_rows::<E, N>(&mut dk_sums, dk, &keys, first, &mut scored, tile);
    }
}

/// Numbers of the strip's rows, zeros beyond the sequence.
#[cube]
fn put_rows(to: &mut Shared<[f32]>, from: &[f32], rows: &Rows, first: usize, #[comptime] tile: Tile) {
    let mut row = UNIT_POS as usize;
    while row < comptime!(tile.strip) {
        let mut number = f32::new(0.0);
        if first + row < rows.len {
            number = from[rows.place(first + row)];
        }
        to[row] = number;
        row += comptime!(tile.units());
    }
}
