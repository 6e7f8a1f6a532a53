//! The public rotation against its reference and finite differences.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::oracle::{
    Random, assert_close, assert_rounded, assert_same_bits, backward, double, finite_differences, leaf, on_threads,
    wide,
};

fn angles(random: &mut Random, tokens: usize, half: usize) -> (Tensor<2>, Tensor<2>) {
    let angles = random.tensor([tokens, half]) * 3.0;
    (angles.clone().cos(), angles.sin())
}

#[test]
fn agrees_with_the_reference_on_odd_shapes() {
    for mut random in Random::everywhere(1) {
        for [tokens, heads, size, half] in
            [[1, 1, 2, 1], [5, 3, 8, 4], [7, 2, 10, 3], [33, 4, 64, 32], [3, 1, 6, 0], [2, 3, 40, 20]]
        {
            for strided in [false, true] {
                let shape = [tokens, heads, size];
                let x = if strided { random.view(shape) } else { random.tensor(shape) };
                let (cos, sin) = angles(&mut random, tokens, half);
                let upstream = random.tensor(shape);
                let (tracked, expected_x) = (leaf(&x), leaf(&x));
                let y = rope(tracked.clone(), cos.clone(), sin.clone());
                let expected = reference::rope(expected_x.clone(), cos.clone(), sin.clone());
                assert_close(&y, &expected, "rope");
                assert_close(&rope(x, cos, sin), &expected, "plain rope");
                let dx = tracked.grad(&backward(&y, &upstream)).unwrap();
                let expected_dx = expected_x.grad(&backward(&expected, &upstream)).unwrap();
                assert_close(&dx, &expected_dx, "dx");
            }
        }
    }
}

#[test]
fn gradient_agrees_with_finite_differences() {
    for mut random in Random::everywhere(2) {
        let (x, (cos, sin), upstream) = (random.tensor([3, 2, 6]), angles(&mut random, 3, 2), random.tensor([3, 2, 6]));
        let tracked = leaf(&x);
        let dx = tracked.grad(&backward(&rope(tracked.clone(), cos.clone(), sin.clone()), &upstream)).unwrap();
        let slopes = finite_differences(&x, &upstream, |x| reference::rope(x, double(&cos), double(&sin)));
        assert_close(&dx, &slopes.cast(dx.dtype()), "dx");
    }
}

#[test]
fn thread_count_does_not_change_a_bit() {
    let mut random = Random::new(3);
    let (x, (cos, sin)) = (random.tensor([301, 4, 64]), angles(&mut random, 301, 32));
    let run = |threads| on_threads(threads, || rope(x.clone(), cos.clone(), sin.clone()));
    assert_same_bits(&run(1), &run(3), "rope");
}

#[test]
fn bf16_is_f32_rounded_once() {
    let mut random = Random::new(4);
    for ([tokens, heads, size, half], strided) in [
        ([1, 1, 2, 1], false),
        ([7, 2, 10, 3], true),
        ([0, 2, 4, 2], false),
        ([303, 4, 64, 32], true),
        ([3, 1, 6, 0], true),
    ] {
        let shape = [tokens, heads, size];
        let (x, upstream) = (random.narrow(shape, strided), random.narrow(shape, strided));
        let (cos, sin) = angles(&mut random, tokens, half);
        let (fast, exact) = (leaf(&x), leaf(&wide(&x)));
        let y = rope(fast.clone(), cos.clone(), sin.clone());
        let expected = reference::rope(exact.clone(), cos, sin);
        assert_rounded(&y, &expected, "y");
        if tokens == 0 {
            // The reference loses its tape: Burn's `cat` leaves out what is empty.
            assert_eq!(fast.grad(&backward(&y, &upstream)).unwrap().dims(), shape);
            continue;
        }
        let dx = fast.grad(&backward(&y, &upstream)).unwrap();
        assert_rounded(&dx, &exact.grad(&backward(&expected, &wide(&upstream))).unwrap(), "dx");
    }
}
