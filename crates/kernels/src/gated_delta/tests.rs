//! The public rule against its reference, what transformers computes, finite differences, itself packed and itself in steps.
#![allow(clippy::unwrap_used)]

use burn::tensor::{DType, Device, TensorData};

use super::*;
use crate::oracle::{
    Random, assert_close, assert_rounded, assert_same_bits, backward, double, finite_differences, leaf, on_threads,
    values,
};

const NAMES: [&str; 5] = ["dq", "dk", "dv", "dg", "dbeta"];

/// q, k, v, g, beta, plain or tracked.
#[derive(Clone)]
struct Inputs {
    heads: [Tensor<3>; 3],
    gates: [Tensor<2>; 2],
}

impl Inputs {
    fn each(&self, heads: impl Fn(&Tensor<3>) -> Tensor<3>, gates: impl Fn(&Tensor<2>) -> Tensor<2>) -> Self {
        Self { heads: self.heads.each_ref().map(heads), gates: self.gates.each_ref().map(gates) }
    }

    fn leaves(&self) -> Self {
        self.each(leaf, leaf)
    }

    fn narrow(&self, start: usize, len: usize) -> Self {
        self.each(|t| t.clone().narrow(0, start, len), |t| t.clone().narrow(0, start, len))
    }

    fn run(&self, segments: &Arc<Segments>) -> Tensor<3> {
        let ([q, k, v], [g, beta]) = (self.heads.clone(), self.gates.clone());
        gated_delta(q, k, v, g, beta, segments)
    }

    fn reference(&self, segments: &Arc<Segments>) -> Tensor<3> {
        let ([q, k, v], [g, beta]) = (self.heads.clone(), self.gates.clone());
        reference::gated_delta(q, k, v, g, beta, segments)
    }

    fn step(&self, state: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
        let ([q, k, v], [g, beta]) = (self.heads.clone(), self.gates.clone());
        gated_delta_step(state, q, k, v, g, beta)
    }

    /// Flat gradients of `Σ out·upstream`, in the order of [`NAMES`].
    fn gradients(&self, out: &Tensor<3>, upstream: &Tensor<3>) -> [Tensor<1>; 5] {
        let grads = backward(out, upstream);
        let [q, k, v] = self.heads.each_ref().map(|leaf| leaf.grad(&grads).unwrap().flatten::<1>(0, 2));
        let [g, beta] = self.gates.each_ref().map(|leaf| leaf.grad(&grads).unwrap().flatten::<1>(0, 1));
        [q, k, v, g, beta]
    }
}

/// Segment lengths, key heads, value heads, dk, dv.
type Case = (&'static [usize], usize, usize, usize, usize);

const CASES: &[Case] = &[
    (&[1], 1, 1, 4, 4),
    (&[63], 1, 2, 8, 5),
    (&[64], 2, 2, 4, 16),
    (&[65], 1, 3, 16, 8),
    (&[130], 2, 4, 32, 33),
    (&[3, 0, 1, 70, 64, 129], 2, 4, 16, 8),
    (&[40, 41, 42], 3, 3, 5, 7),
    (&[300], 1, 1, 8, 8),
    (&[130], 1, 1, 128, 128),
];

/// Strengths of a decay, and the gates that go with it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Decay {
    None,
    Mild,
    Strong,
    Mixed,
}

fn draw(random: &mut Random, (lens, key_heads, value_heads, dk, dv): Case, decay: Decay, strided: bool) -> Inputs {
    let tokens = lens.iter().sum();
    let mut heads = |heads, size| {
        let shape = [tokens, heads, size];
        if strided { random.view(shape) } else { random.tensor(shape) }
    };
    let heads = [heads(key_heads, dk), heads(key_heads, dk), heads(value_heads, dv)];
    let device = heads[0].device();
    let mut gate = |f: &dyn Fn(f32, bool) -> f32| {
        let rows: Vec<f32> = (0..tokens * value_heads).map(|_| f(random.unit().abs(), random.below(8) == 0)).collect();
        Tensor::from_data(TensorData::new(rows, [tokens, value_heads]), &device)
    };
    let g = gate(&|unit, rare| match decay {
        Decay::None => 0.0,
        Decay::Mild => -unit * 0.2,
        Decay::Strong => -20.0,
        Decay::Mixed => {
            if rare {
                -20.0
            } else {
                -unit * 0.1
            }
        }
    });
    // Whole numbers now and then: a token that writes nothing, a token that overwrites.
    let beta = gate(&|unit, rare| if rare { unit.round() } else { unit });
    Inputs { heads, gates: [g, beta] }
}

/// The reference in f64, so that the distance is the error of the fast form alone; 1e-6 is the largest seen.
#[test]
fn agrees_with_the_reference_in_f64() {
    for mut random in Random::everywhere(1) {
        for &case in CASES {
            for decay in [Decay::None, Decay::Mild, Decay::Strong, Decay::Mixed] {
                for strided in [false, true] {
                    let segments = Segments::packed(case.0);
                    let inputs = draw(&mut random, case, decay, strided);
                    let upstream = random.tensor([segments.tokens(), case.2, case.4]);
                    let (fast, exact) = (inputs.leaves(), inputs.each(double, double).leaves());
                    let (out, expected) = (fast.run(&segments), exact.reference(&segments));
                    let what = format!("{case:?}, {decay:?}, strided {strided}");
                    assert_close(&out, &expected, &what);
                    assert_same_bits(&inputs.run(&segments), &out, "without a tape");
                    let expected = exact.gradients(&expected, &double(&upstream));
                    for ((name, grad), expected) in
                        NAMES.into_iter().zip(fast.gradients(&out, &upstream)).zip(&expected)
                    {
                        assert_close(&grad, expected, &format!("{name} of {what}"));
                    }
                }
            }
        }
    }
}

#[test]
fn heads_cut_out_of_one_tensor_are_read_where_they_lie() {
    let mut random = Random::new(9);
    let (segments, upstream) = (Segments::packed(&[70, 5]), random.tensor([75, 4, 8]));
    let mixed = leaf(&random.tensor([75, 8, 8]));
    let gates = draw(&mut random, (&[75], 2, 4, 8, 8), Decay::Mild, false).gates;
    let heads = [(0, 2), (2, 2), (4, 4)].map(|(first, count)| mixed.clone().narrow(1, first, count));
    let copies = heads.each_ref().map(leaf);
    let (views, copies) = (Inputs { heads, gates: gates.clone() }, Inputs { heads: copies, gates });
    let (out, expected) = (views.run(&segments), copies.run(&segments));
    assert_same_bits(&out, &expected, "out");
    let (grads, expected_grads) = (backward(&out, &upstream), backward(&expected, &upstream));
    let expected = copies.heads.each_ref().map(|leaf| leaf.grad(&expected_grads).unwrap());
    assert_close(&mixed.grad(&grads).unwrap(), &Tensor::cat(expected.to_vec(), 1), "the gradient of the whole tensor");
}

#[test]
fn reference_gradients_agree_with_finite_differences() {
    let mut random = Random::new(2);
    let inputs = draw(&mut random, (&[4, 2], 1, 2, 3, 2), Decay::Mild, false);
    let (segments, upstream) = (Segments::packed(&[4, 2]), random.tensor([6, 2, 2]));
    let tracked = inputs.leaves();
    let grads = tracked.gradients(&tracked.run(&segments), &upstream);
    let doubled = inputs.each(double, double);
    for index in 0..3 {
        let slopes = finite_differences(&inputs.heads[index], &upstream, |heads| {
            let mut at = doubled.clone();
            at.heads[index] = heads;
            at.reference(&segments)
        });
        assert_close(&double(&grads[index]), &slopes.flatten(0, 2), NAMES[index]);
    }
    for index in 0..2 {
        let slopes = finite_differences(&inputs.gates[index], &upstream, |gate| {
            let mut at = doubled.clone();
            at.gates[index] = gate;
            at.reference(&segments)
        });
        assert_close(&double(&grads[3 + index]), &slopes.flatten(0, 1), NAMES[3 + index]);
    }
}

#[test]
fn packed_is_separate_bit_for_bit() {
    let mut random = Random::new(3);
    let lens: &[usize] = &[70, 1, 64, 33];
    let inputs = draw(&mut random, (lens, 2, 4, 16, 24), Decay::Mild, false);
    let (segments, upstream) = (Segments::packed(lens), random.tensor([168, 4, 24]));
    let packed = inputs.leaves();
    let out = packed.run(&segments);
    let grads = packed.gradients(&out, &upstream);
    for (start, len) in segments.iter() {
        let alone = inputs.narrow(start, len).leaves();
        let alone_out = alone.run(&Segments::packed(&[len]));
        assert_same_bits(&out.clone().narrow(0, start, len), &alone_out, "a packed sequence");
        let alone_grads = alone.gradients(&alone_out, &upstream.clone().narrow(0, start, len));
        for ((grad, alone), name) in grads.iter().zip(&alone_grads).zip(NAMES) {
            let width = alone.dims()[0] / len;
            assert_same_bits(&grad.clone().narrow(0, start * width, len * width), alone, name);
        }
    }
}

#[test]
fn a_sequence_does_not_see_its_neighbour() {
    let mut random = Random::new(4);
    let inputs = draw(&mut random, (&[90, 30], 1, 2, 8, 8), Decay::Mild, false);
    let segments = Segments::packed(&[90, 30]);
    let poison = |t: Tensor<3>| Tensor::cat(vec![t.clone().narrow(0, 0, 90) * f32::NAN, t.narrow(0, 90, 30)], 0);
    let poisoned = Inputs { heads: inputs.heads.clone().map(poison), gates: inputs.gates.clone() };
    let (before, after) = (inputs.run(&segments), poisoned.run(&segments));
    assert_same_bits(&before.narrow(0, 90, 30), &after.narrow(0, 90, 30), "the second sequence");
}

#[test]
fn queries_and_keys_of_no_length_are_no_trouble() {
    let mut random = Random::new(5);
    let mut inputs = draw(&mut random, (&[5], 1, 1, 4, 4), Decay::Mild, false);
    inputs.heads[0] = inputs.heads[0].clone() * 0.0;
    inputs.heads[1] = inputs.heads[1].clone() * 1e-4;
    let (segments, upstream) = (Segments::packed(&[5]), random.tensor([5, 1, 4]));
    let (fast, exact) = (inputs.leaves(), inputs.each(double, double).leaves());
    let (out, expected) = (fast.run(&segments), exact.reference(&segments));
    let expected = exact.gradients(&expected, &double(&upstream));
    for ((grad, expected), name) in fast.gradients(&out, &upstream).iter().zip(&expected).zip(NAMES) {
        assert_close(grad, expected, name);
    }
}

#[test]
fn steps_continue_a_sequence() {
    let mut random = Random::new(6);
    let inputs = draw(&mut random, (&[150], 2, 4, 8, 12), Decay::Mild, false);
    let whole = inputs.run(&Segments::packed(&[150]));
    let start = Tensor::zeros([4, 8, 12], &Device::flex());
    for parts in [&[150][..], &[149, 1], &[80, 1, 1, 65, 3], &[1, 148, 1]] {
        let (mut fast, mut plain, mut first) = (start.clone(), start.clone(), 0);
        for &tokens in parts {
            let part = inputs.narrow(first, tokens);
            let (out, next) = part.step(fast);
            let ([q, k, v], [g, beta]) = (part.heads.clone(), part.gates.clone());
            let (expected_out, expected_next) = reference::gated_delta_step(plain, q, k, v, g, beta);
            assert_close(&out, &expected_out, "the output of a step");
            assert_close(&next, &expected_next, "the state after a step");
            assert_close(&out, &whole.clone().narrow(0, first, tokens), "a step of the whole");
            (fast, plain, first) = (next, expected_next, first + tokens);
        }
    }
}

#[test]
fn thread_count_does_not_change_a_bit() {
    let mut random = Random::new(7);
    let inputs = draw(&mut random, (&[200, 90], 2, 4, 16, 32), Decay::Mild, false);
    let (segments, upstream) = (Segments::packed(&[200, 90]), random.tensor([290, 4, 32]));
    let run = |threads| {
        on_threads(threads, || {
            let leaves = inputs.leaves();
            let out = leaves.run(&segments);
            (out.clone(), leaves.gradients(&out, &upstream))
        })
    };
    let (one, three) = (run(1), run(3));
    assert_same_bits(&one.0, &three.0, "out");
    for ((one, three), name) in one.1.iter().zip(&three.1).zip(NAMES) {
        assert_same_bits(one, three, name);
    }
}

#[test]
fn a_constant_operand_gets_no_gradient_and_leaves_the_others_right() {
    let mut random = Random::new(8);
    let inputs = draw(&mut random, (&[70], 1, 2, 8, 8), Decay::Mild, false);
    let (segments, upstream) = (Segments::packed(&[70]), random.tensor([70, 2, 8]));
    let all = inputs.leaves();
    let [_, dk, ..] = all.gradients(&all.run(&segments), &upstream);
    let mut some = inputs.clone();
    some.heads[1] = leaf(&inputs.heads[1]);
    let grads = backward(&some.run(&segments), &upstream);
    assert_same_bits(&some.heads[1].grad(&grads).unwrap().flatten::<1>(0, 2), &dk, "dk");
}

/// Written by scripts/make_delta_goldens.py.
fn goldens() -> Vec<serde_json::Value> {
    serde_json::from_str(include_str!("golden.json")).unwrap()
}

fn array<const D: usize>(case: &serde_json::Value, key: &str, shape: [usize; D]) -> Tensor<D> {
    let values: Vec<f64> = case[key].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
    Tensor::from_data(TensorData::new(values, shape), (&Device::flex(), burn::tensor::DType::F64))
}

/// The goldens are f32 themselves; 1e-6 is the largest distance seen.
#[test]
fn both_forms_agree_with_transformers() {
    for case in goldens() {
        let size = |key: &str| case[key].as_u64().unwrap() as usize;
        let (key_heads, value_heads, dk, dv) =
            (size("key_heads"), size("value_heads"), size("key_size"), size("value_size"));
        let lens: Vec<usize> = case["lens"].as_array().unwrap().iter().map(|l| l.as_u64().unwrap() as usize).collect();
        let (segments, tokens) = (Segments::packed(&lens), lens.iter().sum());
        let exact = Inputs {
            heads: [
                array(&case, "q", [tokens, key_heads, dk]),
                array(&case, "k", [tokens, key_heads, dk]),
                array(&case, "v", [tokens, value_heads, dv]),
            ],
            gates: ["g", "beta"].map(|key| array(&case, key, [tokens, value_heads])),
        };
        let (expected, upstream) =
            (array(&case, "out", [tokens, value_heads, dv]), array(&case, "upstream", [tokens, value_heads, dv]));
        let single = |t: &Tensor<3>| t.clone().cast(burn::tensor::DType::F32);
        let fast = exact.each(single, |t| t.clone().cast(burn::tensor::DType::F32));
        let of = |what: &str| format!("{what} of {}", case["name"]);

        let (fast_leaves, exact_leaves) = (fast.leaves(), exact.leaves());
        let (out, slow) = (fast_leaves.run(&segments), exact_leaves.reference(&segments));
        assert_close(&out, &expected, &of("out"));
        assert_close(&slow, &expected, &of("reference out"));
        let fast_grads = fast_leaves.gradients(&out, &single(&upstream));
        let slow_grads = exact_leaves.gradients(&slow, &upstream);
        for (index, name) in NAMES.into_iter().enumerate() {
            let len = values(&slow_grads[index]).len();
            let expected = array(&case, name, [len]);
            assert_close(&fast_grads[index], &expected, &of(name));
            assert_close(&slow_grads[index], &expected, &of(&format!("reference {name}")));
        }

        let states = array(&case, "states", [lens.len(), value_heads, dk, dv]);
        for (index, (start, len)) in segments.iter().enumerate() {
            let state = states.clone().narrow(0, index, 1).squeeze_dim::<3>(0);
            let zeros = Tensor::zeros([value_heads, dk, dv], &Device::flex());
            assert_close(&fast.narrow(start, len).step(zeros).1, &state, &of("the state"));
        }
    }
}

/// Nothing that was rounded is kept, so every result is rounded once; the gates are f32, as in a bf16 model, or bf16.
#[test]
fn bf16_is_f32_rounded_once() {
    let mut random = Random::new(10);
    for &case in CASES {
        for (strided, narrow_gates) in [(false, false), (true, true)] {
            let segments = Segments::packed(case.0);
            let narrow = |t: &Tensor<3>| t.clone().cast(DType::BF16);
            let gate = |t: &Tensor<2>| if narrow_gates { t.clone().cast(DType::BF16) } else { t.clone() };
            let mut inputs = draw(&mut random, case, Decay::Mixed, false).each(narrow, gate);
            if strided {
                inputs.heads = inputs.heads.map(|t| random.narrow(t.dims(), true));
            }
            let upstream = random.narrow([segments.tokens(), case.2, case.4], strided);
            let (fast, exact) = (inputs.leaves(), inputs.each(double, double).leaves());
            let (out, expected) = (fast.run(&segments), exact.reference(&segments));
            let what = format!("{case:?}, strided {strided}, bf16 gates {narrow_gates}");
            assert_rounded(&out, &expected, &what);
            let expected = exact.gradients(&expected, &double(&upstream));
            for ((name, grad), expected) in NAMES.into_iter().zip(fast.gradients(&out, &upstream)).zip(&expected) {
                if grad.dtype() == DType::F32 {
                    assert_close(&grad, expected, &format!("{name} of {what}"));
                } else {
                    assert_rounded(&grad, expected, &format!("{name} of {what}"));
                }
            }
        }
    }
}

#[test]
fn steps_of_bf16_keep_an_f32_state() {
    let mut random = Random::new(11);
    let narrow = |t: &Tensor<3>| t.clone().cast(DType::BF16);
    let inputs = draw(&mut random, (&[70], 2, 4, 8, 12), Decay::Mild, false).each(narrow, Tensor::clone);
    let whole = inputs.run(&Segments::packed(&[70]));
    let mut state = Tensor::zeros([4, 8, 12], &Device::flex());
    for (first, tokens) in [(0, 66), (66, 1), (67, 3)] {
        let (out, next) = inputs.narrow(first, tokens).step(state);
        assert_rounded(&out, &whole.clone().narrow(0, first, tokens).cast(DType::F32), "a step of the whole");
        assert_eq!(next.dtype(), DType::F32);
        state = next;
    }
}

#[test]
fn thread_count_does_not_change_a_bit_of_bf16() {
    let mut random = Random::new(12);
    let narrow = |t: &Tensor<3>| t.clone().cast(DType::BF16);
    let inputs = draw(&mut random, (&[200, 90], 2, 4, 16, 32), Decay::Mild, false).each(narrow, Tensor::clone);
    let (segments, upstream) = (Segments::packed(&[200, 90]), random.narrow([290, 4, 32], false));
    let run = |threads| {
        on_threads(threads, || {
            let leaves = inputs.leaves();
            let out = leaves.run(&segments);
            (out.clone(), leaves.gradients(&out, &upstream))
        })
    };
    let (one, three) = (run(1), run(3));
    assert_same_bits(&one.0, &three.0, "out");
    for ((one, three), name) in one.1.iter().zip(&three.1).zip(NAMES) {
        assert_same_bits(one, three, name);
    }
}
