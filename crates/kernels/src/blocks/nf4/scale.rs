//! Which scale a block of NF4 takes: the one under which its numbers lose least, where their input channels count.
//!
//! What a product loses to a weight w that became ŵ is `E[(Σᵢ (wᵢ - ŵᵢ) xᵢ)²]`, and as far as channels are not correlated
//! that is `Σᵢ E[xᵢ²] (wᵢ - ŵᵢ)²`: what llama.cpp's importance matrix and AWQ (Lin et al. 2023, arXiv 2306.00978) weigh
//! errors by. A few channels of a language model's residual stream hold most of the energy, so the nearest value of *their*
//! numbers is worth more than the largest number's own.

#![allow(unsafe_code, reason = "instructions of a detected set")]

use super::VALUES;

/// Shares of a block's largest magnitude that are tried as its scale. Of equal losses the first is taken: the largest
/// magnitude itself, which is bitsandbytes' scale.
pub(super) const SHARES: [f32; 9] = [1.0, 1.08, 1.04, 0.96, 0.92, 0.88, 0.84, 0.8, 0.76];

/// Numbers whose losses are added side by side, each sum in its own lane.
const LANES: usize = 16;

/// The scale of these numbers of magnitude `largest` at most, each of this weight. The same whatever instructions there are:
/// wider ones hold more lanes, and what a lane adds up is the same.
pub(super) fn weighted(values: &[f32], weights: &[f32], largest: f32) -> f32 {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the feature was detected.
            return unsafe { avx512(values, weights, largest) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            return unsafe { avx2(values, weights, largest) };
        }
    }
    plain(values, weights, largest)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512(values: &[f32], weights: &[f32], largest: f32) -> f32 {
    plain(values, weights, largest)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn avx2(values: &[f32], weights: &[f32], largest: f32) -> f32 {
    plain(values, weights, largest)
}

/// The reference, which every form is compiled from.
#[inline(always)]
pub(super) fn plain(values: &[f32], weights: &[f32], largest: f32) -> f32 {
    let mut best = (f32::INFINITY, largest);
    for share in SHARES {
        let scale = share * largest;
        let loss = loss(values, weights, scale);
        if loss < best.0 {
            best = (loss, scale);
        }
    }
    best.1
}

/// `Σ weight · (value - nearest value under the scale)²`.
#[inline(always)]
fn loss(values: &[f32], weights: &[f32], scale: f32) -> f32 {
    let borders: [f32; 15] = std::array::from_fn(|i| (VALUES[i] + VALUES[i + 1]) / 2.0 * scale);
    let scaled = VALUES.map(|value| value * scale);
    let mut sums = [0.0_f32; LANES];
    let (values, last) = values.as_chunks::<LANES>();
    let (weights, last_weights) = weights.as_chunks::<LANES>();
    let mut add = |values: &[f32; LANES], weights: &[f32; LANES]| {
        let mut nearest = [scaled[0]; LANES];
        for (border, above) in borders.iter().zip(&scaled[1..]) {
            for (nearest, value) in nearest.iter_mut().zip(values) {
                *nearest = if value > border { *above } else { *nearest };
            }
        }
        for lane in 0..LANES {
            let error = values[lane] - nearest[lane];
            sums[lane] += weights[lane] * error * error;
        }
    };
    values.iter().zip(weights).for_each(|(values, weights)| add(values, weights));
    if !last.is_empty() {
        let whole = |part: &[f32]| std::array::from_fn(|i| part.get(i).copied().unwrap_or(0.0));
        add(&whole(last), &whole(last_weights));
    }
    sums.iter().sum()
}
