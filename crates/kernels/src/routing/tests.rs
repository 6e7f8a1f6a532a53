//! The public ways to the experts and back against their references and finite differences.
#![allow(clippy::unwrap_used)]

use burn::tensor::DType;

use super::*;
use crate::oracle::{
    Random, assert_close, assert_rounded, assert_same_bits, backward, double, finite_differences, leaf, on_cpu,
    on_threads, wide,
};

/// Rows in any order.
fn routes(random: &mut Random, tokens: usize, active: usize) -> Arc<Routes> {
    let mut rows: Vec<usize> = (0..tokens * active).collect();
    for last in (1..rows.len()).rev() {
        rows.swap(last, random.below(last + 1));
    }
    Routes::new(rows, active)
}

/// Tokens, choices of each, width.
const SHAPES: [[usize; 3]; 6] = [[1, 1, 1], [5, 2, 7], [0, 2, 5], [9, 8, 33], [3, 1, 64], [700, 4, 100]];

#[test]
fn rows_of_tokens_agree_with_the_reference() {
    for mut random in Random::everywhere(1) {
        for [tokens, active, width] in SHAPES {
            for strided in [false, true] {
                let routes = routes(&mut random, tokens, active);
                let mut draw = |shape| if strided { random.view(shape) } else { random.tensor(shape) };
                let (x, upstream) = (draw([tokens, width]), draw([tokens * active, width]));
                let (fast, expected) = (leaf(&x), leaf(&on_cpu(&x)));
                let (rows, expected_rows) =
                    (spread(fast.clone(), &routes), reference::spread(expected.clone(), &routes));
                assert_same_bits(&rows, &expected_rows, "rows");
                assert_same_bits(&spread(x, &routes), &expected_rows, "plain rows");
                let dx = fast.grad(&backward(&rows, &upstream)).unwrap();
                assert_close(&dx, &expected.grad(&backward(&expected_rows, &upstream)).unwrap(), "dx");
            }
        }
    }
}

#[test]
fn sums_of_rows_agree_with_the_reference() {
    for mut random in Random::everywhere(2) {
        for [tokens, active, width] in SHAPES {
            for strided in [false, true] {
                let routes = routes(&mut random, tokens, active);
                let mut draw = |shape| if strided { random.view(shape) } else { random.tensor(shape) };
                let (rows, weights) = (draw([tokens * active, width]), draw([tokens, active]));
                let upstream = draw([tokens, width]);
                let fast = [leaf(&rows), leaf(&weights)];
                let expected = [leaf(&on_cpu(&rows)), leaf(&on_cpu(&weights))];
                let y = combine(fast[0].clone(), fast[1].clone(), &routes);
                let expected_y = reference::combine(expected[0].clone(), expected[1].clone(), &routes);
                assert_close(&y, &expected_y, "y");
                assert_close(&combine(rows, weights.clone(), &routes), &expected_y, "plain y");
                let (grads, expected_grads) = (backward(&y, &upstream), backward(&expected_y, &upstream));
                for (index, what) in ["drows", "dweights"].into_iter().enumerate() {
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
fn rows_of_bf16_are_those_of_f32_rounded() {
    for mut random in Random::everywhere_in_bf16(5) {
        for [tokens, active, width] in SHAPES {
            for strided in [false, true] {
                let routes = routes(&mut random, tokens, active);
                let narrow = random.narrow([tokens, width], strided);
                let (fast, exact) = (leaf(&narrow), leaf(&on_cpu(&wide(&narrow))));
                let (rows, exact_rows) = (spread(fast.clone(), &routes), reference::spread(exact.clone(), &routes));
                let upstream = random.narrow([tokens * active, width], strided);
                assert_rounded(&rows, &exact_rows, "bf16 rows");
                let dx = fast.grad(&backward(&rows, &upstream)).unwrap();
                let exact = exact.grad(&backward(&exact_rows, &wide(&upstream))).unwrap();
                assert_rounded(&dx, &exact, "dx of bf16");

                let weights = random.tensor([tokens, active]);
                let rows = random.narrow([tokens * active, width], strided);
                let upstream = random.narrow([tokens, width], strided);
                let (fast, exact) =
                    ([leaf(&rows), leaf(&weights)], [leaf(&on_cpu(&wide(&rows))), leaf(&on_cpu(&weights))]);
                let y = combine(fast[0].clone(), fast[1].clone(), &routes);
                let exact_y = reference::combine(exact[0].clone(), exact[1].clone(), &routes);
                assert_rounded(&y, &exact_y, "bf16 y");
                let (grads, exact_grads) = (backward(&y, &upstream), backward(&exact_y, &wide(&upstream)));
                assert_rounded(&fast[0].grad(&grads).unwrap(), &exact[0].grad(&exact_grads).unwrap(), "drows of bf16");
                let dweights = fast[1].grad(&grads).unwrap();
                assert_eq!(dweights.dtype(), DType::F32);
                assert_close(&dweights, &exact[1].grad(&exact_grads).unwrap(), "dweights beside bf16");
            }
        }
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    for mut random in Random::everywhere(3) {
        let routes = routes(&mut random, 3, 2);
        let (rows, weights, upstream) = (random.tensor([6, 5]), random.tensor([3, 2]), random.tensor([3, 5]));
        let (tr, tw) = (leaf(&rows), leaf(&weights));
        let grads = backward(&combine(tr.clone(), tw.clone(), &routes), &upstream);
        let drows = finite_differences(&rows, &upstream, |rows| reference::combine(rows, double(&weights), &routes));
        let dweights = finite_differences(&weights, &upstream, |w| reference::combine(double(&rows), w, &routes));
        assert_close(&double(&tr.grad(&grads).unwrap()), &drows, "drows");
        assert_close(&double(&tw.grad(&grads).unwrap()), &dweights, "dweights");
    }
}

#[test]
fn thread_count_does_not_change_a_bit() {
    let mut random = Random::new(4);
    let routes = routes(&mut random, 1001, 4);
    let (x, weights, upstream) = (random.tensor([1001, 100]), random.tensor([1001, 4]), random.tensor([1001, 100]));
    let run = |threads| {
        on_threads(threads, || {
            let (x, weights) = (leaf(&x), leaf(&weights));
            let y = combine(spread(x.clone(), &routes), weights.clone(), &routes);
            let grads = backward(&y, &upstream);
            [y.inner(), x.grad(&grads).unwrap(), weights.grad(&grads).unwrap()]
        })
    };
    for (one, three) in run(1).iter().zip(&run(3)) {
        assert_same_bits(one, three, "an output or gradient");
    }
}

#[test]
#[should_panic(expected = "row 1 belongs to two choices")]
fn a_row_has_one_choice() {
    let _ = Routes::new(vec![0, 1, 1, 2], 2);
}
