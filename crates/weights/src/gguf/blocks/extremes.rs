//! Extremes of a block of 32, as a loop in order with strict comparisons finds them.
//!
//! They are folded in lanes, which gives the same number; only between equal numbers of different sign, zeros among
//! them, it matters which comes first.

const LANES: usize = 16;

#[inline(always)]
fn fold(mut lanes: [f32; LANES], join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = join(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// The largest magnitude.
#[inline(always)]
pub(super) fn magnitude(x: &[f32; 32]) -> f32 {
    let mut lanes = [0.0; LANES];
    for lane in 0..LANES {
        lanes[lane] = larger(x[lane].abs(), x[lane + LANES].abs());
    }
    fold(lanes, larger)
}

/// The first number of the largest magnitude; 0 where all are zeros.
#[inline(always)]
pub(super) fn farthest(x: &[f32; 32]) -> f32 {
    let magnitude = magnitude(x);
    let (mut positive, mut negative) = (false, false);
    for &x in x {
        positive |= x == magnitude;
        negative |= x == -magnitude;
    }
    if magnitude == 0.0 {
        0.0
    } else if positive && negative {
        first(x, |x| x.abs() == magnitude)
    } else if positive {
        magnitude
    } else {
        -magnitude
    }
}

/// The smallest and the largest number.
#[inline(always)]
pub(super) fn range(x: &[f32; 32]) -> (f32, f32) {
    let (mut low, mut high) = ([0.0; LANES], [0.0; LANES]);
    for lane in 0..LANES {
        low[lane] = smaller(x[lane], x[lane + LANES]);
        high[lane] = larger(x[lane], x[lane + LANES]);
    }
    let first_zero = |found: f32| if found == 0.0 { first(x, |x| x == 0.0) } else { found };
    (first_zero(fold(low, smaller)), first_zero(fold(high, larger)))
}

#[cold]
fn first(x: &[f32; 32], is: impl Fn(f32) -> bool) -> f32 {
    x.iter().copied().find(|&x| is(x)).unwrap_or(0.0)
}
