//! The public sum against its reference.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::oracle::{Random, assert_close, assert_rounded, assert_same_bits, backward, leaf, on_threads, wide};

#[test]
fn agrees_with_the_reference_on_odd_shapes() {
    for mut random in Random::everywhere(1) {
        for shape in [[1, 1], [3, 7], [0, 5], [2, 1023], [129, 1100]] {
            for strided in [false, true] {
                let mut draw = || if strided { random.view(shape) } else { random.tensor(shape) };
                let [x, y, upstream] = [draw(), draw(), draw()];
                let (tx, ty) = (leaf(&x), leaf(&y));
                let sum = add(tx.clone(), ty.clone());
                assert_same_bits(&sum, &reference::add(x.clone(), y.clone()), "tracked sum");
                let grads = backward(&sum, &upstream);
                assert_close(&tx.grad(&grads).unwrap(), &upstream, "dx");
                assert_close(&ty.grad(&grads).unwrap(), &upstream, "dy");
                let grads = backward(&add(tx.clone(), y), &upstream);
                assert_close(&tx.grad(&grads).unwrap(), &upstream, "dx beside a constant");
            }
        }
    }
}

#[test]
fn an_operand_that_is_used_again_is_left_as_it_is() {
    for mut random in Random::everywhere(2) {
        let (x, y) = (random.tensor([5, 9]), random.tensor([5, 9]));
        let (x_copy, y_copy) = (x.clone() * 1.0, y.clone() * 1.0);
        let expected = reference::add(x.clone(), y.clone());
        assert_same_bits(&add(x.clone(), y.clone()), &expected, "into a new buffer");
        assert_same_bits(&add(x.clone(), y.clone() * 1.0), &expected, "into y");
        assert_same_bits(&add(x.clone() * 1.0, y.clone()), &expected, "into x");
        assert_same_bits(&add(x.clone(), x.clone()), &(x.clone() * 2.0), "twice the same");
        assert_same_bits(&x, &x_copy, "x");
        assert_same_bits(&y, &y_copy, "y");
    }
}

#[test]
fn both_uses_of_a_tensor_get_a_gradient() {
    for mut random in Random::everywhere(3) {
        let (x, upstream) = (leaf(&random.tensor([4, 6])), random.tensor([4, 6]));
        let y = add(x.clone(), add(x.clone() * 3.0, x.clone()));
        assert_close(&x.grad(&backward(&y, &upstream)).unwrap(), &(upstream * 5.0), "dx");
    }
}

#[test]
fn bf16_is_f32_rounded_once() {
    let mut random = Random::new(4);
    for (shape, strided) in [([1, 1], false), ([3, 7], true), ([0, 5], false), ([129, 1100], false)] {
        let [x, y, upstream] = [0; 3].map(|_| random.narrow(shape, strided));
        let (tx, expected) = (leaf(&x), reference::add(wide(&x), wide(&y)));
        let sum = add(tx.clone(), y.clone());
        assert_rounded(&sum, &expected, "sum");
        assert_rounded(&add(x, y * 1.0), &expected, "sum into y");
        assert_rounded(&tx.grad(&backward(&sum, &upstream)).unwrap(), &wide(&upstream), "dx");
    }
}

#[test]
fn thread_count_does_not_change_a_bit() {
    let mut random = Random::new(5);
    let (x, y) = (random.tensor([1001, 300]), random.tensor([1001, 300]));
    let run = |threads| on_threads(threads, || add(x.clone(), y.clone()));
    assert_same_bits(&run(1), &run(3), "add");
}
