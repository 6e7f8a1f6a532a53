//! The public gated norm against its reference and finite differences.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::oracle::{
    Random, assert_close, assert_rounded, assert_same_bits, backward, double, finite_differences, leaf, on_threads,
    wide,
};

const EPS: f64 = 1e-6;

#[test]
fn agrees_with_the_reference_on_odd_shapes() {
    for mut random in Random::everywhere(1) {
        for shape in [[1, 1, 2], [3, 2, 5], [7, 4, 33], [200, 3, 100]] {
            for strided in [false, true] {
                let mut draw = |scale: f32| (if strided { random.view(shape) } else { random.tensor(shape) }) * scale;
                let (x, z, upstream) = (draw(1.0), draw(8.0), draw(1.0));
                let weight = random.tensor([shape[2]]);
                let (fast, expected) = ([leaf(&x), leaf(&z)], [leaf(&x), leaf(&z)]);
                let (fast_weight, expected_weight) = (leaf(&weight), leaf(&weight));
                let y = gated_norm(fast[0].clone(), fast[1].clone(), fast_weight.clone(), EPS);
                let [ex, ez] = expected.clone();
                let expected_y = reference::gated_norm(ex, ez, expected_weight.clone(), EPS);
                assert_close(&y, &expected_y, "gated_norm");
                assert_close(&gated_norm(x, z, weight, EPS), &expected_y, "plain gated_norm");
                let (grads, expected_grads) = (backward(&y, &upstream), backward(&expected_y, &upstream));
                for (index, what) in ["dx", "dz"].into_iter().enumerate() {
                    assert_close(
                        &fast[index].grad(&grads).unwrap(),
                        &expected[index].grad(&expected_grads).unwrap(),
                        what,
                    );
                }
                let expected = expected_weight.grad(&expected_grads).unwrap();
                assert_close(&fast_weight.grad(&grads).unwrap(), &expected, "dweight");
            }
        }
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    for mut random in Random::everywhere(2) {
        let (x, z, weight) = (random.tensor([3, 2, 5]), random.tensor([3, 2, 5]), random.tensor([5]));
        let upstream = random.tensor([3, 2, 5]);
        let (tx, tz, tw) = (leaf(&x), leaf(&z), leaf(&weight));
        let grads = backward(&gated_norm(tx.clone(), tz.clone(), tw.clone(), EPS), &upstream);
        let dx = finite_differences(&x, &upstream, |x| reference::gated_norm(x, double(&z), double(&weight), EPS));
        let dz = finite_differences(&z, &upstream, |z| reference::gated_norm(double(&x), z, double(&weight), EPS));
        let dw = finite_differences(&weight, &upstream, |w| reference::gated_norm(double(&x), double(&z), w, EPS));
        assert_close(&double(&tx.grad(&grads).unwrap()), &dx, "dx");
        assert_close(&double(&tz.grad(&grads).unwrap()), &dz, "dz");
        assert_close(&double(&tw.grad(&grads).unwrap()), &dw, "dweight");
    }
}

#[test]
fn the_norm_comes_before_the_gate() {
    let device = burn::tensor::Device::flex();
    let x = Tensor::<2>::from_floats([[3.0, 4.0]], &device);
    let z = Tensor::from_floats([[1.0, -2.0]], &device);
    let y = gated_norm(x, z, Tensor::from_floats([2.0, 1.0], &device), 0.0).into_data().try_to_vec::<f32>().unwrap();
    let (rms, silu) = (12.5_f32.sqrt(), |z: f32| z / (1.0 + (-z).exp()));
    assert!((y[0] - 2.0 * 3.0 / rms * silu(1.0)).abs() < 1e-6, "{y:?}");
    assert!((y[1] - 4.0 / rms * silu(-2.0)).abs() < 1e-6, "{y:?}");
}

#[test]
fn thread_count_does_not_change_a_bit() {
    let mut random = Random::new(3);
    let (x, z, upstream) = (random.tensor([1501, 2, 40]), random.tensor([1501, 2, 40]), random.tensor([1501, 2, 40]));
    let weight = random.tensor([40]);
    let run = |threads| {
        on_threads(threads, || {
            let (x, z) = (leaf(&x), leaf(&z));
            let y = gated_norm(x.clone(), z.clone(), weight.clone(), EPS);
            let grads = backward(&y, &upstream);
            [y.inner(), x.grad(&grads).unwrap(), z.grad(&grads).unwrap()]
        })
    };
    for (one, three) in run(1).iter().zip(&run(3)) {
        assert_same_bits(one, three, "an output or gradient");
    }
}

#[test]
fn bf16_is_f32_rounded_once() {
    let mut random = Random::new(4);
    for (shape, strided) in [([1, 1, 2], false), ([3, 2, 5], true), ([0, 2, 5], false), ([200, 3, 100], true)] {
        let [x, z, upstream] = [1.0, 8.0, 1.0].map(|scale| random.narrow(shape, strided) * scale);
        let weight = random.tensor([shape[2]]);
        let (fast, exact) = ([&x, &z].map(leaf), [&x, &z].map(|t| leaf(&wide(t))));
        let (fast_weight, exact_weight) = (leaf(&weight), leaf(&weight));
        let y = gated_norm(fast[0].clone(), fast[1].clone(), fast_weight.clone(), EPS);
        let expected = reference::gated_norm(exact[0].clone(), exact[1].clone(), exact_weight.clone(), EPS);
        assert_rounded(&y, &expected, "y");
        let (grads, exact_grads) = (backward(&y, &upstream), backward(&expected, &wide(&upstream)));
        for (index, what) in ["dx", "dz"].into_iter().enumerate() {
            assert_rounded(&fast[index].grad(&grads).unwrap(), &exact[index].grad(&exact_grads).unwrap(), what);
        }
        assert_close(&fast_weight.grad(&grads).unwrap(), &exact_weight.grad(&exact_grads).unwrap(), "dweight");
    }
}
