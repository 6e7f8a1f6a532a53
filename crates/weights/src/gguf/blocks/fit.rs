//! The search for scale and minimum of sub-blocks of 32, in many of them at once.
//!
//! A candidate scale gives quants, the quants give the scale and minimum that fit them best by weighted least squares,
//! and the candidate with the least weighted error wins. Sums have to run in the order of the numbers, so a lane belongs
//! to a sub-block and all lanes take the same step.

use super::rounding::{SHIFTER, nearest};

/// Sub-blocks searched at once.
pub(super) const WIDTH: usize = 16;

/// A number of each sub-block.
pub(super) type Lane = [f32; WIDTH];

/// What is tried: candidate `k` of `0..=steps` spreads `limit + first + step·k` quants over the range.
#[derive(Clone, Copy)]
pub(super) struct Search {
    /// The largest quant.
    pub(super) limit: f32,
    pub(super) first: f32,
    pub(super) step: f32,
    pub(super) steps: usize,
}

/// What was found: a number is about `scale·quant - drop`.
pub(super) struct Fit {
    pub(super) scale: Lane,
    pub(super) drop: Lane,
    /// The quants of the best candidate are the nearest to `inverse·(x - base)`.
    pub(super) inverse: Lane,
    pub(super) base: Lane,
}

/// Searches, with integers of 23 bits where floating-point ones do not suffice: that is where the best minimum of a
/// candidate lies close to the maximum, or numbers are near the largest there are.
#[inline(always)]
pub(super) fn fit(x: &[Lane; 32], search: Search) -> Fit {
    let (fit, exact) = try_fit::<false>(x, search);
    if exact { fit } else { try_fit::<true>(x, search).0 }
}

/// The fit, and whether every rounding was of a number below 2²² in magnitude.
#[inline(always)]
fn try_fit<const WRAPPING: bool>(x: &[Lane; 32], search: Search) -> (Fit, bool) {
    let weights = weights(x);
    let (low, high) = range(x);
    let (mut sum_w, mut sum_x) = ([0.0; WIDTH], [0.0; WIDTH]);
    for lane in 0..WIDTH {
        sum_w[lane] = weights[0][lane];
        sum_x[lane] = weights[0][lane] * x[0][lane];
    }
    for (w, x) in weights.iter().zip(x).skip(1) {
        for lane in 0..WIDTH {
            sum_w[lane] += w[lane];
            sum_x[lane] += w[lane] * x[lane];
        }
    }
    let (mut min, mut inverse, mut scale) = ([0.0; WIDTH], [0.0; WIDTH], [0.0; WIDTH]);
    let mut flat = [false; WIDTH];
    for lane in 0..WIDTH {
        min[lane] = if low[lane] > 0.0 { 0.0 } else { low[lane] };
        flat[lane] = high[lane] == min[lane];
        inverse[lane] = if flat[lane] { 0.0 } else { search.limit / (high[lane] - min[lane]) };
        scale[lane] = if flat[lane] { 0.0 } else { 1.0 / inverse[lane] };
    }
    let mut base = min;
    let mut quants = [[0.0; WIDTH]; 32];
    let mut fits = [true; WIDTH];
    let mut seen = |inverse: &Lane, min: &Lane| {
        for lane in 0..WIDTH {
            let ends = [low[lane], high[lane]].map(|x| (inverse[lane] * (x - min[lane])).abs() < 4_194_303.0);
            fits[lane] &= ends[0] & ends[1];
        }
    };
    seen(&inverse, &min);
    for (q, x) in quants.iter_mut().zip(x) {
        *q = rounded::<WRAPPING>(x, &inverse, &min, search.limit);
    }
    let mut best = error(x, &weights, &quants, &scale, &min);
    for k in 0..=search.steps {
        let spread = search.first + search.step * k as f32 + search.limit;
        let mut candidate = [0.0; WIDTH];
        for lane in 0..WIDTH {
            candidate[lane] = if flat[lane] { 0.0 } else { spread / (high[lane] - min[lane]) };
        }
        seen(&candidate, &min);
        let (mut sum_l, mut sum_l2, mut sum_xl) = ([0.0; WIDTH], [0.0; WIDTH], [0.0; WIDTH]);
        for i in 0..32 {
            let q = rounded::<WRAPPING>(&x[i], &candidate, &min, search.limit);
            for lane in 0..WIDTH {
                let wq = weights[i][lane] * q[lane];
                sum_l[lane] += wq;
                sum_l2[lane] += wq * q[lane];
                sum_xl[lane] += wq * x[i][lane];
            }
            quants[i] = q;
        }
        let (mut new_scale, mut new_min, mut sound) = ([0.0; WIDTH], [0.0; WIDTH], [false; WIDTH]);
        for lane in 0..WIDTH {
            let determinant = sum_w[lane] * sum_l2[lane] - sum_l[lane] * sum_l[lane];
            let slope = (sum_w[lane] * sum_xl[lane] - sum_x[lane] * sum_l[lane]) / determinant;
            let offset = (sum_l2[lane] * sum_x[lane] - sum_l[lane] * sum_xl[lane]) / determinant;
            let above = offset > 0.0;
            new_scale[lane] = if above { sum_xl[lane] / sum_l2[lane] } else { slope };
            new_min[lane] = if above { 0.0 } else { offset };
            sound[lane] = determinant > 0.0;
        }
        let error = error(x, &weights, &quants, &new_scale, &new_min);
        let mut better = [false; WIDTH];
        for lane in 0..WIDTH {
            better[lane] = sound[lane] & (error[lane] < best[lane]);
        }
        inverse = chosen(&better, &candidate, &inverse);
        base = chosen(&better, &min, &base);
        best = chosen(&better, &error, &best);
        scale = chosen(&better, &new_scale, &scale);
        min = chosen(&better, &new_min, &min);
    }
    let fits = fits.iter().all(|&fits| fits);
    (Fit { scale, drop: min.map(|min| -min), inverse, base }, fits)
}

/// `a` where it is better, else `b`.
#[inline(always)]
pub(super) fn chosen(better: &[bool; WIDTH], a: &Lane, b: &Lane) -> Lane {
    let mut lane = [0.0; WIDTH];
    for (((chosen, &better), &a), &b) in lane.iter_mut().zip(better).zip(a).zip(b) {
        *chosen = if better { a } else { b };
    }
    lane
}

/// How much each number counts: more, the larger it is.
#[inline(always)]
fn weights(x: &[Lane; 32]) -> [Lane; 32] {
    let mut sum = [0.0; WIDTH];
    for x in x {
        for lane in 0..WIDTH {
            sum[lane] += x[lane] * x[lane];
        }
    }
    let mut mean = [0.0; WIDTH];
    for lane in 0..WIDTH {
        mean[lane] = (sum[lane] / 32.0_f32).sqrt();
    }
    let mut weights = [[0.0; WIDTH]; 32];
    for (w, x) in weights.iter_mut().zip(x) {
        for lane in 0..WIDTH {
            w[lane] = mean[lane] + x[lane].abs();
        }
    }
    weights
}

#[inline(always)]
fn range(x: &[Lane; 32]) -> (Lane, Lane) {
    let (mut low, mut high) = (x[0], x[0]);
    for x in x {
        for lane in 0..WIDTH {
            low[lane] = if x[lane] < low[lane] { x[lane] } else { low[lane] };
            high[lane] = if x[lane] > high[lane] { x[lane] } else { high[lane] };
        }
    }
    (low, high)
}

/// The quants of a column.
#[inline(always)]
fn rounded<const WRAPPING: bool>(x: &Lane, inverse: &Lane, min: &Lane, limit: f32) -> Lane {
    let mut quants = [0.0; WIDTH];
    for lane in 0..WIDTH {
        let exact = inverse[lane] * (x[lane] - min[lane]);
        quants[lane] = if WRAPPING {
            nearest(exact).clamp(0, limit as i32) as f32
        } else {
            // Clamped while shifted: the shift rounds to an integer.
            let shifted = exact + SHIFTER;
            let shifted = if shifted > SHIFTER { shifted } else { SHIFTER };
            let shifted = if shifted < SHIFTER + limit { shifted } else { SHIFTER + limit };
            shifted - SHIFTER
        };
    }
    quants
}

/// The weighted sum of squared differences.
#[inline(always)]
fn error(x: &[Lane; 32], weights: &[Lane; 32], quants: &[Lane; 32], scale: &Lane, min: &Lane) -> Lane {
    let mut sum = [0.0; WIDTH];
    for i in 0..32 {
        for lane in 0..WIDTH {
            let difference = scale[lane] * quants[i][lane] + min[lane] - x[i][lane];
            sum[lane] += weights[i][lane] * (difference * difference);
        }
    }
    sum
}
