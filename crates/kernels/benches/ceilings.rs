//! What the machine itself can do, for the figures of `operations` to stand beside: multiply-adds that never leave the
//! registers, and bytes that are read, written and copied in memory; on one thread, and on all of the pool at once.
//!
//! `items` are floating-point operations (a multiply-add is two), `bytes` are those read and written.
#![allow(unsafe_code, reason = "instructions of a detected set")]

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use rayon::prelude::*;

fn main() {
    divan::main();
}

/// Multiply-adds of one chain.
const STEPS: usize = 100_000;
/// Chains side by side: latency times throughput of any machine so far.
const CHAINS: usize = 12;

/// Which threads work.
#[derive(Clone, Copy, Debug)]
enum On {
    One,
    All,
}

impl std::fmt::Display for On {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::One => f.write_str("1 thread"),
            Self::All => write!(f, "{} threads", rayon::current_num_threads()),
        }
    }
}

impl On {
    fn count(self) -> usize {
        match self {
            Self::One => 1,
            Self::All => rayon::current_num_threads(),
        }
    }

    fn run(self, work: impl Fn(usize) + Send + Sync) {
        match self {
            Self::One => work(0),
            Self::All => (0..self.count()).into_par_iter().for_each(work),
        }
    }
}

const THREADS: [On; 2] = [On::One, On::All];

/// Chains of `LANES` independent numbers, as plain Rust for whatever set it is compiled for.
#[inline(always)]
fn chains<const LANES: usize, const FUSED: bool>(seed: f32) -> f32 {
    let mut sums = [[seed; LANES]; CHAINS];
    let (a, b) = (black_box(1.000_001_f32), black_box(1e-9_f32));
    for _ in 0..STEPS {
        for sum in &mut sums {
            for lane in sum.iter_mut() {
                *lane = if FUSED { lane.mul_add(a, b) } else { *lane * a + b };
            }
        }
    }
    sums.iter().flatten().sum()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::*;

    #[target_feature(enable = "avx512f")]
    pub(super) fn avx512(seed: f32) -> f32 {
        let mut sums = [_mm512_set1_ps(seed); CHAINS];
        let (a, b) = (_mm512_set1_ps(black_box(1.000_001)), _mm512_set1_ps(black_box(1e-9)));
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, a, b);
            }
        }
        sums.iter().map(|sum| _mm512_reduce_add_ps(*sum)).sum()
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2(seed: f32) -> f32 {
        chains::<8, true>(seed)
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn avx512_bf16(seed: f32) -> f32 {
        let mut sums = [_mm512_set1_ps(seed); CHAINS];
        let ones = _mm512_set1_epi32(black_box(0x3f80_3f80));
        // SAFETY: both types are 64 bytes of bits.
        let pairs: __m512bh = unsafe { std::mem::transmute(ones) };
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, pairs, pairs);
            }
        }
        sums.iter().map(|sum| _mm512_reduce_add_ps(*sum)).sum()
    }
}

/// The widest multiply-add in f32, and how many numbers it takes.
fn widest() -> (fn(f32) -> f32, usize) {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the feature was detected.
            return (|seed| unsafe { x86::avx512(seed) }, 16);
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: as above.
            return (|seed| unsafe { x86::avx2(seed) }, 8);
        }
    }
    (chains::<8, { cfg!(target_arch = "aarch64") }>, 8)
}

#[divan::bench(args = THREADS)]
fn multiply_add_f32(bencher: Bencher, on: On) {
    let (run, lanes) = widest();
    bencher.counter(ItemsCount::new(2 * STEPS * CHAINS * lanes * on.count())).bench(|| {
        on.run(|_| {
            black_box(run(black_box(1.0)));
        });
    });
}

/// Pairs of bf16 summed in f32; nothing where the machine has no instruction for them.
#[cfg(target_arch = "x86_64")]
#[divan::bench(args = THREADS)]
fn multiply_add_bf16(bencher: Bencher, on: On) {
    if !is_x86_feature_detected!("avx512bf16") {
        return;
    }
    bencher.counter(ItemsCount::new(4 * STEPS * CHAINS * 16 * on.count())).bench(|| {
        on.run(|_| {
            // SAFETY: the feature was detected.
            black_box(unsafe { x86::avx512_bf16(black_box(1.0)) });
        });
    });
}

/// Bytes of a buffer: far more than any cache.
const BUFFER: usize = 256 << 20;

fn buffers(on: On) -> Vec<(Vec<u64>, Vec<u64>)> {
    let words = BUFFER / 8 / on.count();
    (0..on.count()).map(|_| (vec![1; words], vec![2; words])).collect()
}

#[divan::bench(args = THREADS)]
fn read_memory(bencher: Bencher, on: On) {
    let buffers = buffers(on);
    bencher.counter(BytesCount::new(BUFFER)).bench(|| {
        on.run(|thread| {
            black_box(buffers[thread].0.iter().fold(0_u64, |sum, word| sum.wrapping_add(*word)));
        });
    });
}

#[divan::bench(args = THREADS)]
fn copy_memory(bencher: Bencher, on: On) {
    let mut buffers = buffers(on);
    bencher.counter(BytesCount::new(2 * BUFFER)).bench_local(|| {
        let threads = buffers.iter_mut();
        match on {
            On::One => threads.for_each(|(from, to)| to.copy_from_slice(black_box(from))),
            On::All => {
                threads.collect::<Vec<_>>().into_par_iter().for_each(|(from, to)| to.copy_from_slice(black_box(from)));
            }
        }
    });
}
