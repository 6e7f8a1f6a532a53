//! The optimizer's update of a row.

use super::fma;

/// The numbers of an update in f32.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AdamW {
    pub(crate) clip: f32,
    pub(crate) beta1: f32,
    /// `1 - beta1`, from the unrounded beta.
    pub(crate) rest1: f32,
    pub(crate) beta2: f32,
    pub(crate) rest2: f32,
    /// `√(1 - b2^t)`.
    pub(crate) root_correction: f32,
    pub(crate) eps: f32,
    /// `1 - lr wd`.
    pub(crate) kept: f32,
    /// `lr / (1 - b1^t)`.
    pub(crate) step_size: f32,
}

multiversioned! {
    /// `g = clip·g`, `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g²`, `p = kept p - step m / (√v / correction + eps)`.
    /// Every element on its own, so the bits do not depend on where rows are cut.
    pub(crate) fn adamw(value: &mut [f32], first: &mut [f32], second: &mut [f32], gradient: &[f32], n: &AdamW) {
        let len = value.len();
        let (first, second, gradient) = (&mut first[..len], &mut second[..len], &gradient[..len]);
        for i in 0..len {
            let g = gradient[i] * n.clip;
            let m = fma::<FMA>(n.beta1, first[i], n.rest1 * g);
            let v = fma::<FMA>(n.beta2, second[i], n.rest2 * (g * g));
            let step = m / (v.sqrt() / n.root_correction + n.eps);
            first[i] = m;
            second[i] = v;
            value[i] = fma::<FMA>(-n.step_size, step, n.kept * value[i]);
        }
    }
}
