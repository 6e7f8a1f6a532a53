//! The public grouped map against its reference and finite differences.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::oracle::{
    Random, assert_close, assert_same_bits, backward, distance, double, finite_differences, leaf, on_threads,
};

fn agrees(random: &mut Random, counts: &[usize], [inputs, outputs]: [usize; 2], strided: bool) {
    let groups = Groups::of_counts(counts);
    let rows = groups.rows();
    let x: Tensor<2> = if strided { random.view([rows, inputs]) } else { random.tensor([rows, inputs]) };
    let shape = [counts.len(), outputs, inputs];
    let weight: Tensor<3> = if strided { random.view(shape) } else { random.tensor(shape) };
    let upstream: Tensor<2> = random.tensor([rows, outputs]);
    for tracked in [[true, true], [true, false], [false, true]] {
        let one =
            (if tracked[0] { leaf(&x) } else { x.clone() }, if tracked[1] { leaf(&weight) } else { weight.clone() });
        let two =
            (if tracked[0] { leaf(&x) } else { x.clone() }, if tracked[1] { leaf(&weight) } else { weight.clone() });
        let y = grouped_linear(&one.0, &one.1, &groups);
        let expected = reference::grouped_linear(&two.0, &two.1, &groups);
        let what = format!("{counts:?}, [{outputs}, {inputs}]");
        assert_close(&y, &expected, &what);
        let (grads, expected) = (backward(&y, &upstream), backward(&expected, &upstream));
        match (one.0.grad(&grads), two.0.grad(&expected)) {
            (Some(dx), Some(expected)) => assert_close(&dx, &expected, &format!("dx of {what}")),
            (dx, _) => assert!(dx.is_none() && !tracked[0]),
        }
        match (one.1.grad(&grads), two.1.grad(&expected)) {
            (Some(dw), Some(expected)) => assert_close(&dw, &expected, &format!("dweight of {what}")),
            (dw, _) => assert!(dw.is_none() && !tracked[1]),
        }
    }
}

#[test]
fn the_fast_form_is_the_reference() {
    let mut random = Random::new(7);
    for (counts, sizes) in [
        (vec![1], [1, 1]),
        (vec![3, 0, 5], [7, 4]),
        (vec![0, 0, 9, 1], [33, 65]),
        (vec![64, 65, 1], [40, 24]),
        ((0..40).map(|i| i % 4).collect(), [19, 23]),
    ] {
        agrees(&mut random, &counts, sizes, false);
        agrees(&mut random, &counts, sizes, true);
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let mut random = Random::new(8);
    let groups = Groups::of_counts(&[2, 0, 3]);
    let (x, weight, upstream): (Tensor<2>, Tensor<3>, Tensor<2>) =
        (random.tensor([5, 4]), random.tensor([3, 6, 4]), random.tensor([5, 6]));
    let (taped_x, taped_weight) = (leaf(&x), leaf(&weight));
    let grads = backward(&grouped_linear(&taped_x, &taped_weight, &groups), &upstream);
    let dx = finite_differences(&x, &upstream, |x| reference::grouped_linear(&x, &double(&weight), &groups));
    let dw = finite_differences(&weight, &upstream, |w| reference::grouped_linear(&double(&x), &w, &groups));
    assert!(distance(&taped_x.grad(&grads).unwrap(), &dx) < 1e-5);
    assert!(distance(&taped_weight.grad(&grads).unwrap(), &dw) < 1e-5);
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let mut random = Random::new(9);
    for counts in [vec![100, 0, 30], (0..32).collect()] {
        let groups = Groups::of_counts(&counts);
        let (x, weight): (Tensor<2>, Tensor<3>) =
            (random.tensor([groups.rows(), 48]), random.tensor([counts.len(), 56, 48]));
        let run = |threads| on_threads(threads, || grouped_linear(&x, &weight, &groups));
        assert_same_bits(&run(1), &run(4), "y");
    }
}

#[test]
fn no_rows_give_no_rows() {
    let mut random = Random::new(10);
    let y = grouped_linear(&random.tensor([0, 4]), &random.tensor([2, 3, 4]), &Groups::of_counts(&[0, 0]));
    assert_eq!(y.dims(), [0, 3]);
}
