//! The public grouped map against its reference and finite differences.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::Dropout;
use crate::oracle::{
    Random, assert_close, assert_same_bits, backward, distance, double, finite_differences, leaf, on_threads,
};

/// The operands `[x, weight, a, b]`, those on the tape as leaves.
struct Case {
    x: Tensor<2>,
    weight: Tensor<3>,
    factors: Option<[Tensor<3>; 2]>,
}

impl Case {
    fn leaves(&self, tracked: [bool; 3]) -> Self {
        fn taken<const D: usize>(tensor: &Tensor<D>, tracked: bool) -> Tensor<D> {
            if tracked { leaf(tensor) } else { tensor.clone() }
        }
        Self {
            x: taken(&self.x, tracked[0]),
            weight: taken(&self.weight, tracked[1]),
            factors: self.factors.as_ref().map(|both| both.each_ref().map(|one| taken(one, tracked[2]))),
        }
    }

    fn adapter(&self, dropout: Option<Dropout>) -> Option<Adapter<3>> {
        let [a, b] = self.factors.clone()?;
        Some(Adapter { a, b, scale: 0.75, dropout })
    }

    /// Gradients of `x`, weight, A and B, flat.
    fn gradients(&self, grads: &burn::tensor::Gradients) -> Vec<Option<Tensor<1>>> {
        let mut all = vec![self.x.grad(grads).map(|dx| dx.flatten(0, 1)), self.weight.grad(grads).map(flat)];
        all.extend(self.factors.iter().flatten().map(|one| one.grad(grads).map(flat)));
        all
    }
}

fn flat(tensor: Tensor<3>) -> Tensor<1> {
    tensor.flatten(0, 2)
}

fn agrees(random: &mut Random, counts: &[usize], [inputs, outputs]: [usize; 2], rank: usize, strided: bool) {
    let groups = Groups::of_counts(counts);
    let rows = groups.rows();
    let matrices = |random: &mut Random, shape: [usize; 3]| -> Tensor<3> {
        if strided { random.view(shape) } else { random.tensor(shape) }
    };
    let case = Case {
        x: if strided { random.view([rows, inputs]) } else { random.tensor([rows, inputs]) },
        weight: matrices(random, [counts.len(), outputs, inputs]),
        factors: (rank > 0)
            .then(|| [matrices(random, [counts.len(), rank, inputs]), matrices(random, [counts.len(), outputs, rank])]),
    };
    let upstream: Tensor<2> = random.tensor([rows, outputs]);
    for dropout in [None, Some(Dropout { p: 0.25, key: 5 })] {
        for tracked in [[true, true, true], [true, false, true], [false, true, false], [false, false, true]] {
            if !tracked[0] && !tracked[1] && rank == 0 {
                continue;
            }
            let (one, two) = (case.leaves(tracked), case.leaves(tracked));
            let y = grouped_linear(one.x.clone(), &one.weight, &groups, one.adapter(dropout).as_ref());
            let expected = reference::grouped_linear(&two.x, &two.weight, &groups, two.adapter(dropout).as_ref());
            let what = format!("{counts:?}, [{outputs}, {inputs}], rank {rank}, {tracked:?}");
            assert_close(&y, &expected, &what);
            let (grads, expected) = (backward(&y, &upstream), backward(&expected, &upstream));
            let wanted = [tracked[0], tracked[1], tracked[2], tracked[2]];
            let pairs = one.gradients(&grads).into_iter().zip(two.gradients(&expected)).zip(wanted);
            for (index, ((found, expected), wanted)) in pairs.enumerate() {
                match (found, expected) {
                    (Some(found), Some(expected)) => {
                        assert!(wanted);
                        assert_close(&found, &expected, &format!("gradient {index} of {what}"));
                    }
                    (found, expected) => assert!(found.is_none() && expected.is_none() && !wanted, "{index} of {what}"),
                }
            }
        }
    }
}

#[test]
fn the_fast_form_is_the_reference() {
    for mut random in Random::everywhere(7) {
        for (counts, sizes, rank) in [
            (vec![1], [1, 1], 1),
            (vec![3, 0, 5], [7, 4], 2),
            (vec![0, 0, 9, 1], [33, 65], 0),
            (vec![0, 0, 9, 1], [33, 65], 5),
            (vec![64, 65, 1], [40, 24], 8),
            ((0..40).map(|i| i % 4).collect(), [19, 23], 3),
        ] {
            agrees(&mut random, &counts, sizes, rank, false);
            agrees(&mut random, &counts, sizes, rank, true);
        }
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    for mut random in Random::everywhere(8) {
        let groups = Groups::of_counts(&[2, 0, 3]);
        let (x, weight, upstream): (Tensor<2>, Tensor<3>, Tensor<2>) =
            (random.tensor([5, 4]), random.tensor([3, 6, 4]), random.tensor([5, 6]));
        let factors: [Tensor<3>; 2] = [random.tensor([3, 2, 4]), random.tensor([3, 6, 2])];
        let taped = Case { x: x.clone(), weight: weight.clone(), factors: Some(factors.clone()) }.leaves([true; 3]);
        let y = grouped_linear(taped.x.clone(), &taped.weight, &groups, taped.adapter(None).as_ref());
        let grads = backward(&y, &upstream);
        let [a, b] = factors;
        let exact = |x: &Tensor<2>, weight: &Tensor<3>, a: &Tensor<3>, b: &Tensor<3>| {
            let adapter = Adapter { a: a.clone(), b: b.clone(), scale: 0.75, dropout: None };
            reference::grouped_linear(x, weight, &groups, Some(&adapter))
        };
        let (x64, w64, a64, b64) = (double(&x), double(&weight), double(&a), double(&b));
        let expected = [
            finite_differences(&x, &upstream, |x| exact(&x, &w64, &a64, &b64)).flatten(0, 1),
            flat(finite_differences(&weight, &upstream, |w| exact(&x64, &w, &a64, &b64))),
            flat(finite_differences(&a, &upstream, |a| exact(&x64, &w64, &a, &b64))),
            flat(finite_differences(&b, &upstream, |b| exact(&x64, &w64, &a64, &b))),
        ];
        for (found, expected) in taped.gradients(&grads).into_iter().zip(expected) {
            assert!(distance(&found.unwrap(), &expected) < 1e-5);
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let mut random = Random::new(9);
    for counts in [vec![100, 0, 30], (0..32).collect()] {
        let groups = Groups::of_counts(&counts);
        let (x, weight): (Tensor<2>, Tensor<3>) =
            (random.tensor([groups.rows(), 48]), random.tensor([counts.len(), 56, 48]));
        let run = |threads| on_threads(threads, || grouped_linear(x.clone(), &weight, &groups, None));
        assert_same_bits(&run(1), &run(4), "y");
    }
}

#[test]
fn no_rows_give_no_rows() {
    for mut random in Random::everywhere(10) {
        let y = grouped_linear(random.tensor([0, 4]), &random.tensor([2, 3, 4]), &Groups::of_counts(&[0, 0]), None);
        assert_eq!(y.dims(), [0, 3]);
    }
}
