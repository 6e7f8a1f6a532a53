//! The elementwise parts of a chunk of the gated delta rule; `[n, n]` matrices in C order, lower triangles.

use super::{exp_of, fma};

/// Tokens of a chunk, at most.
pub(crate) const CHUNK: usize = 64;

/// What [`overlaps`] read of a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OverlapRow<'a> {
    pub(crate) keys: &'a [f32],
    pub(crate) queries: &'a [f32],
    pub(crate) decay: &'a [f32],
    pub(crate) beta: f32,
}

multiversioned! {
    /// `decay[i, j] = exp(cumulative[i] - cumulative[j])` for `j ≤ i`, else 0.
    ///
    /// The differences are formed in f64: within a chunk of strong decays the sums are large and their differences small.
    pub(crate) fn decays(decay: &mut [f32], cumulative: &[f64]) {
        for ((i, row), here) in decay.chunks_exact_mut(cumulative.len()).enumerate().zip(cumulative) {
            let (seen, future) = row.split_at_mut(i + 1);
            for (decay, then) in seen.iter_mut().zip(cumulative) {
                *decay = exp_of::<FMA>((here - then) as f32);
            }
            future.fill(0.0);
        }
    }

    /// `mix[i, j] = beta[i]·keys[i, j]·decay[i, j]` and `weights = queries ⊙ decay`.
    pub(crate) fn overlaps(
        mix: &mut [f32],
        weights: &mut [f32],
        keys: &[f32],
        queries: &[f32],
        decay: &[f32],
        beta: &[f32],
    ) {
        let _ = FMA;
        let n = beta.len();
        for (i, beta) in beta.iter().enumerate() {
            let row = i * n..(i + 1) * n;
            let (mix, weights) = (&mut mix[row.clone()], &mut weights[row.clone()]);
            let (keys, queries, decay) = (&keys[row.clone()], &queries[row.clone()], &decay[row]);
            for j in 0..n {
                mix[j] = beta * keys[j] * decay[j];
                weights[j] = queries[j] * decay[j];
            }
        }
    }

    /// `m = (I + strictly lower part of m)⁻¹`, by forward substitution: row i of the inverse is `e_i - Σ_{j<i} m[i, j]·row j`.
    ///
    /// `m` is `[n, n]` with `n` at most [`CHUNK`].
    pub(crate) fn invert_unit_lower(m: &mut [f32], n: usize) {
        // Rows of a constant length stay in registers.
        let mut rows = [[0.0_f32; CHUNK]; CHUNK];
        for i in 0..n {
            let mut row = [0.0_f32; CHUNK];
            for (m, above) in m[i * n..i * n + i].iter().zip(&rows) {
                for lane in 0..CHUNK {
                    row[lane] = fma::<FMA>(-m, above[lane], row[lane]);
                }
            }
            row[i] = 1.0;
            rows[i] = row;
        }
        for (m, row) in m.chunks_exact_mut(n).zip(&rows) {
            m.copy_from_slice(&row[..n]);
        }
    }

    /// Backward of [`overlaps`] for a row, where `dmix` comes with its sign turned.
    ///
    /// Adds to the gradients of `keys` and `queries`. Leaves in `dmix` the terms whose sum is the gradient of `beta`, and
    /// in `dweights` those whose sum is the gradient of `cumulative[i]`, and each of which `cumulative[j]` loses.
    pub(crate) fn overlaps_backward(
        dmix: &mut [f32],
        dweights: &mut [f32],
        dkeys: &mut [f32],
        dqueries: &mut [f32],
        row: OverlapRow<'_>,
    ) {
        let n = dmix.len();
        let (dweights, dkeys, dqueries) = (&mut dweights[..n], &mut dkeys[..n], &mut dqueries[..n]);
        let OverlapRow { keys, queries, decay, beta } = row;
        let (keys, queries, decay) = (&keys[..n], &queries[..n], &decay[..n]);
        for j in 0..n {
            let (dmixed, dweight) = (-dmix[j] * decay[j], dweights[j] * decay[j]);
            dkeys[j] = fma::<FMA>(beta, dmixed, dkeys[j]);
            dqueries[j] += dweight;
            dmix[j] = dmixed * keys[j];
            dweights[j] = fma::<FMA>(beta, dmix[j], dweight * queries[j]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::Random;

    #[test]
    fn the_inverse_times_the_matrix_is_the_identity() {
        let mut random = Random::new(1);
        for n in [1, 2, 17, 63, CHUNK] {
            let m: Vec<f32> = (0..n * n).map(|_| random.unit()).collect();
            let mut inverse = m.iter().map(|m| m * 0.2).collect::<Vec<f32>>();
            invert_unit_lower(&mut inverse, n);
            for i in 0..n {
                for j in 0..n {
                    let lower =
                        |l: usize| if l < i { f64::from(m[i * n + l] * 0.2) } else { f64::from(u8::from(l == i)) };
                    let entry: f64 = (0..n).map(|l| lower(l) * f64::from(inverse[l * n + j])).sum();
                    assert!((entry - f64::from(u8::from(i == j))).abs() < 1e-5, "{n}: {entry} at {i}, {j}");
                }
            }
        }
    }

    #[test]
    fn decays_keep_small_differences_of_large_sums_and_never_overflow() {
        let cumulative = [-20.0, -1000.0, -1000.001, -1000.002];
        let mut decay = [f32::NAN; 16];
        decays(&mut decay, &cumulative);
        assert_eq!(&decay[..4], &[1.0, 0.0, 0.0, 0.0]);
        assert_eq!(decay[4], 0.0);
        assert!((f64::from(decay[13]) - (-0.002_f64).exp()).abs() < 2e-7, "{}", decay[13]);
        assert_eq!(decay[15], 1.0);
    }
}
