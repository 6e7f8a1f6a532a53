//! The public gate against its reference and finite differences.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::oracle::{
    Random, assert_close, assert_rounded, assert_same_bits, backward, double, finite_differences, leaf, on_threads,
    wide,
};

/// Shape of `x`, gates of a row.
const SHAPES: [([usize; 3], usize); 8] = [
    ([1, 1, 1], 1),
    ([3, 2, 7], 7),
    ([3, 2, 7], 1),
    ([0, 2, 5], 5),
    ([0, 2, 5], 1),
    ([2, 3, 33], 33),
    ([200, 3, 100], 100),
    ([200, 3, 100], 1),
];

#[test]
fn agrees_with_the_reference_on_odd_shapes() {
    for mut random in Random::everywhere(1) {
        for (shape, gates) in SHAPES {
            for strided in [false, true] {
                let mut draw = |shape: [usize; 3]| if strided { random.view(shape) } else { random.tensor(shape) };
                let (x, gate, upstream) = (draw(shape), draw([shape[0], shape[1], gates]) * 12.0, draw(shape));
                let (fast, expected) = ([leaf(&x), leaf(&gate)], [leaf(&x), leaf(&gate)]);
                let y = sigmoid_gate(fast[0].clone(), fast[1].clone());
                let expected_y = reference::sigmoid_gate(expected[0].clone(), expected[1].clone());
                assert_close(&y, &expected_y, "y");
                assert_close(&sigmoid_gate(x, gate), &expected_y, "plain y");
                let (grads, expected_grads) = (backward(&y, &upstream), backward(&expected_y, &upstream));
                for (index, what) in ["dx", "dgate"].into_iter().enumerate() {
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
fn gradients_agree_with_finite_differences() {
    for mut random in Random::everywhere(2) {
        for gates in [5, 1] {
            let (x, gate, upstream) = (random.tensor([4, 5]), random.tensor([4, gates]), random.tensor([4, 5]));
            let (tx, tg) = (leaf(&x), leaf(&gate));
            let grads = backward(&sigmoid_gate(tx.clone(), tg.clone()), &upstream);
            let dx = finite_differences(&x, &upstream, |x| reference::sigmoid_gate(x, double(&gate)));
            let dgate = finite_differences(&gate, &upstream, |gate| reference::sigmoid_gate(double(&x), gate));
            assert_close(&double(&tx.grad(&grads).unwrap()), &dx, "dx");
            assert_close(&double(&tg.grad(&grads).unwrap()), &dgate, "dgate");
        }
    }
}

#[test]
fn bf16_is_f32_rounded_once() {
    let mut random = Random::new(3);
    for (shape, gates) in SHAPES {
        for strided in [false, true] {
            let [x, upstream] = [0; 2].map(|_| random.narrow(shape, strided));
            let gate = random.narrow([shape[0], shape[1], gates], strided) * 12.0;
            let (fast, exact) = ([&x, &gate].map(leaf), [&x, &gate].map(|t| leaf(&wide(t))));
            let y = sigmoid_gate(fast[0].clone(), fast[1].clone());
            let expected = reference::sigmoid_gate(exact[0].clone(), exact[1].clone());
            assert_rounded(&y, &expected, "y");
            let (grads, exact_grads) = (backward(&y, &upstream), backward(&expected, &wide(&upstream)));
            for (index, what) in ["dx", "dgate"].into_iter().enumerate() {
                assert_rounded(&fast[index].grad(&grads).unwrap(), &exact[index].grad(&exact_grads).unwrap(), what);
            }
        }
    }
}

#[test]
fn thread_count_does_not_change_a_bit() {
    let mut random = Random::new(4);
    let (x, upstream) = (random.tensor([1001, 300]), random.tensor([1001, 300]));
    for gates in [300, 1] {
        let gate = random.tensor([1001, gates]);
        let run = |threads| {
            on_threads(threads, || {
                let (x, gate) = (leaf(&x), leaf(&gate));
                let y = sigmoid_gate(x.clone(), gate.clone());
                let grads = backward(&y, &upstream);
                [y.inner(), x.grad(&grads).unwrap(), gate.grad(&grads).unwrap()]
            })
        };
        for (one, three) in run(1).iter().zip(&run(3)) {
            assert_same_bits(one, three, "an output or gradient");
        }
    }
}
