//! The public attention against its reference and finite differences.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::oracle::{
    Random, assert_close, assert_nearly_rounded, assert_same_bits, backward, double, finite_differences, leaf,
    on_threads, wide,
};

/// Segment lengths, query heads, key heads, head size, window.
type Case = (&'static [usize], usize, usize, usize, Option<usize>);

const CASES: &[Case] = &[
    (&[1], 1, 1, 4, None),
    (&[5], 2, 1, 8, None),
    (&[3, 0, 1, 7], 4, 2, 6, None),
    (&[0, 9], 3, 3, 5, Some(1)),
    (&[130], 2, 2, 16, None),
    (&[70, 129, 3], 6, 2, 32, None),
    (&[200, 64], 4, 1, 8, Some(50)),
    (&[65, 128], 4, 4, 64, Some(64)),
    (&[150], 2, 1, 16, Some(1000)),
    (&[600, 30], 2, 1, 8, None),
    (&[1100], 2, 2, 4, Some(100)),
];

#[test]
fn agrees_with_the_reference() {
    for mut random in Random::everywhere(1) {
        for &(lens, heads, kv_heads, size, window) in CASES {
            for strided in [false, true] {
                let segments = Segments::packed(lens);
                let tokens = segments.tokens();
                let mut draw = |heads| {
                    let shape = [tokens, heads, size];
                    if strided { random.view(shape) } else { random.tensor(shape) }
                };
                let plain = [draw(heads), draw(kv_heads), draw(kv_heads)];
                let upstream = draw(heads);
                let scale = 2.0 / (size as f32).sqrt();
                let (fast, expected) = (plain.each_ref().map(leaf), plain.each_ref().map(leaf));
                let run = |[q, k, v]: [Tensor<3>; 3]| attention(q, k, v, &segments, scale, window);
                let y = run(fast.clone());
                let [q, k, v] = expected.clone();
                let expected_y = reference::attention(q, k, v, &segments, scale, window);
                let case = format!("{lens:?} {heads}/{kv_heads} x {size}, window {window:?}, strided {strided}");
                assert_close(&y, &expected_y, &case);
                assert_close(&run(plain), &expected_y, &format!("plain {case}"));
                let (grads, expected_grads) = (backward(&y, &upstream), backward(&expected_y, &upstream));
                for (index, name) in ["dq", "dk", "dv"].into_iter().enumerate() {
                    let (grad, expected) =
                        (fast[index].grad(&grads).unwrap(), expected[index].grad(&expected_grads).unwrap());
                    assert_close(&grad, &expected, &format!("{name} of {case}"));
                }
            }
        }
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    for mut random in Random::everywhere(2) {
        let segments = Segments::packed(&[4, 2]);
        let [q, k, v] = [random.tensor([6, 4, 3]), random.tensor([6, 2, 3]), random.tensor([6, 2, 3])];
        let upstream = random.tensor([6, 4, 3]);
        for window in [None, Some(2)] {
            let tracked = [leaf(&q), leaf(&k), leaf(&v)];
            let [tq, tk, tv] = tracked.clone();
            let grads = backward(&attention(tq, tk, tv, &segments, 0.7, window), &upstream);
            let slopes = [
                finite_differences(&q, &upstream, |q| {
                    reference::attention(q, double(&k), double(&v), &segments, 0.7, window)
                }),
                finite_differences(&k, &upstream, |k| {
                    reference::attention(double(&q), k, double(&v), &segments, 0.7, window)
                }),
                finite_differences(&v, &upstream, |v| {
                    reference::attention(double(&q), double(&k), v, &segments, 0.7, window)
                }),
            ];
            for (index, name) in ["dq", "dk", "dv"].into_iter().enumerate() {
                assert_close(&double(&tracked[index].grad(&grads).unwrap()), &slopes[index], name);
            }
        }
    }
}

#[test]
fn packed_is_separate() {
    for mut random in Random::everywhere(3) {
        let [q, k, v] = [random.tensor([90, 4, 16]), random.tensor([90, 2, 16]), random.tensor([90, 2, 16])];
        let packed = attention(q.clone(), k.clone(), v.clone(), &Segments::packed(&[70, 20]), 0.25, None);
        for (start, len) in [(0, 70), (70, 20)] {
            let [q, k, v] = [&q, &k, &v].map(|t| t.clone().narrow(0, start, len));
            let alone = attention(q, k, v, &Segments::packed(&[len]), 0.25, None);
            assert_close(&packed.clone().narrow(0, start, len), &alone, "a packed sequence");
        }
    }
}

#[test]
fn a_sequence_does_not_see_its_neighbour() {
    let mut random = Random::new(4);
    let [q, k, v] = [random.tensor([20, 2, 8]), random.tensor([20, 2, 8]), random.tensor([20, 2, 8])];
    let segments = Segments::packed(&[8, 12]);
    let before = attention(q.clone(), k.clone(), v.clone(), &segments, 0.3, None);
    let poison = Tensor::cat(vec![v.clone().narrow(0, 0, 8) * f32::NAN, v.narrow(0, 8, 12)], 0);
    let after = attention(q, k, poison, &segments, 0.3, None);
    assert_same_bits(&before.narrow(0, 8, 12), &after.narrow(0, 8, 12), "the second sequence");
}

#[test]
fn thread_count_does_not_change_a_bit() {
    let mut random = Random::new(5);
    let plain = [random.tensor([400, 4, 32]), random.tensor([400, 2, 32]), random.tensor([400, 2, 32])];
    let (upstream, segments) = (random.tensor([400, 4, 32]), Segments::packed(&[300, 100]));
    let run = |threads| {
        on_threads(threads, || {
            let leaves = plain.each_ref().map(leaf);
            let [q, k, v] = leaves.clone();
            let y = attention(q, k, v, &segments, 0.2, None);
            let grads = backward(&y, &upstream);
            let [dq, dk, dv] = leaves.map(|leaf| leaf.grad(&grads).unwrap());
            [y.inner(), dq, dk, dv]
        })
    };
    for (one, three) in run(1).iter().zip(&run(3)) {
        assert_same_bits(one, three, "an output or gradient");
    }
}

/// The weights of an output are rounded for the product with the values: off by at most 2⁻⁹ of `Σ w·|v|`, hence of the largest
/// value. Gradients come from the kept output too, which was rounded: `Σ dout·out` is off by at most 2⁻⁸ of `Σ |dout·out|`.
#[test]
fn bf16_is_f32_rounded() {
    let mut random = Random::new(6);
    for &(lens, heads, kv_heads, size, window) in CASES {
        for strided in [false, true] {
            let segments = Segments::packed(lens);
            let mut draw = |heads| random.narrow([segments.tokens(), heads, size], strided);
            let plain = [draw(heads), draw(kv_heads), draw(kv_heads)];
            let upstream = draw(heads);
            let scale = 2.0 / (size as f32).sqrt();
            let (fast, exact) = (plain.each_ref().map(leaf), plain.each_ref().map(|t| leaf(&wide(t))));
            let [q, k, v] = fast.clone();
            let y = attention(q, k, v, &segments, scale, window);
            let [q, k, v] = exact.clone();
            let expected = reference::attention(q, k, v, &segments, scale, window);
            let case = format!("{lens:?} {heads}/{kv_heads} x {size}, window {window:?}, strided {strided}");
            assert_nearly_rounded(&y, &expected, 1.0 / 512.0, &case);
            let (grads, exact_grads) = (backward(&y, &upstream), backward(&expected, &wide(&upstream)));
            for (index, name) in ["dq", "dk", "dv"].into_iter().enumerate() {
                let (grad, exact) = (fast[index].grad(&grads).unwrap(), exact[index].grad(&exact_grads).unwrap());
                assert_nearly_rounded(&grad, &exact, 1.0 / 256.0, &format!("{name} of {case}"));
            }
        }
    }
}

#[test]
fn thread_count_does_not_change_a_bit_of_bf16() {
    let mut random = Random::new(7);
    let [q, k, v, upstream] = [4, 2, 2, 4].map(|heads| random.narrow([400, heads, 32], false));
    let segments = Segments::packed(&[300, 100]);
    let run = |threads| {
        on_threads(threads, || {
            let leaves = [&q, &k, &v].map(leaf);
            let [q, k, v] = leaves.clone();
            let y = attention(q, k, v, &segments, 0.2, None);
            let grads = backward(&y, &upstream);
            let [dq, dk, dv] = leaves.map(|leaf| leaf.grad(&grads).unwrap());
            [y.inner(), dq, dk, dv]
        })
    };
    for (one, three) in run(1).iter().zip(&run(3)) {
        assert_same_bits(one, three, "an output or gradient");
    }
}

/// The form out of products on the CPU, with plain steps between them.
#[test]
fn blocks_of_products_agree_with_the_reference() {
    use super::blockwise::{Layout, Plain};

    let mut random = Random::new(8);
    for &(lens, heads, kv_heads, size, window) in CASES {
        let segments = Segments::packed(lens);
        let mut draw = |heads| random.view([segments.tokens(), heads, size]);
        let (qkv, upstream) = ([draw(heads), draw(kv_heads), draw(kv_heads)], draw(heads));
        let scale = 2.0 / (size as f32).sqrt();
        let group = heads / kv_heads;
        let layout = Layout { kv_heads, group, size, scale, window, segments: segments.clone() };
        let (out, sums) = layout.forward::<Plain>(qkv.clone());
        let expected = qkv.each_ref().map(leaf);
        let [q, k, v] = expected.clone();
        let expected_out = reference::attention(q, k, v, &segments, scale, window);
        let case = format!("{lens:?} {heads}/{kv_heads} x {size}, window {window:?}");
        assert_close(&out, &expected_out, &case);
        let grads = backward(&expected_out, &upstream);
        let gradients = layout.backward::<Plain>(qkv, &out, sums, upstream);
        for ((gradient, expected), name) in gradients.iter().zip(&expected).zip(["dq", "dk", "dv"]) {
            assert_close(gradient, &expected.grad(&grads).unwrap(), &format!("{name} of {case}"));
        }
    }
}

/// Every token is a query of one block, and each block has the keys its queries see.
#[test]
fn blocks_cover_the_tokens_and_what_they_see() {
    use super::blockwise::Layout;

    for (lens, heads, window) in [(&[5000][..], 32, None), (&[100, 3, 900], 64, Some(70)), (&[1; 3000], 8, None)] {
        let segments = Segments::packed(lens);
        let layout = Layout { kv_heads: 4, group: heads / 4, size: 8, scale: 1.0, window, segments: segments.clone() };
        let (blocks, first_keys) = (layout.blocks(), layout.first_keys());
        assert!(
            blocks
                .iter()
                .map(|block| block.tokens.start)
                .eq([0].into_iter().chain(blocks.iter().map(|b| b.tokens.end)).take(blocks.len()))
        );
        assert_eq!(blocks.last().unwrap().tokens.end, segments.tokens());
        for block in &blocks {
            assert!(block.tokens.clone().all(|token| first_keys[token] >= block.from));
            assert!(block.from % 64 == 0 && first_keys[block.tokens.start] - block.from < 64);
        }
        assert!(blocks.len() <= segments.tokens() / 64 + 1);
    }
}
