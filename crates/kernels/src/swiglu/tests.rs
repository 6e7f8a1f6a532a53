//! The public gated activation against its reference and finite differences.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::oracle::{
    Random, assert_close, assert_rounded, assert_same_bits, backward, double, finite_differences, leaf, on_threads,
    wide,
};

#[test]
fn agrees_with_the_reference_on_odd_shapes() {
    for mut random in Random::everywhere(1) {
        for shape in [[1, 1], [3, 7], [5, 16], [2, 33], [129, 100]] {
            for strided in [false, true] {
                let mut draw = |scale: f32| (if strided { random.view(shape) } else { random.tensor(shape) }) * scale;
                let (gate, up, upstream) = (draw(12.0), draw(1.0), draw(1.0));
                let (fast, expected) = ([leaf(&gate), leaf(&up)], [leaf(&gate), leaf(&up)]);
                let y = swiglu(fast[0].clone(), fast[1].clone());
                let expected_y = reference::swiglu(expected[0].clone(), expected[1].clone());
                assert_close(&y, &expected_y, "swiglu");
                assert_close(&swiglu(gate, up), &expected_y, "plain swiglu");
                let (grads, expected_grads) = (backward(&y, &upstream), backward(&expected_y, &upstream));
                for (index, what) in ["dgate", "dup"].into_iter().enumerate() {
                    assert_close(
                        &fast[index].grad(&grads).unwrap(),
                        &expected[index].grad(&expected_grads).unwrap(),
                        what,
                    );
                }
            }
        }
    }
}

#[test]
fn a_constant_operand_gets_no_gradient_and_leaves_the_other_right() {
    for mut random in Random::everywhere(2) {
        let (gate, up, upstream) = (random.tensor([4, 9]), random.tensor([4, 9]), random.tensor([4, 9]));
        let tracked = leaf(&gate);
        let dgate = tracked.grad(&backward(&swiglu(tracked.clone(), up.clone()), &upstream)).unwrap();
        let slopes = finite_differences(&gate, &upstream, |gate| reference::swiglu(gate, double(&up)));
        assert_close(&dgate, &slopes.cast(dgate.dtype()), "dgate");
        let tracked = leaf(&up);
        let dup = tracked.grad(&backward(&swiglu(gate.clone(), tracked.clone()), &upstream)).unwrap();
        let slopes = finite_differences(&up, &upstream, |up| reference::swiglu(double(&gate), up));
        assert_close(&dup, &slopes.cast(dup.dtype()), "dup");
    }
}

#[test]
fn extreme_gates_saturate() {
    let device = burn::tensor::Device::flex();
    let gate = Tensor::<2>::from_floats([[-200.0, -88.0, 0.0, 88.0, 200.0]], &device);
    let y = swiglu(gate, Tensor::ones([1, 5], &device)).into_data().try_to_vec::<f32>().unwrap();
    assert!(y[0].abs() < 1e-30 && y[1].abs() < 1e-30 && y[2] == 0.0 && y[3] == 88.0 && y[4] == 200.0, "{y:?}");
}

#[test]
fn thread_count_does_not_change_a_bit() {
    let mut random = Random::new(3);
    let (gate, up) = (random.tensor([1001, 300]), random.tensor([1001, 300]));
    let run = |threads| on_threads(threads, || swiglu(gate.clone(), up.clone()));
    assert_same_bits(&run(1), &run(3), "swiglu");
}

#[test]
fn bf16_is_f32_rounded_once() {
    let mut random = Random::new(4);
    for (shape, strided) in [([1, 1], false), ([3, 7], true), ([0, 5], false), ([2, 1023], false), ([129, 1100], true)]
    {
        let [gate, up, upstream] = [12.0, 1.0, 1.0].map(|scale| random.narrow(shape, strided) * scale);
        let (fast, exact) = ([&gate, &up].map(leaf), [&gate, &up].map(|t| leaf(&wide(t))));
        let y = swiglu(fast[0].clone(), fast[1].clone());
        let expected = reference::swiglu(exact[0].clone(), exact[1].clone());
        assert_rounded(&y, &expected, "y");
        let (grads, exact_grads) = (backward(&y, &upstream), backward(&expected, &wide(&upstream)));
        for (index, what) in ["dgate", "dup"].into_iter().enumerate() {
            assert_rounded(&fast[index].grad(&grads).unwrap(), &exact[index].grad(&exact_grads).unwrap(), what);
        }
    }
}

#[test]
fn joined_is_the_same_bit_for_bit() {
    let mut random = Random::new(5);
    for (rows, width) in [(1, 1), (3, 7), (0, 5), (5, 600), (700, 100)] {
        for strided in [false, true] {
            let shape = [rows, 2 * width];
            let plain = (if strided { random.view(shape) } else { random.tensor(shape) }, random.tensor([rows, width]));
            let narrow = (random.narrow(shape, strided), random.narrow([rows, width], false));
            for (both, upstream) in [plain, narrow] {
                let (tracked, expected) = (leaf(&both), leaf(&both));
                let y = swiglu_joined(tracked.clone());
                let [gate, up] = [0, width].map(|first| expected.clone().narrow(1, first, width));
                let expected_y = swiglu(gate, up);
                assert_same_bits(&y, &expected_y, "y");
                let dboth = tracked.grad(&backward(&y, &upstream)).unwrap();
                if rows == 0 {
                    // Burn loses the tape of an empty part.
                    assert_eq!(dboth.dims(), shape);
                    continue;
                }
                let expected = expected.grad(&backward(&expected_y, &upstream)).unwrap();
                assert_same_bits(&dboth, &expected, "dboth");
            }
        }
    }
}

#[test]
fn joined_agrees_with_its_reference() {
    for mut random in Random::everywhere(6) {
        let (both, upstream) = (random.tensor([9, 34]) * 8.0, random.tensor([9, 17]));
        let (tracked, expected) = (leaf(&both), leaf(&both));
        let (y, expected_y) = (swiglu_joined(tracked.clone()), reference::swiglu_joined(expected.clone()));
        assert_close(&y, &expected_y, "y");
        let dboth = tracked.grad(&backward(&y, &upstream)).unwrap();
        assert_close(&dboth, &expected.grad(&backward(&expected_y, &upstream)).unwrap(), "dboth");
    }
}
