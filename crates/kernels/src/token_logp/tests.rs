//! The public head against full logits, its reference and finite differences.
#![allow(clippy::unwrap_used)]

use burn::tensor::DType;
use burn::tensor::activation::log_softmax;

use super::*;
use crate::oracle::{
    Random, assert_close, assert_same_bits, backward, distance, double, finite_differences, leaf, on_cpu, on_threads,
    values, wide,
};

/// Targets with holes: about a third of the tokens carries no loss.
fn draw_targets(random: &mut Random, tokens: usize, vocabulary: usize) -> Vec<i32> {
    (0..tokens).map(|_| if random.below(3) == 0 { -100 } else { random.below(vocabulary) as i32 }).collect()
}

/// `log_softmax` over all logits, then the targets.
fn whole_logits(h: &Tensor<2>, head: &Tensor<2>, targets: &[i32]) -> Vec<f64> {
    let vocabulary = head.dims()[0];
    let logp = values(&log_softmax(h.clone().matmul(head.clone().transpose()), 1));
    let picked =
        |(row, &target): (usize, &i32)| if target < 0 { 0.0 } else { logp[row * vocabulary + target as usize] };
    targets.iter().enumerate().map(picked).collect()
}

const SHAPES: [[usize; 3]; 5] = [[1, 1, 1], [5, 3, 7], [40, 16, 33], [3, 8, 300], [1700, 8, 50]];

#[test]
fn agrees_with_whole_logits() {
    for mut random in Random::everywhere(1) {
        for [tokens, size, vocabulary] in SHAPES {
            for strided in [false, true] {
                let (h, head) = if strided {
                    (random.view([tokens, size]), random.view([vocabulary, size]))
                } else {
                    (random.tensor([tokens, size]), random.tensor([vocabulary, size]))
                };
                let h = h * 4.0;
                let targets = draw_targets(&mut random, tokens, vocabulary);
                let logp = token_logp(h.clone(), head.clone(), &targets);
                let expected = whole_logits(&double(&h), &double(&head), &targets);
                for (row, (actual, expected)) in values(&logp).iter().zip(&expected).enumerate() {
                    assert!(
                        (actual - expected).abs() < 1e-5 * (1.0 + expected.abs()),
                        "row {row}: {actual} and {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn gradients_agree_with_the_reference() {
    for mut random in Random::everywhere(2) {
        for [tokens, size, vocabulary] in SHAPES {
            let (h, head) = (random.tensor([tokens, size]) * 3.0, random.tensor([vocabulary, size]));
            let targets = draw_targets(&mut random, tokens, vocabulary);
            let upstream = random.tensor([tokens]);
            for (h_tracked, head_tracked) in [(true, false), (false, true), (true, true)] {
                let track = |tensor: &Tensor<2>, tracked| if tracked { leaf(tensor) } else { tensor.clone() };
                let (fast_h, fast_head) = (track(&h, h_tracked), track(&head, head_tracked));
                let (plain_h, plain_head) = (track(&on_cpu(&h), h_tracked), track(&on_cpu(&head), head_tracked));
                let grads = backward(&token_logp(fast_h.clone(), fast_head.clone(), &targets), &upstream);
                let expected = reference::token_logp(plain_h.clone(), plain_head.clone(), &targets);
                if !expected.is_tracked() {
                    continue;
                }
                let expected = backward(&expected, &upstream);
                for (fast, plain, name) in [(fast_h, plain_h, "dh"), (fast_head, plain_head, "dhead")] {
                    match (fast.grad(&grads), plain.grad(&expected)) {
                        (Some(fast), Some(plain)) => assert_close(&fast, &plain, name),
                        (fast, plain) => assert_eq!(fast.is_some(), plain.is_some(), "{name}"),
                    }
                }
            }
        }
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    for mut random in Random::everywhere(3) {
        let (h, head, upstream) = (random.tensor([5, 3]), random.tensor([7, 3]), random.tensor([5]));
        let targets = [2, -100, 0, 6, 2];
        let (tracked_h, tracked_head) = (leaf(&h), leaf(&head));
        let grads = backward(&token_logp(tracked_h.clone(), tracked_head.clone(), &targets), &upstream);
        let dh = finite_differences(&h, &upstream, |h| reference::token_logp(h, double(&head), &targets));
        let dhead = finite_differences(&head, &upstream, |head| reference::token_logp(double(&h), head, &targets));
        assert_close(&double(&tracked_h.grad(&grads).unwrap()), &dh, "dh");
        assert_close(&double(&tracked_head.grad(&grads).unwrap()), &dhead, "dhead");
    }
}

#[test]
fn one_pass_loss_is_the_gradient_of_the_log_probabilities() {
    for mut random in Random::everywhere(4) {
        for [tokens, size, vocabulary] in SHAPES {
            let (h, head) = (random.tensor([tokens, size]) * 3.0, random.tensor([vocabulary, size]));
            let targets = draw_targets(&mut random, tokens, vocabulary);
            let weights: Vec<f32> = (0..tokens).map(|_| random.unit()).collect();
            let upstream = Tensor::<1>::from_floats(weights.as_slice(), &h.device()) * -1.0;
            let (tracked_h, tracked_head) = (leaf(&h), leaf(&head));
            let expected = token_logp(tracked_h.clone(), tracked_head.clone(), &targets);
            let grads = backward(&expected, &upstream);

            let frozen = head_loss(h.clone(), head.clone(), &targets, &weights);
            assert_close(&frozen.logp, &expected, "logp");
            assert_close(&frozen.dh, &tracked_h.grad(&grads).unwrap(), "dh");
            assert!(frozen.dhead.is_none(), "a frozen head needs no gradient");

            let full = head_loss(h, tracked_head.clone(), &targets, &weights);
            assert_close(&full.dh, &frozen.dh, "dh beside dhead");
            if let Some(dhead) = tracked_head.grad(&grads) {
                assert_close(&full.dhead.unwrap(), &dhead, "dhead");
            }
        }
    }
}

/// Vocabularies of several blocks of a frozen head, with targets in each, in both types; in bf16 against f32 on the same numbers.
#[test]
fn blocks_of_a_frozen_head_agree_with_whole_logits() {
    let mut random = Random::new(8);
    for [tokens, size, vocabulary] in [[5, 3, 4097], [40, 16, 9000], [530, 8, 8192]] {
        for dtype in [DType::F32, DType::BF16] {
            let (h, head) = (random.narrow([tokens, size], false), random.narrow([vocabulary, size], false));
            let targets = draw_targets(&mut random, tokens, vocabulary);
            let weights: Vec<f32> = (0..tokens).map(|_| random.unit()).collect();
            let (wide_h, wide_head) = (wide(&h) * 3.0, wide(&head));
            let loss = head_loss(wide_h.clone().cast(dtype), head.cast(dtype), &targets, &weights);
            let exact = reference::head_loss(wide_h, wide_head, &targets, &weights, false);
            if dtype == DType::F32 {
                assert_close(&loss.logp, &exact.logp, "logp");
                assert_close(&loss.dh, &exact.dh, "dh");
            } else {
                assert!(distance(&loss.logp, &exact.logp) < 1e-2, "hidden states are rounded once more, times 3");
                assert!(distance(&loss.dh, &exact.dh) < 2e-2);
            }
        }
    }
}

/// Where a target is nearly certain, its gradient is what is left of two large parts: in bf16 it keeps its digits.
#[test]
fn a_certain_target_keeps_its_gradient_in_bf16() {
    let mut random = Random::new(9);
    let head = random.narrow([5000, 16], false);
    let target = 4321;
    // Far along the target's own row, which no other one is near.
    let h = head.clone().narrow(0, target, 1) * 4.0;
    let loss = head_loss(h.clone(), head.clone(), &[target as i32], &[1.0]);
    let exact = reference::head_loss(wide(&h), wide(&head), &[target as i32], &[1.0], false);
    let p = values(&exact.logp)[0].exp();
    assert!(p > 0.9 && p < 0.9999, "the case that is meant: {p}");
    let distance = distance(&loss.dh, &exact.dh);
    assert!(distance < 2.0 / 256.0, "{distance}");
}

#[test]
fn nothing_to_predict_gives_zeros() {
    for mut random in Random::everywhere(5) {
        let (h, head) = (random.tensor([3, 4]), random.tensor([6, 4]));
        let loss = head_loss(h.clone(), leaf(&head), &[-100; 3], &[1.0; 3]);
        for zeros in [values(&loss.logp), values(&loss.dh), values(&loss.dhead.unwrap())] {
            assert!(zeros.iter().all(|&value| value == 0.0));
        }
        let tracked = leaf(&h);
        let grads = backward(&token_logp(tracked.clone(), leaf(&head), &[-100; 3]), &random.tensor([3]));
        assert!(tracked.grad(&grads).is_none_or(|dh| values(&dh).iter().all(|&value| value == 0.0)));
    }
}

#[test]
fn thread_count_does_not_change_a_bit() {
    let mut random = Random::new(6);
    let (h, head) = (random.tensor([300, 64]), random.tensor([700, 64]));
    let targets = draw_targets(&mut random, 300, 700);
    let run = |threads| on_threads(threads, || head_loss(h.clone(), leaf(&head), &targets, &[0.01; 300]));
    let (one, three) = (run(1), run(3));
    assert_same_bits(&one.logp, &three.logp, "logp");
    assert_same_bits(&one.dh, &three.dh, "dh");
    assert_same_bits(&one.dhead.unwrap(), &three.dhead.unwrap(), "dhead");
}

#[test]
fn the_form_for_other_backends_agrees_too() {
    let mut random = Random::new(7);
    for [tokens, size, vocabulary] in SHAPES {
        let (h, head) = (random.tensor([tokens, size]) * 3.0, random.tensor([vocabulary, size]));
        let targets = draw_targets(&mut random, tokens, vocabulary);
        let upstream = random.tensor([tokens]);
        let (lean_h, lean_head) = (leaf(&h), leaf(&head));
        let (fast_h, fast_head) = (leaf(&h), leaf(&head));
        let lean = lean::token_logp::<burn::backend::Flex>(&lean_h, &(&lean_head).into(), &targets).unwrap();
        let fast = token_logp(fast_h.clone(), fast_head.clone(), &targets);
        assert_close(&lean, &fast, "logp");
        let (lean, fast) = (backward(&lean, &upstream), backward(&fast, &upstream));
        assert_close(&lean_h.grad(&lean).unwrap(), &fast_h.grad(&fast).unwrap(), "dh");
        assert_close(&lean_head.grad(&lean).unwrap(), &fast_head.grad(&fast).unwrap(), "dhead");
    }
    let head = random.tensor([3, 2]).into();
    assert!(lean::token_logp::<burn::backend::Flex>(&random.tensor([2, 2]), &head, &[0, 1]).is_none());
}

#[test]
fn a_chunk_is_bounded_by_what_the_device_has() {
    // Qwen3's vocabulary; cards of 8, 24 and 141 GiB.
    let rows = |memory: Option<u64>| most_chunk_tokens(151_936, memory);
    assert_eq!(rows(None), 128);
    assert_eq!([8, 24, 141].map(|card: u64| rows(Some(card << 30))), [147, 441, 1024]);
    assert_eq!(most_chunk_tokens(1000, None), 512);
    // Equal shares, no more of them than there must be.
    assert_eq!(even_chunk(1000, 441), 334);
    assert_eq!(even_chunk(0, 441), 1);
    assert_eq!(own_memory(&burn::tensor::Device::flex()), None);
}
