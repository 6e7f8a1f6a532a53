//! The innermost loop: a tile of the output held in registers while it runs along the inner dimension.
//!
//! Operands are lanes of four bytes: an f32, or two neighbouring bf16 along the inner dimension. The left one is broadcast
//! lane by lane, the right one read in vectors. Compiled for several instruction sets, chosen at run time.
#![expect(clippy::needless_range_loop, reason = "loops of a known length over registers, which are unrolled")]

use std::sync::OnceLock;

use super::Precision;
use super::ahead::Ahead;

/// One vector of the accumulators, and what is multiplied into it.
trait Lanes: Copy {
    const COUNT: usize;
    /// # Safety
    /// All of them: the instruction set is there, pointers are valid for [`Lanes::COUNT`] lanes (one for `splat`).
    unsafe fn zero() -> Self;
    unsafe fn load(lanes: *const u32) -> Self;
    unsafe fn splat(lane: *const u32) -> Self;
    /// `self + a·b`.
    unsafe fn multiply_add(self, a: Self, b: Self) -> Self;
    unsafe fn store(self, out: *mut f32);
}

/// Two operands of one tile: `steps` lanes of each row and of each column.
#[derive(Clone, Copy, Debug)]
pub(super) struct Strips {
    pub(super) steps: usize,
    /// Row `r`, step `k` at `r·row + k·step`.
    pub(super) left: *const u32,
    pub(super) row: usize,
    pub(super) step: usize,
    /// Step `k` at `k·right_step`, vectors side by side.
    pub(super) right: *const u32,
    pub(super) right_step: usize,
}

impl Strips {
    /// Without a left operand yet.
    pub(super) fn of_right(steps: usize, right: *const u32, right_step: usize) -> Self {
        Self { steps, left: std::ptr::null(), row: 0, step: 0, right, right_step }
    }
}

/// Steps of a tile for each line fetched.
const STEPS_PER_LINE: usize = 4;

/// Rows of a tile at most, on any instruction set.
const MOST_ROWS: usize = 14;
/// Columns of a tile at most.
const MOST_COLUMNS: usize = 32;
/// Numbers of a tile at most.
pub(super) const TILE: usize = MOST_ROWS * MOST_COLUMNS;

/// Adds the products of all strips to `tile`, whose rows are `stride` numbers apart, or with `!resume` overwrites it.
/// Fetches some of `ahead` meanwhile.
pub(super) type Tile = unsafe fn(strips: &[Strips], tile: *mut f32, stride: usize, resume: bool, ahead: &mut Ahead);

#[inline(always)]
unsafe fn tile<L: Lanes, const ROWS: usize, const VECTORS: usize, const PACKED: bool>(
    strips: &[Strips],
    out: *mut f32,
    stride: usize,
    resume: bool,
    ahead: &mut Ahead,
) {
    unsafe {
        let mut fetched = *ahead;
        let mut sums = [[L::zero(); VECTORS]; ROWS];
        if resume {
            for row in 0..ROWS {
                for vector in 0..VECTORS {
                    sums[row][vector] = L::load(out.add(row * stride + vector * L::COUNT).cast());
                }
            }
        }
        for strip in strips {
            let (mut left, mut right) = (strip.left, strip.right);
            let (row_stride, step) = if PACKED { (1, ROWS) } else { (strip.row, strip.step) };
            let mut rest = strip.steps;
            while rest > 0 {
                if PACKED {
                    fetched.fetch_line();
                }
                let here = rest.min(STEPS_PER_LINE);
                rest -= here;
                for _ in 0..here {
                    let mut columns = [L::zero(); VECTORS];
                    for vector in 0..VECTORS {
                        columns[vector] = L::load(right.add(vector * L::COUNT));
                    }
                    for row in 0..ROWS {
                        let value = L::splat(left.add(row * row_stride));
                        for vector in 0..VECTORS {
                            sums[row][vector] = sums[row][vector].multiply_add(value, columns[vector]);
                        }
                    }
                    left = left.add(step);
                    right = right.add(strip.right_step);
                }
            }
        }
        *ahead = fetched;
        for row in 0..ROWS {
            for vector in 0..VECTORS {
                sums[row][vector].store(out.add(row * stride + vector * L::COUNT));
            }
        }
    }
}

/// What an instruction set offers: tiles by their number of rows and vectors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernels {
    /// The instruction set, as people write it.
    pub(super) name: &'static str,
    /// Rows of the highest tile.
    pub(super) rows: usize,
    /// Columns of one vector.
    pub(super) lanes: usize,
    /// By rows less one; one vector wide, two wide.
    packed: [&'static [Tile]; 2],
    /// The same on a left operand that is not packed.
    direct: [&'static [Tile]; 2],
}

impl Kernels {
    pub(super) fn columns(&self) -> usize {
        2 * self.lanes
    }

    /// The tile of so many rows and columns.
    pub(super) fn tile(&self, rows: usize, columns: usize) -> Tile {
        self.packed[columns / self.lanes - 1][rows - 1]
    }

    /// The same, for a left operand that lies as it lies.
    pub(super) fn direct_tile(&self, rows: usize, columns: usize) -> Tile {
        self.direct[columns / self.lanes - 1][rows - 1]
    }

    /// Rows of a tile of so many columns on a left operand that is not packed: each row takes a pointer.
    pub(super) fn direct_rows(&self, columns: usize) -> usize {
        self.direct[columns.div_ceil(self.lanes) - 1].len()
    }
}

/// The tiles of one instruction set: every height as a function of its own.
macro_rules! kernels {
    ($name:ident, $set:literal, $lanes:ty, [$($feature:literal)?], $most:literal, [$($rows:literal)*], [$($direct:literal)*], [$($wide:literal)*]) => {
        mod $name {
            use super::{Ahead, Kernels, Lanes, Strips, Tile};

            $(#[target_feature(enable = $feature)])?
            unsafe fn packed<const ROWS: usize, const VECTORS: usize>(strips: &[Strips], out: *mut f32, stride: usize, resume: bool, ahead: &mut Ahead) {
                unsafe { super::tile::<$lanes, ROWS, VECTORS, true>(strips, out, stride, resume, ahead) }
            }

            $(#[target_feature(enable = $feature)])?
            unsafe fn direct<const ROWS: usize, const VECTORS: usize>(strips: &[Strips], out: *mut f32, stride: usize, resume: bool, ahead: &mut Ahead) {
                unsafe { super::tile::<$lanes, ROWS, VECTORS, false>(strips, out, stride, resume, ahead) }
            }

            pub(super) const KERNELS: Kernels = Kernels {
                name: $set,
                rows: $most,
                lanes: <$lanes>::COUNT,
                packed: [&[$(packed::<$rows, 1> as Tile),*], &[$(packed::<$rows, 2> as Tile),*]],
                direct: [&[$(direct::<$direct, 1> as Tile),*], &[$(direct::<$wide, 2> as Tile),*]],
            };
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Lanes;

    /// Vectors of AVX-512 that differ in what a lane is.
    macro_rules! lanes_of_512_bits {
        ($(#[$doc:meta])* $name:ident, |$sum:ident, $a:ident, $b:ident| $product:expr) => {
            $(#[$doc])*
            #[derive(Clone, Copy)]
            pub(super) struct $name(__m512);

            impl Lanes for $name {
                const COUNT: usize = 16;
                #[inline(always)]
                unsafe fn zero() -> Self {
                    unsafe { Self(_mm512_setzero_ps()) }
                }
                #[inline(always)]
                unsafe fn load(lanes: *const u32) -> Self {
                    unsafe { Self(_mm512_loadu_ps(lanes.cast())) }
                }
                #[inline(always)]
                unsafe fn splat(lane: *const u32) -> Self {
                    unsafe { Self(_mm512_castsi512_ps(_mm512_set1_epi32(lane.read_unaligned() as i32))) }
                }
                #[inline(always)]
                unsafe fn multiply_add(self, a: Self, b: Self) -> Self {
                    let ($sum, $a, $b) = (self.0, a.0, b.0);
                    unsafe { Self($product) }
                }
                #[inline(always)]
                unsafe fn store(self, out: *mut f32) {
                    unsafe { _mm512_storeu_ps(out, self.0) }
                }
            }
        };
    }

    lanes_of_512_bits!(F32x16, |sum, a, b| _mm512_fmadd_ps(a, b, sum));
    lanes_of_512_bits!(
        /// Pairs of bf16, accumulated in f32.
        Bf16Pairs,
        |sum, a, b| _mm512_dpbf16_ps(sum, std::mem::transmute::<__m512, __m512bh>(a), std::mem::transmute::<__m512, __m512bh>(b))
    );

    #[derive(Clone, Copy)]
    pub(super) struct F32x8(__m256);
    impl Lanes for F32x8 {
        const COUNT: usize = 8;
        #[inline(always)]
        unsafe fn zero() -> Self {
            unsafe { Self(_mm256_setzero_ps()) }
        }
        #[inline(always)]
        unsafe fn load(lanes: *const u32) -> Self {
            unsafe { Self(_mm256_loadu_ps(lanes.cast())) }
        }
        #[inline(always)]
        unsafe fn splat(lane: *const u32) -> Self {
            unsafe { Self(_mm256_set1_ps(lane.cast::<f32>().read_unaligned())) }
        }
        #[inline(always)]
        unsafe fn multiply_add(self, a: Self, b: Self) -> Self {
            unsafe { Self(_mm256_fmadd_ps(a.0, b.0, self.0)) }
        }
        #[inline(always)]
        unsafe fn store(self, out: *mut f32) {
            unsafe { _mm256_storeu_ps(out, self.0) }
        }
    }
}

/// Plain Rust for any machine, as vectors of what its baseline has.
#[derive(Clone, Copy)]
struct Portable([f32; 8]);

impl Lanes for Portable {
    const COUNT: usize = 8;
    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; 8])
    }
    #[inline(always)]
    unsafe fn load(lanes: *const u32) -> Self {
        unsafe { Self(lanes.cast::<[f32; 8]>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn splat(lane: *const u32) -> Self {
        unsafe { Self([lane.cast::<f32>().read_unaligned(); 8]) }
    }
    #[inline(always)]
    unsafe fn multiply_add(self, a: Self, b: Self) -> Self {
        let mut sum = self.0;
        for lane in 0..8 {
            if cfg!(target_arch = "aarch64") {
                sum[lane] = a.0[lane].mul_add(b.0[lane], sum[lane]);
            } else {
                sum[lane] += a.0[lane] * b.0[lane];
            }
        }
        Self(sum)
    }
    #[inline(always)]
    unsafe fn store(self, out: *mut f32) {
        unsafe { out.cast::<[f32; 8]>().write_unaligned(self.0) }
    }
}

#[cfg(target_arch = "x86_64")]
kernels!(avx512_bf16, "AVX-512-BF16", super::x86::Bf16Pairs, ["avx512f,avx512bf16"], 14, [1 2 3 4 5 6 7 8 9 10 11 12 13 14], [1 2 3 4 5 6 7 8 9 10 11 12], [1 2 3 4 5 6 7 8]);
#[cfg(target_arch = "x86_64")]
kernels!(avx512, "AVX-512", super::x86::F32x16, ["avx512f"], 14, [1 2 3 4 5 6 7 8 9 10 11 12 13 14], [1 2 3 4 5 6 7 8 9 10 11 12], [1 2 3 4 5 6 7 8]);
#[cfg(target_arch = "x86_64")]
kernels!(avx2, "AVX2", super::x86::F32x8, ["avx2,fma"], 6, [1 2 3 4 5 6], [1 2 3 4 5 6], [1 2 3 4 5 6]);
kernels!(portable, "portable", super::Portable, [], 4, [1 2 3 4], [1 2 3 4], [1 2 3 4]);

/// The fastest tiles of this machine; `None` in bf16 where it has no instruction for that.
pub(super) fn kernels(precision: Precision) -> Option<&'static Kernels> {
    static F32: OnceLock<&Kernels> = OnceLock::new();
    static BF16: OnceLock<Option<&Kernels>> = OnceLock::new();
    match precision {
        Precision::F32 => {
            Some(F32.get_or_init(|| *available(Precision::F32).first().expect("invariant: a portable form")))
        }
        Precision::Bf16 => *BF16.get_or_init(|| available(Precision::Bf16).first().copied()),
    }
}

/// All forms that this machine runs, fastest first.
pub(super) fn available(precision: Precision) -> Vec<&'static Kernels> {
    #[allow(unused_mut)]
    let mut all: Vec<&'static Kernels> = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        match precision {
            Precision::Bf16 if is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512f") => {
                all.push(&avx512_bf16::KERNELS);
            }
            Precision::F32 => {
                if is_x86_feature_detected!("avx512f") {
                    all.push(&avx512::KERNELS);
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    all.push(&avx2::KERNELS);
                }
            }
            Precision::Bf16 => {}
        }
    }
    if precision == Precision::F32 {
        all.push(&portable::KERNELS);
    }
    all
}
