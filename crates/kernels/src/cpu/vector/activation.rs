//! Rows of activations and their gradients.

use super::{exp_of, fma};

#[inline(always)]
fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp_of::<FMA>(-x))
}

multiversioned! {
    /// `out = silu(gate)·up`.
    pub(crate) fn swiglu(out: &mut [f32], gate: &[f32], up: &[f32]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate * sigmoid::<FMA>(*gate) * up;
        }
    }

    /// `dgate = dy·up·silu'(gate)` and `dup = dy·silu(gate)`.
    pub(crate) fn swiglu_backward(dgate: &mut [f32], dup: &mut [f32], gate: &[f32], up: &[f32], dy: &[f32]) {
        let len = dgate.len();
        let (dup, gate, up, dy) = (&mut dup[..len], &gate[..len], &up[..len], &dy[..len]);
        for i in 0..len {
            let s = sigmoid::<FMA>(gate[i]);
            let silu = gate[i] * s;
            dup[i] = dy[i] * silu;
            dgate[i] = dy[i] * up[i] * fma::<FMA>(silu, 1.0 - s, s);
        }
    }

    /// `x = silu(x)`.
    pub(crate) fn silu(row: &mut [f32]) {
        for x in row.iter_mut() {
            *x *= sigmoid::<FMA>(*x);
        }
    }

    /// `z = dy·silu'(z)`.
    pub(crate) fn silu_backward(z: &mut [f32], dy: &[f32]) {
        for (z, dy) in z.iter_mut().zip(dy) {
            let s = sigmoid::<FMA>(*z);
            *z = dy * fma::<FMA>(*z * s, 1.0 - s, s);
        }
    }
}
