//! The shape of a cube's work: which rows its teams own, how many rows pass by at once, and where that fits.
//!
//! A cube has own rows (of queries, or of keys) and walks along the rows they meet (keys, or queries), a strip of them at a
//! time. Its units form teams of 32; a team owns some of the rows and all of their sums, so between two strips no team waits
//! for the numbers of another, only for the strip.
//!
//! **What a strip costs.** With `R` own rows of the cube, a strip of `C`, heads of `d` numbers of `b` bytes: `2·R·C·d` FLOP a
//! product, and `2·C·d·b` bytes from the cache for two panels. Two products forwards are `R/b` FLOP a byte: at 64 rows and 2
//! bytes 64 (an A100's cache gives about 4.5 TB/s, so 290 TFLOP/s), three products for queries 96, four for keys 128. Inside a
//! multiprocessor a team of 16 rows reads each number of a panel for 16 rows only. With scores and weights, which pass through
//! shared memory too, that is 26 KiB for 262,144 FLOP forwards, 42 for 393,216 (queries), 52 for 524,288 (keys): 9 to 10 FLOP a
//! byte, 1,200 FLOP a clock. Shared memory is therefore what should bound all three on large cards: about 185 TFLOP/s on an A100,
//! 280 on an H100, above what a GeForce multiplies with f32 sums. 8B at 2,048 tokens is 2.7 GFLOP a token (9 products; the
//! blockwise form 7, and 19 us on an H100 by its bytes): 10 us a token on an H100 if nothing else is in the way, 15 on an A100.
//! Teams of 32 rows, which the products know how to do, would read a third less and need all registers forwards.
//!
//! **What it holds**, d = 128 in 16 bits, rows padded by 16 bytes so that eight of them lie in different banks: forwards 17 KiB
//! of queries, 17 KiB of keys and values (C = 32), 14 KiB of scores and weights: 49,408 bytes, two cubes in the 100 KiB of an
//! sm_86 or sm_89, three in the 164 of an sm_80, four in the 227 of an sm_90. Backwards twice the own rows: 65 KiB for queries
//! and 52 for keys (C = 16), one, two to three and three to four cubes.
//!
//! **Registers** a unit, by NVRTC 13.0 for sm_80 and sm_90a: d = 128 forwards 168 and 132, for queries 250 and 173, for keys 250
//! and 244; d = 256 between 249 and 255, nothing spilled but 4 bytes of one kernel. That is why strips are half as long where
//! sums of a row are more than [`LIGHT`] numbers (with 32 the same kernels spill up to 2.4 KB a unit), and why heads above that
//! take the gradients of values and of keys one after the other.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::features::{MmaConfig, Plane};
use cubecl::ir::{ElemType, FloatKind};

use crate::gpu::tensor::{elem, vector_size};

/// Units of a team.
pub(super) const TEAM: usize = 32;
/// Rows, columns and depth of a fragment.
pub(super) const FRAGMENT: usize = 16;
/// A team's cells in the plain form: so many units share a row's columns, and `TEAM / ACROSS` its rows.
pub(super) const ACROSS: usize = 8;
pub(super) const DOWN: usize = TEAM / ACROSS;
/// Bytes at whose multiples allocations begin: fragments want 32.
pub(super) const ALIGNMENT: usize = 128;
/// Numbers of a row's sums up to which a unit has registers for its share of the longest strip.
const LIGHT: usize = 128;

/// Teams, rows of a team, rows of a strip: the largest first.
const SHAPES: [[usize; 3]; 6] = [[4, 16, 32], [4, 16, 16], [2, 16, 16], [1, 16, 8], [1, 8, 8], [1, 4, 8]];

/// Known when a kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    /// Whether products are of fragments on tensor cores; a team then is a plane.
    pub(super) cores: bool,
    pub(super) teams: usize,
    /// Own rows of a team: a divisor of [`TEAM`].
    pub(super) team_rows: usize,
    /// Rows that pass by at once.
    pub(super) strip: usize,
    /// Head size.
    pub(super) size: usize,
    /// Numbers that a unit reads at once.
    pub(super) vector: usize,
}

/// What a kernel computes, which says what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Work {
    /// The output: own queries; keys and values pass by.
    Output,
    /// Gradients of queries: own queries and upstream gradients; keys and values pass by.
    Queries,
    /// Gradients of keys, of values, or of both: own keys and values; queries and upstream gradients pass by.
    Keys(Side),
}

/// Gradients that one launch computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Side {
    Both,
    Keys,
    Values,
}

impl Side {
    /// Launches, in order, for heads of this size.
    pub(super) fn launches(size: usize) -> &'static [Self] {
        if size <= LIGHT { &[Self::Both] } else { &[Self::Values, Self::Keys] }
    }

    pub(super) fn keys(self) -> bool {
        self != Self::Values
    }

    pub(super) fn values(self) -> bool {
        self != Self::Keys
    }
}

impl Work {
    /// Sums of an own row.
    fn sums(self) -> usize {
        if self == Self::Keys(Side::Both) { 2 } else { 1 }
    }
}

impl Tile {
    /// Own rows of a cube.
    pub(super) fn rows(self) -> usize {
        self.teams * self.team_rows
    }

    /// Units of a cube.
    pub(super) fn units(self) -> usize {
        self.teams * TEAM
    }

    /// Units of a row of scores.
    pub(super) fn lanes(self) -> usize {
        TEAM / self.team_rows
    }

    /// Columns of a row of scores that a unit has.
    pub(super) fn cells(self) -> usize {
        self.strip / self.lanes()
    }

    /// Numbers of a row of a panel: the head, and zeros up to what products take.
    pub(super) fn width(self) -> usize {
        self.size.next_multiple_of(if self.cores { FRAGMENT } else { ACROSS * self.vector })
    }

    /// Vectors between rows of a panel.
    pub(super) fn stride(self) -> usize {
        let pad = if self.cores { 8 } else { self.vector };
        (self.width() + pad) / self.vector
    }

    /// Numbers between rows of scores.
    pub(super) fn score_stride(self) -> usize {
        self.strip + 4
    }

    /// Numbers between rows of weights.
    pub(super) fn weight_stride(self) -> usize {
        self.strip + 8
    }

    /// Bytes of shared memory, for numbers of `bytes` bytes: every allocation begins at a multiple of 128.
    pub(super) fn shared_bytes(self, work: Work, bytes: usize) -> usize {
        let panel = |rows: usize| rows * self.stride() * self.vector * bytes;
        let own = match work {
            Work::Output => [panel(self.rows()), 0],
            Work::Keys(Side::Values) => [panel(self.rows()), panel(1)],
            Work::Queries | Work::Keys(_) => [panel(self.rows()); 2],
        };
        let numbers = match work {
            // Factors of rows, and what units exchange where a team is no plane.
            Work::Output => [4 * self.rows(), if self.cores { 0 } else { 4 * self.units() }],
            Work::Queries => [0, 0],
            // Of the rows that pass by.
            Work::Keys(_) => [4 * self.strip; 2],
        };
        let scores = [4 * self.rows() * self.score_stride(), bytes * self.rows() * self.weight_stride()];
        let all = [own, [panel(self.strip); 2], scores, numbers];
        all.as_flattened().iter().map(|bytes| bytes.next_multiple_of(ALIGNMENT)).sum()
    }

    /// The largest tile that the device has room for.
    pub(super) fn of(like: &CubeTensor, size: usize, work: Work) -> Option<Self> {
        let (dtype, properties) = (like.dtype, like.client.properties());
        let vector = vector_size(like, &[dtype], &[size]);
        let cores = has_cores(like);
        let of_shape = |&[teams, team_rows, strip]: &[usize; 3]| Self { cores, teams, team_rows, strip, size, vector };
        let hardware = &properties.hardware;
        let heavy = size * work.sums() > LIGHT;
        let fits = |tile: &Self| {
            (!heavy || tile.strip <= FRAGMENT)
                && (!cores || tile.team_rows >= FRAGMENT && tile.strip >= FRAGMENT)
                && tile.shared_bytes(work, dtype.size()) <= hardware.max_shared_memory_size
                && tile.units() <= hardware.max_units_per_cube as usize
        };
        SHAPES.iter().map(of_shape).find(fits)
    }

    /// Whether strips pass by often enough for what they cost to bring: below, products of whole blocks are the better form.
    pub(super) fn pays(self) -> bool {
        self.rows() >= 32 && self.strip >= 16
    }
}

/// Whether the device multiplies fragments of the type and adds them in f32, on planes of a team's size.
fn has_cores(like: &CubeTensor) -> bool {
    let properties = like.client.properties();
    let hardware = &properties.hardware;
    let operand = elem(like.dtype);
    let fragments = MmaConfig {
        a_type: operand,
        b_type: operand,
        cd_type: ElemType::Float(FloatKind::F32),
        m: FRAGMENT as u32,
        n: FRAGMENT as u32,
        k: FRAGMENT as u32,
    };
    let plane = &properties.features.plane;
    like.dtype != DType::F32
        && hardware.plane_size_min as usize == TEAM
        && hardware.plane_size_max as usize == TEAM
        && plane.contains(Plane::Ops)
        && plane.contains(Plane::Sync)
        && properties.features.matmul.cmma.contains(&fragments)
}
