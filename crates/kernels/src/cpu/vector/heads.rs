//! The head vectors of a token, one after another: norm and rotation, in one call a token because a head is short.

use super::{fma, reduce};

/// Cosines and sines of a token's angles.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Angles<'a> {
    pub(crate) cos: &'a [f32],
    pub(crate) sin: &'a [f32],
}

/// Turns the pairs of the first channels, whose halves lie apart, by the angles times `sign`; the others pass through.
#[inline(always)]
fn rotate<const FMA: bool>(out: &mut [f32], x: &[f32], Angles { cos, sin }: Angles, sign: f32) {
    let half = cos.len();
    let (out, out_rest) = out.split_at_mut(2 * half);
    let (out_first, out_second) = out.split_at_mut(half);
    let (first, second, rest) = (&x[..half], &x[half..2 * half], &x[2 * half..]);
    let sin = &sin[..half];
    for i in 0..half {
        let s = sign * sin[i];
        out_first[i] = fma::<FMA>(-second[i], s, first[i] * cos[i]);
        out_second[i] = fma::<FMA>(first[i], s, second[i] * cos[i]);
    }
    out_rest.copy_from_slice(rest);
}

multiversioned! {
    /// Turns heads of `size` by the angles of their token, times `sign`.
    pub(crate) fn rotate_heads(out: &mut [f32], x: &[f32], size: usize, angles: Angles<'_>, sign: f32) {
        for (out, x) in out.chunks_exact_mut(size).zip(x.chunks_exact(size)) {
            rotate::<FMA>(out, x, angles, sign);
        }
    }

    /// Norm of each head, times `factors`, then its rotation; leaves in `rstd` what its values were multiplied by.
    pub(crate) fn norm_rotate(
        out: &mut [f32],
        rstd: &mut [f32],
        x: &[f32],
        factors: &[f32],
        normed: &mut [f32],
        angles: Angles<'_>,
        eps: f32,
    ) {
        let size = factors.len();
        let normed = &mut normed[..size];
        for ((out, rstd), x) in out.chunks_exact_mut(size).zip(rstd).zip(x.chunks_exact(size)) {
            let squares = reduce([x], 0.0, 0.0, |[x], sum| fma::<FMA>(x, x, sum), |a, b| a + b);
            *rstd = 1.0 / (squares / size as f32 + eps).sqrt();
            for i in 0..size {
                normed[i] = x[i] * *rstd * factors[i];
            }
            rotate::<FMA>(out, normed, angles, 1.0);
        }
    }

    /// Gradient of each head of [`norm_rotate`]: with `g` the upstream one turned back,
    /// `dx = rstd·w·g - x·rstd³·mean(w ⊙ g ⊙ x)`.
    pub(crate) fn norm_rotate_backward(
        dx: &mut [f32],
        x: &[f32],
        dy: &[f32],
        rstd: &[f32],
        factors: &[f32],
        angles: Angles<'_>,
    ) {
        let size = factors.len();
        let rows = dx.chunks_exact_mut(size).zip(x.chunks_exact(size)).zip(dy.chunks_exact(size));
        for (((dx, x), dy), r) in rows.zip(rstd) {
            rotate::<FMA>(dx, dy, angles, -1.0);
            let sum = reduce([x, dx, factors], 0.0, 0.0, |[x, y, z], sum| fma::<FMA>(x * y, z, sum), |a, b| a + b);
            let c = sum / size as f32 * r * r * r;
            for i in 0..size {
                dx[i] = fma::<FMA>(-c, x[i], r * factors[i] * dx[i]);
            }
        }
    }
}
