//! The launches of the kernels that hold no scores.

use std::sync::Arc;

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::forward::forward;
use super::keys::keys_backward;
use super::panel::{PIECE, cube_dim};
use super::queries::queries_backward;
use super::tile::{Side, Tile, Work};
use crate::Segments;
use crate::attention::blockwise::Layout;
use crate::gpu::places::{Places, places};
use crate::gpu::tensor::{elem, empty};

/// Buffers of the kernel that has most, and one for its numbers.
const BINDINGS: u32 = 10;

/// The tile of each launch.
#[derive(Clone, Debug)]
pub(super) struct Flash {
    forward: Tile,
    queries: Tile,
    keys: Vec<(Side, Tile)>,
}

impl Flash {
    /// `None` where the device has no room for tiles that pay.
    pub(super) fn of(like: &CubeTensor, layout: &Layout) -> Option<Self> {
        Self::any(like, layout).filter(|flash| {
            let keys = flash.keys.iter().map(|&(_, tile)| tile);
            [flash.forward, flash.queries].into_iter().chain(keys).all(Tile::pays)
        })
    }

    /// The same, however small the tiles.
    pub(super) fn any(like: &CubeTensor, layout: &Layout) -> Option<Self> {
        let hardware = &like.client.properties().hardware;
        let tile = |work| {
            let tile = Tile::of(like, layout.size, work)?;
            let pieces = |(_, len): (usize, usize)| (len * layout.group).div_ceil(tile.rows());
            let count = layout.segments.iter().map(pieces).sum::<usize>();
            (count <= hardware.max_cube_count.1 as usize).then_some(tile)
        };
        let of_side = |&side: &Side| Some((side, tile(Work::Keys(side))?));
        let keys = Side::launches(layout.size).iter().map(of_side).collect::<Option<Vec<_>>>()?;
        let fits = hardware.max_bindings >= BINDINGS;
        fits.then_some(Self { forward: tile(Work::Output)?, queries: tile(Work::Queries)?, keys })
    }

    /// The output, and the log-sum-exp of each row's scores, `[T, N]`; of tensors in C order.
    pub(super) fn forward(&self, layout: &Layout, [q, k, v]: &[CubeTensor; 3]) -> [CubeTensor; 2] {
        let (tokens, heads) = (layout.segments.tokens(), layout.kv_heads * layout.group);
        let out = empty(q, [tokens, heads, layout.size], q.dtype);
        let lse = empty(q, [tokens, heads], DType::F32);
        let (pieces, count) = cubes(layout, self.forward, layout.group, false, q);
        // SAFETY: pieces lie inside the tensors; rows beyond a piece's sequence are neither read nor written.
        #[expect(unsafe_code, reason = "a launch without checks of every index")]
        unsafe {
            forward::launch_unchecked(
                &q.client,
                count,
                cube_dim(self.forward),
                self.forward.vector,
                q.clone().into_buffer_arg(),
                k.clone().into_buffer_arg(),
                v.clone().into_buffer_arg(),
                pieces.into_buffer_arg(),
                out.clone().into_buffer_arg(),
                lse.clone().into_buffer_arg(),
                layout.kv_heads,
                window(layout),
                layout.scale,
                layout.group,
                self.forward,
                elem(q.dtype),
            );
        }
        [out, lse]
    }

    /// Gradients of q, k and v, from the kept log-sum-exp and `delta = Σ dout·out`, both `[T, N]`.
    pub(super) fn backward(
        &self,
        layout: &Layout,
        [q, k, v, dout]: &[CubeTensor; 4],
        lse: &CubeTensor,
        delta: &CubeTensor,
    ) -> [CubeTensor; 3] {
        let [dq, dk, dv] = [q, k, v].map(|x| empty(x, x.meta.shape().clone(), x.dtype));
        let (pieces, count) = cubes(layout, self.queries, layout.group, false, q);
        // SAFETY: as of `forward`.
        #[expect(unsafe_code, reason = "a launch without checks of every index")]
        unsafe {
            queries_backward::launch_unchecked(
                &q.client,
                count,
                cube_dim(self.queries),
                self.queries.vector,
                q.clone().into_buffer_arg(),
                k.clone().into_buffer_arg(),
                v.clone().into_buffer_arg(),
                dout.clone().into_buffer_arg(),
                lse.clone().into_buffer_arg(),
                delta.clone().into_buffer_arg(),
                pieces.into_buffer_arg(),
                dq.clone().into_buffer_arg(),
                layout.kv_heads,
                window(layout),
                layout.scale,
                layout.group,
                self.queries,
                elem(q.dtype),
            );
        }
        for &(side, tile) in &self.keys {
            let (pieces, count) = cubes(layout, tile, 1, true, q);
            // SAFETY: as of `forward`.
            #[expect(unsafe_code, reason = "a launch without checks of every index")]
            unsafe {
                keys_backward::launch_unchecked(
                    &q.client,
                    count,
                    cube_dim(tile),
                    tile.vector,
                    q.clone().into_buffer_arg(),
                    k.clone().into_buffer_arg(),
                    v.clone().into_buffer_arg(),
                    dout.clone().into_buffer_arg(),
                    lse.clone().into_buffer_arg(),
                    delta.clone().into_buffer_arg(),
                    pieces.into_buffer_arg(),
                    dk.clone().into_buffer_arg(),
                    dv.clone().into_buffer_arg(),
                    layout.kv_heads,
                    window(layout),
                    layout.scale,
                    layout.group,
                    side,
                    tile,
                    elem(q.dtype),
                );
            }
        }
        [dq, dk, dv]
    }
}

/// Pieces of `group` rows a token, and a cube for each and each key head.
fn cubes(layout: &Layout, tile: Tile, group: usize, seen: bool, like: &CubeTensor) -> (CubeTensor, CubeCount) {
    let segments: &Arc<Segments> = &layout.segments;
    let pieces = places(segments, Places::Pieces { rows: tile.rows(), group, seen }, like);
    let count = pieces.meta.shape()[0] / PIECE;
    (pieces, CubeCount::Static(layout.kv_heads as u32, count as u32, 1))
}

/// The window in tokens, no more than there are: kernels multiply it.
fn window(layout: &Layout) -> usize {
    let tokens = layout.segments.tokens();
    layout.window.map_or(tokens, |window| window.min(tokens))
}
