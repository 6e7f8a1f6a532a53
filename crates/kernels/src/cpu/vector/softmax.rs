//! Rows of exponentials, and the weights of a softmax.

use super::{LANES, exp_of, fold, padded, reduce};

/// Applies `f` to every element, in whole vectors; returns the sum of the results in lanes.
#[inline(always)]
fn map_and_sum(row: &mut [f32], neutral: f32, f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (whole, rest) = row.as_chunks_mut::<LANES>();
    for chunk in whole {
        for lane in 0..LANES {
            chunk[lane] = f(chunk[lane]);
            lanes[lane] += chunk[lane];
        }
    }
    if !rest.is_empty() {
        let mut chunk = padded(rest, neutral);
        for lane in 0..LANES {
            chunk[lane] = f(chunk[lane]);
            lanes[lane] += chunk[lane];
        }
        rest.copy_from_slice(&chunk[..rest.len()]);
    }
    fold(lanes, |a, b| a + b)
}

multiversioned! {
    /// `x = exp(x - shift)`; returns the sum.
    pub(crate) fn exp_and_sum(row: &mut [f32], shift: f32) -> f32 {
        map_and_sum(row, f32::NEG_INFINITY, |x| exp_of::<FMA>(x - shift))
    }

    /// `Σ exp(x - shift)`, leaving the row as it is.
    pub(crate) fn sum_of_exp(row: &[f32], shift: f32) -> f32 {
        reduce([row], f32::NEG_INFINITY, 0.0, |[x], sum| sum + exp_of::<FMA>(x - shift), |a, b| a + b)
    }

    /// `x = factor·exp(x - shift)`.
    pub(crate) fn scaled_exp(row: &mut [f32], shift: f32, factor: f32) {
        map_and_sum(row, f32::NEG_INFINITY, |x| factor * exp_of::<FMA>(x - shift));
    }

    /// `w = exp(s - lse)` and `d = w·(d - delta)`: the weights of a softmax formed again from its scores, and the
    /// gradients of the weights turned into those of the scores.
    pub(crate) fn softmax_backward(scores: &mut [f32], gradients: &mut [f32], lse: f32, delta: f32) {
        let (scores, scores_rest) = scores.as_chunks_mut::<LANES>();
        let (gradients, gradients_rest) = gradients.as_chunks_mut::<LANES>();
        for (scores, gradients) in scores.iter_mut().zip(gradients) {
            for lane in 0..LANES {
                scores[lane] = exp_of::<FMA>(scores[lane] - lse);
                gradients[lane] = scores[lane] * (gradients[lane] - delta);
            }
        }
        if !scores_rest.is_empty() {
            let mut weights = padded(scores_rest, 0.0);
            for weight in &mut weights {
                *weight = exp_of::<FMA>(*weight - lse);
            }
            scores_rest.copy_from_slice(&weights[..scores_rest.len()]);
            for (gradient, weight) in gradients_rest.iter_mut().zip(scores_rest) {
                *gradient = *weight * (*gradient - delta);
            }
        }
    }

    /// `dx = p·(dp - delta)`: the gradient of the scores of weights `p`.
    pub(crate) fn softmax_gradient(dx: &mut [f32], p: &[f32], dp: &[f32], delta: f32) {
        let _ = FMA;
        for ((dx, p), dp) in dx.iter_mut().zip(p).zip(dp) {
            *dx = p * (dp - delta);
        }
    }
}
