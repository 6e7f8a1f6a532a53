//! Arithmetic on vectors of f32 inside kernels.

use cubecl::prelude::*;

/// Sum of a vector's elements.
#[cube]
pub(crate) fn sum<N: Size>(vector: Vector<f32, N>) -> f32 {
    let mut total = vector.extract(0usize);
    #[unroll]
    for at in 1..N::value() {
        total += vector.extract(at);
    }
    total
}

/// Largest of a vector's elements.
#[cube]
pub(crate) fn largest<N: Size>(vector: Vector<f32, N>) -> f32 {
    let mut largest = vector.extract(0usize);
    #[unroll]
    for at in 1..N::value() {
        largest = max(largest, vector.extract(at));
    }
    largest
}

/// `1/(1 + exp(-x))`.
#[cube]
pub(crate) fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::new(1.0f32);
    one / (one + (Vector::new(0.0f32) - x).exp())
}

/// `x·σ(x)`.
#[cube]
pub(crate) fn silu<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    x * sigmoid::<N>(x)
}

/// Derivative of [`silu`]: `σ·(1 + x·(1 - σ))`.
#[cube]
pub(crate) fn silu_slope<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::new(1.0f32);
    let gate = sigmoid::<N>(x);
    gate * (one + x * (one - gate))
}
