//! The public norm with rotation against its reference and finite differences.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::oracle::{
    Random, assert_close, assert_rounded, assert_same_bits, backward, double, finite_differences, leaf, on_threads,
    wide,
};

const EPS: f64 = 1e-6;
/// Tokens, heads, size, half of the channels that turn.
const SHAPES: [[usize; 4]; 7] =
    [[1, 1, 2, 1], [5, 3, 8, 4], [7, 2, 10, 3], [0, 2, 4, 2], [303, 4, 64, 32], [3, 1, 6, 0], [2, 3, 40, 20]];

fn angles(random: &mut Random, tokens: usize, half: usize) -> (Tensor<2>, Tensor<2>) {
    let angles = random.tensor([tokens, half]) * 3.0;
    (angles.clone().cos(), angles.sin())
}

#[test]
fn agrees_with_the_reference_on_odd_shapes() {
    for mut random in Random::everywhere(1) {
        for [tokens, heads, size, half] in SHAPES {
            for (strided, zero_centred) in [(false, false), (true, true)] {
                let shape = [tokens, heads, size];
                let mut draw = || if strided { random.view(shape) } else { random.tensor(shape) };
                let (x, upstream) = (draw(), draw());
                let (weight, (cos, sin)) = (random.tensor([size]), angles(&mut random, tokens, half));
                let (fast, expected) = ((leaf(&x), leaf(&weight)), (leaf(&x), leaf(&weight)));
                let run = |x, weight| norm_rope(x, weight, cos.clone(), sin.clone(), EPS, zero_centred);
                let y = run(fast.0.clone(), fast.1.clone());
                let (ex, ew) = expected.clone();
                let expected_y = reference::norm_rope(ex, ew, cos.clone(), sin.clone(), EPS, zero_centred);
                assert_close(&y, &expected_y, "y");
                assert_close(&run(x.clone(), weight.clone()), &expected_y, "plain y");
                if tokens == 0 {
                    // The reference loses its tape: Burn's `cat` leaves out what is empty.
                    assert_eq!(fast.0.grad(&backward(&y, &upstream)).unwrap().dims(), shape);
                    continue;
                }
                let (grads, expected_grads) = (backward(&y, &upstream), backward(&expected_y, &upstream));
                let expected_dx = expected.0.grad(&expected_grads).unwrap();
                assert_close(&fast.0.grad(&grads).unwrap(), &expected_dx, "dx");
                assert_close(&fast.1.grad(&grads).unwrap(), &expected.1.grad(&expected_grads).unwrap(), "dweight");
                let frozen = leaf(&x);
                let grads = backward(&run(frozen.clone(), weight), &upstream);
                assert_close(&frozen.grad(&grads).unwrap(), &expected_dx, "dx beside a frozen weight");
            }
        }
    }
}

/// The same arithmetic in the same order.
#[test]
fn f32_is_the_norm_then_the_rotation_bit_for_bit() {
    let mut random = Random::new(5);
    for [tokens, heads, size, half] in SHAPES {
        let (x, upstream) = (random.tensor([tokens, heads, size]), random.tensor([tokens, heads, size]));
        let (weight, (cos, sin)) = (random.tensor([size]), angles(&mut random, tokens, half));
        let (one, two) = (leaf(&x), leaf(&x));
        let y = norm_rope(one.clone(), weight.clone(), cos.clone(), sin.clone(), EPS, true);
        let expected = crate::rope(crate::rms_norm(two.clone(), weight, EPS, true), cos, sin);
        assert_same_bits(&y, &expected, "y");
        let (grads, expected_grads) = (backward(&y, &upstream), backward(&expected, &upstream));
        assert_same_bits(&one.grad(&grads).unwrap(), &two.grad(&expected_grads).unwrap(), "dx");
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    for mut random in Random::everywhere(2) {
        let (x, weight, upstream) = (random.tensor([3, 2, 6]), random.tensor([6]), random.tensor([3, 2, 6]));
        let (cos, sin) = angles(&mut random, 3, 2);
        for zero_centred in [false, true] {
            let (tx, tw) = (leaf(&x), leaf(&weight));
            let y = norm_rope(tx.clone(), tw.clone(), cos.clone(), sin.clone(), EPS, zero_centred);
            let grads = backward(&y, &upstream);
            let exact = |x, weight| reference::norm_rope(x, weight, double(&cos), double(&sin), EPS, zero_centred);
            let dx = finite_differences(&x, &upstream, |x| exact(x, double(&weight)));
            let dw = finite_differences(&weight, &upstream, |weight| exact(double(&x), weight));
            assert_close(&double(&tx.grad(&grads).unwrap()), &dx, "dx");
            assert_close(&double(&tw.grad(&grads).unwrap()), &dw, "dweight");
        }
    }
}

#[test]
fn bf16_is_f32_rounded_once() {
    let mut random = Random::new(3);
    for [tokens, heads, size, half] in SHAPES {
        for (strided, zero_centred) in [(false, false), (true, true)] {
            let shape = [tokens, heads, size];
            let (x, upstream) = (random.narrow(shape, strided), random.narrow(shape, strided));
            let (weight, (cos, sin)) = (random.tensor([size]), angles(&mut random, tokens, half));
            let (fast, exact) = ((leaf(&x), leaf(&weight)), (leaf(&wide(&x)), leaf(&weight)));
            let y = norm_rope(fast.0.clone(), fast.1.clone(), cos.clone(), sin.clone(), EPS, zero_centred);
            let expected = reference::norm_rope(exact.0.clone(), exact.1.clone(), cos, sin, EPS, zero_centred);
            assert_rounded(&y, &expected, "y");
            if tokens == 0 {
                // The reference loses its tape: Burn's `cat` leaves out what is empty.
                assert_eq!(fast.0.grad(&backward(&y, &upstream)).unwrap().dims(), shape);
                continue;
            }
            let (grads, exact_grads) = (backward(&y, &upstream), backward(&expected, &wide(&upstream)));
            assert_rounded(&fast.0.grad(&grads).unwrap(), &exact.0.grad(&exact_grads).unwrap(), "dx");
            assert_close(&fast.1.grad(&grads).unwrap(), &exact.1.grad(&exact_grads).unwrap(), "dweight");
        }
    }
}

#[test]
fn thread_count_does_not_change_a_bit() {
    let mut random = Random::new(4);
    let plain = (random.tensor([301, 4, 64]), random.tensor([301, 4, 64]));
    let narrow = (random.narrow([301, 4, 64], false), random.narrow([301, 4, 64], false));
    let (weight, (cos, sin)) = (random.tensor([64]), angles(&mut random, 301, 32));
    for (x, upstream) in [plain, narrow] {
        let run = |threads| {
            on_threads(threads, || {
                let (x, weight) = (leaf(&x), leaf(&weight));
                let y = norm_rope(x.clone(), weight.clone(), cos.clone(), sin.clone(), EPS, false);
                let grads = backward(&y, &upstream);
                (y, x.grad(&grads).unwrap(), weight.grad(&grads).unwrap())
            })
        };
        let (one, three) = (run(1), run(3));
        assert_same_bits(&one.0, &three.0, "y");
        assert_same_bits(&one.1, &three.1, "dx");
        assert_same_bits(&one.2, &three.2, "dweight");
    }
}
