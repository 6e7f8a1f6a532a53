//! The public softmax against its reference and finite differences.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::oracle::{Random, assert_close, assert_same_bits, backward, finite_differences, leaf, on_threads};

#[test]
fn agrees_with_the_reference_on_odd_shapes() {
    for mut random in Random::everywhere(1) {
        for shape in [[1, 1], [3, 7], [0, 5], [2, 33], [700, 128]] {
            for strided in [false, true] {
                let mut draw = |scale: f32| (if strided { random.view(shape) } else { random.tensor(shape) }) * scale;
                let (x, upstream) = (draw(20.0), draw(1.0));
                let (fast, expected) = (leaf(&x), leaf(&x));
                let (p, expected_p) = (softmax(fast.clone()), reference::softmax(expected.clone()));
                assert_close(&p, &expected_p, "p");
                assert_close(&softmax(x), &expected_p, "plain p");
                let dx = fast.grad(&backward(&p, &upstream)).unwrap();
                assert_close(&dx, &expected.grad(&backward(&expected_p, &upstream)).unwrap(), "dx");
            }
        }
    }
}

#[test]
fn gradient_agrees_with_finite_differences() {
    for mut random in Random::everywhere(2) {
        let (x, upstream) = (random.tensor([3, 5]), random.tensor([3, 5]));
        let tracked = leaf(&x);
        let dx = tracked.grad(&backward(&softmax(tracked.clone()), &upstream)).unwrap();
        assert_close(&dx, &finite_differences(&x, &upstream, reference::softmax).cast(dx.dtype()), "dx");
    }
}

#[test]
fn large_scores_do_not_overflow() {
    let device = burn::tensor::Device::flex();
    let x = Tensor::<2>::from_floats([[1000.0, 1000.0, -1000.0]], &device);
    assert_eq!(softmax(x).into_data().try_to_vec::<f32>().unwrap(), [0.5, 0.5, 0.0]);
}

#[test]
fn thread_count_does_not_change_a_bit() {
    let mut random = Random::new(3);
    let (x, upstream) = (random.tensor([1001, 128]), random.tensor([1001, 128]));
    let run = |threads| {
        on_threads(threads, || {
            let x = leaf(&x);
            let p = softmax(x.clone());
            let dx = x.grad(&backward(&p, &upstream)).unwrap();
            [p.inner(), dx]
        })
    };
    for (one, three) in run(1).iter().zip(&run(3)) {
        assert_same_bits(one, three, "p or dx");
    }
}
