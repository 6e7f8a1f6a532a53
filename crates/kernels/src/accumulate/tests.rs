//! The sums against their reference, and what they leave alone.

use super::*;
use crate::oracle::{Random, assert_same_bits};

#[test]
fn sums_have_the_bits_of_the_reference_and_shared_memory_stays() {
    for mut random in Random::everywhere(1) {
        // More pairs than a launch takes, read in vectors of every width; views among them.
        let lengths: Vec<usize> = (0..150).map(|index| [64, 1, 0, 130, 257, 4096][index % 6]).collect();
        let mut draw = || -> Vec<Tensor<1>> {
            let draw = |(index, &length): (usize, &usize)| match (index % 7, length) {
                (0, 1..) => random.tensor([length + 4]).narrow(0, 3, length),
                _ => random.tensor([length]),
            };
            lengths.iter().enumerate().map(draw).collect()
        };
        let (sums, more) = (draw(), draw());
        let shared = sums[3].clone();
        let before = shared.clone().mul_scalar(1.0);
        let expected: Vec<Tensor<1>> = sums.iter().zip(&more).map(|(a, b)| a.clone() + b.clone()).collect();
        let found = accumulate(sums, more);
        for ((found, expected), length) in found.iter().zip(&expected).zip(&lengths) {
            if *length > 0 {
                assert_same_bits(found, expected, "a sum");
            }
        }
        assert_same_bits(&shared, &before, "what shares a sum's memory");
        assert!(accumulate(Vec::new(), Vec::new()).is_empty());
    }
}
