//! The seed against its reference.
#![allow(clippy::unwrap_used)]

use burn::tensor::DType;

use super::*;
use crate::oracle::{Random, assert_same_bits, leaf};

#[test]
fn hands_exactly_the_gradient_on() {
    let mut random = Random::new(1);
    for dtype in [DType::F32, DType::BF16] {
        let (x, gradient) = (leaf(&random.tensor([3, 5]).cast(dtype)), random.view([3, 5]).cast(dtype));
        let grads = seed(x.clone() * 2.0, gradient.clone()).backward();
        let expected = reference::seed(x.clone() * 2.0, gradient.clone()).backward();
        assert_same_bits(&x.grad(&grads).unwrap(), &(gradient * 2.0), "dx");
        assert_same_bits(&x.grad(&grads).unwrap(), &x.grad(&expected).unwrap(), "dx as the reference has it");
    }
}

#[test]
fn goes_with_other_terms_of_a_sum() {
    for mut random in Random::everywhere(2) {
        let (x, gradient) = (leaf(&random.tensor([2, 3])), random.tensor([2, 3]));
        let grads = (seed(x.clone(), gradient.clone()) + x.clone().sum()).backward();
        assert_same_bits(&x.grad(&grads).unwrap(), &(gradient + 1.0), "dx");
    }
}
