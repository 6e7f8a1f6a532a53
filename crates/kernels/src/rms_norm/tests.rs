//! The public norm against its reference and finite differences.
#![allow(clippy::unwrap_used)]

use burn::tensor::DType;

use super::*;
use crate::oracle::{
    Random, assert_close, assert_rounded, assert_same_bits, backward, double, finite_differences, leaf, on_threads,
    wide,
};

const EPS: f64 = 1e-6;

fn agrees<const D: usize>(random: &mut Random, shape: [usize; D], strided: bool, zero_centred: bool) {
    let x = if strided { random.view(shape) } else { random.tensor(shape) };
    let (weight, upstream) = (random.tensor([shape[D - 1]]), random.tensor(shape));
    let (fast, expected) = ((leaf(&x), leaf(&weight)), (leaf(&x), leaf(&weight)));
    let y = rms_norm(fast.0.clone(), fast.1.clone(), EPS, zero_centred);
    let expected_y = reference::rms_norm(expected.0.clone(), expected.1.clone(), EPS, zero_centred);
    assert_close(&y, &expected_y, "rms_norm");
    assert_close(&rms_norm(x.clone(), weight.clone(), EPS, zero_centred), &expected_y, "plain rms_norm");
    let (grads, expected_grads) = (backward(&y, &upstream), backward(&expected_y, &upstream));
    let expected_dx = expected.0.grad(&expected_grads).unwrap();
    assert_close(&fast.0.grad(&grads).unwrap(), &expected_dx, "dx");
    assert_close(&fast.1.grad(&grads).unwrap(), &expected.1.grad(&expected_grads).unwrap(), "dweight");

    let frozen = leaf(&x);
    let grads = backward(&rms_norm(frozen.clone(), weight, EPS, zero_centred), &upstream);
    assert_close(&frozen.grad(&grads).unwrap(), &expected_dx, "dx beside a frozen weight");
}

#[test]
fn agrees_with_the_reference_on_odd_shapes() {
    for mut random in Random::everywhere(1) {
        for zero_centred in [false, true] {
            for strided in [false, true] {
                for shape in [[1, 2], [1, 5], [3, 16], [7, 33], [200, 100]] {
                    agrees(&mut random, shape, strided, zero_centred);
                }
                for shape in [[5, 3, 8], [2, 1, 65]] {
                    agrees(&mut random, shape, strided, zero_centred);
                }
            }
        }
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    for mut random in Random::everywhere(2) {
        for zero_centred in [false, true] {
            let (x, weight, upstream) = (random.tensor([3, 5]), random.tensor([5]), random.tensor([3, 5]));
            let (tracked_x, tracked_weight) = (leaf(&x), leaf(&weight));
            let y = rms_norm(tracked_x.clone(), tracked_weight.clone(), EPS, zero_centred);
            let grads = backward(&y, &upstream);
            let dx = finite_differences(&x, &upstream, |x| reference::rms_norm(x, double(&weight), EPS, zero_centred));
            let dw = finite_differences(&weight, &upstream, |w| reference::rms_norm(double(&x), w, EPS, zero_centred));
            assert_close(&double(&tracked_x.grad(&grads).unwrap()), &dx, "dx");
            assert_close(&double(&tracked_weight.grad(&grads).unwrap()), &dw, "dweight");
        }
    }
}

#[test]
fn thread_count_does_not_change_a_bit() {
    let mut random = Random::new(3);
    let (x, weight, upstream) = (random.tensor([3001, 40]), random.tensor([40]), random.tensor([3001, 40]));
    let run = |threads| {
        on_threads(threads, || {
            let (x, weight) = (leaf(&x), leaf(&weight));
            let y = rms_norm(x.clone(), weight.clone(), EPS, false);
            let grads = backward(&y, &upstream);
            (y, x.grad(&grads).unwrap(), weight.grad(&grads).unwrap())
        })
    };
    let (one, three) = (run(1), run(3));
    assert_same_bits(&one.0, &three.0, "y");
    assert_same_bits(&one.1, &three.1, "dx");
    assert_same_bits(&one.2, &three.2, "dweight");
}

/// The weight is f32, as in a bf16 model, or bf16 as in a checkpoint.
#[test]
fn bf16_is_f32_rounded_once() {
    let mut random = Random::new(4);
    for (shape, strided, zero_centred) in
        [([1, 1, 2], false, false), ([3, 2, 33], true, true), ([0, 2, 5], false, false), ([200, 3, 100], true, false)]
    {
        let (x, upstream) = (random.narrow(shape, strided), random.narrow(shape, strided));
        for weight in [random.tensor([shape[2]]), random.tensor([shape[2]]).cast(DType::BF16)] {
            let (fast, exact) = ((leaf(&x), leaf(&weight)), (leaf(&wide(&x)), leaf(&wide(&weight))));
            let y = rms_norm(fast.0.clone(), fast.1.clone(), EPS, zero_centred);
            let expected = reference::rms_norm(exact.0.clone(), exact.1.clone(), EPS, zero_centred);
            assert_rounded(&y, &expected, "y");
            let (grads, exact_grads) = (backward(&y, &upstream), backward(&expected, &wide(&upstream)));
            assert_rounded(&fast.0.grad(&grads).unwrap(), &exact.0.grad(&exact_grads).unwrap(), "dx");
            let (dweight, expected) = (fast.1.grad(&grads).unwrap(), exact.1.grad(&exact_grads).unwrap());
            if weight.dtype() == DType::F32 {
                assert_close(&dweight, &expected, "dweight");
            } else {
                assert_rounded(&dweight, &expected, "dweight");
            }
        }
    }
}

#[test]
fn thread_count_does_not_change_a_bit_of_bf16() {
    let mut random = Random::new(5);
    let (x, weight, upstream) =
        (random.narrow([3001, 40], false), random.tensor([40]), random.narrow([3001, 40], false));
    let run = |threads| {
        on_threads(threads, || {
            let x = leaf(&x);
            let y = rms_norm(x.clone(), weight.clone(), EPS, false);
            let dx = x.grad(&backward(&y, &upstream)).unwrap();
            [y.inner(), dx]
        })
    };
    for (one, three) in run(1).iter().zip(&run(3)) {
        assert_same_bits(one, three, "y or dx");
    }
}
