//! Inputs that are formed again against the same tensors kept: the gradients have the same bits.
#![allow(clippy::unwrap_used)]

use burn::tensor::DType;

use super::*;
use crate::oracle::{Random, assert_same_bits, backward, leaf};
use crate::{Adapter, Groups, Projection, Segments, attention, grouped_linear, projections};

/// A tensor of either type, or a view of one.
fn draw<const D: usize>(random: &mut Random, shape: [usize; D], dtype: DType, strided: bool) -> Tensor<D> {
    match dtype {
        DType::BF16 => random.narrow(shape, strided),
        _ if strided => random.view(shape),
        _ => random.tensor(shape),
    }
}

/// Runs `check` on both types, dense and strided, of odd and empty shapes `[T, 24]`.
fn cases(mut check: impl FnMut(&mut Random, usize, DType, bool)) {
    let mut random = Random::new(17);
    for tokens in [0, 1, 7, 40, 130] {
        for dtype in [DType::F32, DType::BF16] {
            for strided in [false, true] {
                check(&mut random, tokens, dtype, strided);
            }
        }
    }
}

/// Two maps with adapters, of which one trains its weight, of `input` once formed again and once kept; `leaves` are what it is
/// formed of.
#[expect(clippy::needless_pass_by_value, reason = "made for the call, as tensors are")]
fn agrees<const D: usize, const N: usize>(
    random: &mut Random,
    leaves: [Tensor<D>; N],
    dtype: DType,
    form: impl Fn([Tensor<D>; N]) -> Input<2>,
) {
    let width = form(leaves.clone()).tensor().dims()[1];
    let [weight, other] = [(); 2].map(|()| draw(random, [5, width], dtype, false));
    let (a, b) = (random.tensor([3, width]), random.tensor([5, 3]));
    let tokens = form(leaves.clone()).tensor().dims()[0];
    let upstream = draw(random, [tokens, 5], dtype, false);
    let run = |keep: bool| {
        let leaves = leaves.each_ref().map(leaf);
        let [weight, a, b] = [leaf(&weight), leaf(&a), leaf(&b)];
        let input = form(leaves.clone());
        assert!(input.again().is_some(), "a tracked input is formed again");
        let input = if keep { Input::from(input.into_tensor()) } else { input };
        let adapter = Adapter { a: a.clone(), b: b.clone(), scale: 1.5, dropout: None };
        let maps = [
            Projection { weight: weight.clone().into(), bias: None, adapter: Some(adapter.clone()) },
            Projection { weight: other.clone().into(), bias: None, adapter: Some(adapter) },
        ];
        let [one, two] = projections(input, maps);
        let grads = backward(&(one + two), &upstream);
        let of_leaves = leaves.map(|leaf| leaf.grad(&grads).unwrap());
        (of_leaves, [weight, a, b].map(|leaf| leaf.grad(&grads).unwrap()))
    };
    let (kept, again) = (run(true), run(false));
    for (kept, again) in kept.0.iter().zip(&again.0) {
        assert_same_bits(again, kept, "gradient of a source");
    }
    for ((kept, again), what) in kept.1.iter().zip(&again.1).zip(["dweight", "da", "db"]) {
        assert_same_bits(again, kept, what);
    }
}

#[test]
fn norms_of_a_linear_map() {
    cases(|random, tokens, dtype, strided| {
        let (x, weight) = (draw(random, [tokens, 24], dtype, strided), random.tensor([24]));
        for zero_centred in [false, true] {
            agrees(random, [x.clone()], dtype, |[x]| Input::rms_norm(x, weight.clone(), 1e-6, zero_centred));
        }
    });
}

#[test]
fn activations_of_a_linear_map() {
    cases(|random, tokens, dtype, strided| {
        let [gate, up] = [(); 2].map(|()| draw(random, [tokens, 24], dtype, strided));
        agrees(random, [gate, up], dtype, |[gate, up]| Input::swiglu(gate, up));
        let both = draw(random, [tokens, 24], dtype, strided);
        agrees(random, [both], dtype, |[both]| Input::swiglu_joined(both));
    });
}

#[test]
fn gates_of_a_linear_map_in_another_shape() {
    cases(|random, tokens, dtype, strided| {
        let [x, gate] = [(); 2].map(|()| draw(random, [tokens, 3, 8], dtype, strided));
        let weight = random.tensor([8]);
        let leaves = [x, gate];
        agrees(random, leaves.clone(), dtype, |[x, gate]| Input::sigmoid_gate(x, gate).reshape([tokens, 24]));
        agrees(random, leaves, dtype, |[x, z]| Input::gated_norm(x, z, weight.clone(), 1e-6).reshape([tokens, 24]));
    });
}

#[test]
fn activations_of_a_grouped_map() {
    let mut random = Random::new(23);
    for dtype in [DType::F32, DType::BF16] {
        let groups = Groups::of_counts(&[3, 0, 6]);
        let (both, weight) = (draw(&mut random, [9, 16], dtype, false), draw(&mut random, [3, 5, 8], dtype, false));
        let upstream = draw(&mut random, [9, 5], dtype, false);
        let run = |keep: bool| {
            let (both, weight) = (leaf(&both), leaf(&weight));
            let input = Input::swiglu_joined(both.clone());
            let input = if keep { Input::from(input.into_tensor()) } else { input };
            let grads = backward(&grouped_linear(input, &weight, &groups, None), &upstream);
            (both.grad(&grads).unwrap(), weight.grad(&grads).unwrap())
        };
        let (kept, again) = (run(true), run(false));
        assert_same_bits(&again.0, &kept.0, "dboth");
        assert_same_bits(&again.1, &kept.1, "dweight");
    }
}

#[test]
fn heads_of_attention() {
    cases(|random, tokens, dtype, strided| {
        let segments = Segments::packed(&[tokens / 3, tokens - tokens / 3]);
        let [k, v] = [(); 2].map(|()| draw(random, [tokens, 2, 8], dtype, strided));
        let q = draw(random, [tokens, 4, 8], dtype, strided);
        let upstream = draw(random, [tokens, 4, 8], dtype, false);
        let [q_norm, k_norm] = [(); 2].map(|()| random.tensor([8]));
        let [cos, sin] = [(); 2].map(|()| random.tensor([tokens, 3]));
        let run = |keep: bool| {
            let [q, k, v] = [leaf(&q), leaf(&k), leaf(&v)];
            let heads = |x: &Tensor<3>, norm: &Tensor<1>| {
                let input = Input::norm_rope(x.clone(), norm.clone(), cos.clone(), sin.clone(), 1e-6, false);
                if keep { Input::from(input.into_tensor()) } else { input }
            };
            let y = attention(heads(&q, &q_norm), heads(&k, &k_norm), v.clone(), &segments, 0.3, None);
            let grads = backward(&y, &upstream);
            [q, k, v].map(|leaf| leaf.grad(&grads).unwrap())
        };
        for ((kept, again), what) in run(true).iter().zip(&run(false)).zip(["dq", "dk", "dv"]) {
            assert_same_bits(again, kept, what);
        }
    });
}

#[test]
fn without_a_tape_nothing_is_held() {
    let mut random = Random::new(31);
    let (gate, up) = (random.tensor([4, 6]), random.tensor([4, 6]));
    assert!(Input::swiglu(gate.clone(), up.clone()).again().is_none());
    assert!(Input::swiglu(gate.autodiff(), up.autodiff()).again().is_none());
}
