//! Rows of a tensor on their way into shared memory, and the piece of a sequence that a cube works on.

use cubecl::prelude::*;

use super::tile::{ALIGNMENT, TEAM, Tile};

/// What is told of a piece: where its sequence begins, its tokens, its own first row.
pub(super) const PIECE: usize = 3;

/// Rows of one key head in one sequence: `group` rows a token, side by side in the tensor.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Rows {
    /// Token where the sequence begins.
    pub(super) start: usize,
    /// Rows of the sequence.
    pub(super) len: usize,
    /// Heads of a token.
    pub(super) heads: usize,
    /// First of the heads.
    pub(super) head: usize,
    #[cube(comptime)]
    pub(super) group: usize,
}

#[cube]
impl Rows {
    /// Which row of the tensor, seen as `[T·heads, d]`, is row `row` of these.
    pub(super) fn place(&self, row: usize) -> usize {
        let group = comptime!(self.group);
        (self.start + row / group) * self.heads + self.head + row % group
    }
}

/// The queries (`group` rows a token) and keys of the cube's piece, and its own first row.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Piece {
    pub(super) queries: Rows,
    pub(super) keys: Rows,
    pub(super) first: usize,
}

/// Key heads are told apart by the cube's x, pieces by its y.
#[cube]
pub(super) fn piece(pieces: &[u32], kv_heads: usize, #[comptime] group: usize) -> Piece {
    let at = CUBE_POS_Y as usize * PIECE;
    let (start, tokens) = (pieces[at] as usize, pieces[at + 1] as usize);
    let head = CUBE_POS_X as usize;
    Piece {
        queries: Rows { start, len: tokens * group, heads: kv_heads * group, head: head * group, group },
        keys: Rows { start, len: tokens, heads: kv_heads, head, group: 1usize },
        first: pieces[at + 2] as usize,
    }
}

/// Vectors that a unit brings of a panel of `rows` rows.
fn share(tile: Tile, rows: usize) -> usize {
    (rows * tile.width() / tile.vector).div_ceil(tile.units())
}

/// A panel of `rows` rows, not written yet.
#[cube]
pub(super) fn panel<E: Float, N: Size>(#[comptime] rows: usize, #[comptime] tile: Tile) -> Shared<[Vector<E, N>]> {
    Shared::<[Vector<E, N>]>::new_aligned_slice(comptime!(rows * tile.stride()), ALIGNMENT)
}

/// The unit's share of a panel of `rows` rows, in registers: read long before it is needed.
#[cube]
pub(super) fn brought<E: Float, N: Size>(#[comptime] rows: usize, #[comptime] tile: Tile) -> Array<Vector<E, N>> {
    Array::<Vector<E, N>>::new(comptime!(share(tile, rows)))
}

/// Reads rows `first..first + rows` of `x`; zeros beyond the last row of the sequence and beyond the head, so that what
/// lies there in memory is in no product.
#[cube]
pub(super) fn fetch<E: Float, N: Size>(
    brought: &mut Array<Vector<E, N>>,
    x: &[Vector<E, N>],
    from: &Rows,
    first: usize,
    #[comptime] rows: usize,
    #[comptime] tile: Tile,
) {
    let across = comptime!(tile.width() / tile.vector);
    let vectors = comptime!(tile.size / tile.vector);
    #[unroll]
    for step in 0..comptime!(share(tile, rows)) {
        let at = UNIT_POS as usize + comptime!(step * tile.units());
        let row = at / across;
        let column = at % across;
        let mut vector = Vector::<E, N>::new(E::new(0.0f32));
        if first + row < from.len && row < rows && column < vectors {
            vector = x[from.place(first + row) * vectors + column];
        }
        brought[step] = vector;
    }
}

/// Writes what was fetched into the panel.
#[cube]
pub(super) fn put<E: Float, N: Size>(
    brought: &Array<Vector<E, N>>,
    panel: &mut Shared<[Vector<E, N>]>,
    #[comptime] rows: usize,
    #[comptime] tile: Tile,
) {
    let across = comptime!(tile.width() / tile.vector);
    let stride = comptime!(tile.stride());
    #[unroll]
    for step in 0..comptime!(share(tile, rows)) {
        let at = UNIT_POS as usize + comptime!(step * tile.units());
        let row = at / across;
        if row < rows {
            panel[row * stride + at % across] = brought[step];
        }
    }
}

/// A panel with rows `first..first + rows` of `x`; readers wait for the cube first.
#[cube]
pub(super) fn own_panel<E: Float, N: Size>(
    x: &[Vector<E, N>],
    from: &Rows,
    first: usize,
    #[comptime] rows: usize,
    #[comptime] tile: Tile,
) -> Shared<[Vector<E, N>]> {
    let mut own = panel::<E, N>(rows, tile);
    let mut vectors = brought::<E, N>(rows, tile);
    fetch::<E, N>(&mut vectors, x, from, first, rows, tile);
    put::<E, N>(&vectors, &mut own, rows, tile);
    own
}

/// Units of a cube, as a launch has them.
pub(super) fn cube_dim(tile: Tile) -> CubeDim {
    CubeDim::new_2d(TEAM as u32, tile.teams as u32)
}
