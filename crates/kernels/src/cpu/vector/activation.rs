//! Rows of activations and their gradients.

use super::{exp_of, fma};

#[inline(always)]
fn sigmoid_of<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp_of::<FMA>(-x))
}

multiversioned! {
    /// `out = silu(gate)·up`.
    pub(crate) fn swiglu(out: &mut [f32], gate: &[f32], up: &[f32]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate * sigmoid_of::<FMA>(*gate) * up;
        }
    }

    /// `dgate = dy·up·silu'(gate)` and `dup = dy·silu(gate)`.
    pub(crate) fn swiglu_backward(dgate: &mut [f32], dup: &mut [f32], gate: &[f32], up: &[f32], dy: &[f32]) {
        let len = dgate.len();
        let (dup, gate, up, dy) = (&mut dup[..len], &gate[..len], &up[..len], &dy[..len]);
        for i in 0..len {
            let s = sigmoid_of::<FMA>(gate[i]);
            let silu = gate[i] * s;
            dup[i] = dy[i] * silu;
            dgate[i] = dy[i] * up[i] * fma::<FMA>(silu, 1.0 - s, s);
        }
    }

    /// `x = silu(x)`.
    pub(crate) fn silu(row: &mut [f32]) {
        for x in row.iter_mut() {
            *x *= sigmoid_of::<FMA>(*x);
        }
    }

    /// `z = dy·silu'(z)`.
    pub(crate) fn silu_backward(z: &mut [f32], dy: &[f32]) {
        for (z, dy) in z.iter_mut().zip(dy) {
            let s = sigmoid_of::<FMA>(*z);
            *z = dy * fma::<FMA>(*z * s, 1.0 - s, s);
        }
    }

    /// `out = x·σ(gate)`.
    pub(crate) fn sigmoid_gate(out: &mut [f32], x: &[f32], gate: &[f32]) {
        for ((out, x), gate) in out.iter_mut().zip(x).zip(gate) {
            *out = x * sigmoid_of::<FMA>(*gate);
        }
    }

    /// `dx = dy·σ(gate)` and `dgate = dy·x·σ'(gate)`.
    pub(crate) fn sigmoid_gate_backward(dx: &mut [f32], dgate: &mut [f32], x: &[f32], gate: &[f32], dy: &[f32]) {
        let len = dx.len();
        let (dgate, x, gate, dy) = (&mut dgate[..len], &x[..len], &gate[..len], &dy[..len]);
        for i in 0..len {
            let s = sigmoid_of::<FMA>(gate[i]);
            dx[i] = dy[i] * s;
            dgate[i] = dx[i] * x[i] * (1.0 - s);
        }
    }

    /// `σ(x)`.
    pub(crate) fn sigmoid(x: f32) -> f32 {
        sigmoid_of::<FMA>(x)
    }
}
