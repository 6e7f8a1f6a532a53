//! The GPU forms against the reference on the CPU, on the device of the tests.
#![allow(clippy::unwrap_used)]

use burn::Tensor;
use burn::tensor::TensorData;

use super::*;
use crate::oracle::{
    Random, assert_close, assert_nearly_rounded, assert_same_bits, backward, leaf, on_cpu, values, wide,
};

/// Segment lengths, query heads, key heads, head size, window.
type Case = (&'static [usize], usize, usize, usize, Option<usize>);

/// One row to several pieces of every tile, groups that divide a tile's rows and that do not, heads that vectors, fragments and
/// the teams' columns do not divide.
const CASES: &[Case] = &[
    (&[1], 1, 1, 4, None),
    (&[3, 0, 1, 7], 4, 2, 6, None),
    (&[0, 9], 3, 3, 5, Some(1)),
    (&[0, 0, 4, 0], 1, 1, 3, None),
    (&[70, 129, 3], 6, 2, 32, None),
    (&[100, 33], 7, 1, 20, Some(50)),
    (&[65, 66], 2, 2, 64, Some(64)),
    (&[40, 5], 14, 2, 64, None),
    (&[50, 37], 4, 2, 128, None),
    (&[70], 5, 1, 72, Some(20)),
    (&[35, 20], 2, 1, 256, None),
    (&[19, 18], 3, 3, 200, Some(7)),
];

type Choice = fn(&CubeTensor, &Layout) -> Option<Flash>;

/// Both forms: the first whatever its tiles.
const FORMS: [(&str, Choice); 2] = [("without scores", Flash::any), ("of blocks", |_, _| None)];

fn run(
    choice: Choice,
    [q, k, v]: [Tensor<3>; 3],
    segments: &Arc<Segments>,
    scale: f32,
    window: Option<usize>,
) -> Tensor<3> {
    let (q, k) = (Input::from(q), Input::from(k));
    attention_as([&q, &k], &v, segments, scale, window, choice).unwrap()
}

#[test]
fn forms_agree_with_the_reference() {
    if let Some(mut random) = Random::on_gpu(1) {
        for &(lens, heads, kv_heads, size, window) in CASES {
            let segments = Segments::packed(lens);
            for strided in [false, true] {
                let mut draw = |heads| {
                    let shape = [segments.tokens(), heads, size];
                    if strided { random.view(shape) } else { random.tensor(shape) }
                };
                let (plain, upstream) = ([draw(heads), draw(kv_heads), draw(kv_heads)], draw(heads));
                let scale = 2.0 / (size as f32).sqrt();
                let expected = plain.each_ref().map(|t| leaf(&on_cpu(t)));
                let [q, k, v] = expected.clone();
                let expected_y = crate::reference::attention(q, k, v, &segments, scale, window);
                let expected_grads = backward(&expected_y, &upstream);
                for (form, choice) in FORMS {
                    let case =
                        format!("{lens:?} {heads}/{kv_heads} x {size}, window {window:?}, strided {strided}, {form}");
                    let fast = plain.each_ref().map(leaf);
                    let y = run(choice, fast.clone(), &segments, scale, window);
                    assert_close(&y, &expected_y, &case);
                    let grads = backward(&y, &upstream);
                    for ((fast, expected), name) in fast.iter().zip(&expected).zip(["dq", "dk", "dv"]) {
                        let (grad, expected) = (fast.grad(&grads).unwrap(), expected.grad(&expected_grads).unwrap());
                        assert_close(&grad, &expected, &format!("{name} of {case}"));
                    }
                }
            }
        }
    }
}

/// As for the CPU's bf16: weights, output and slopes were rounded on their way.
#[test]
fn sixteen_bits_are_f32_rounded() {
    if let Some(mut random) = Random::on_gpu_in_bf16(2) {
        for &(lens, heads, kv_heads, size, window) in CASES {
            let segments = Segments::packed(lens);
            let mut draw = |heads| random.narrow([segments.tokens(), heads, size], false);
            let (plain, upstream) = ([draw(heads), draw(kv_heads), draw(kv_heads)], draw(heads));
            let scale = 2.0 / (size as f32).sqrt();
            let expected = plain.each_ref().map(|t| leaf(&on_cpu(&wide(t))));
            let [q, k, v] = expected.clone();
            let expected_y = crate::reference::attention(q, k, v, &segments, scale, window);
            let expected_grads = backward(&expected_y, &on_cpu(&wide(&upstream)));
            let case = format!("{lens:?} {heads}/{kv_heads} x {size}, window {window:?}");
            let fast = plain.each_ref().map(leaf);
            let y = run(Flash::any, fast.clone(), &segments, scale, window);
            assert_nearly_rounded(&y, &expected_y, 1.0 / 512.0, &case);
            let grads = backward(&y, &upstream);
            for ((fast, expected), name) in fast.iter().zip(&expected).zip(["dq", "dk", "dv"]) {
                let (grad, expected) = (fast.grad(&grads).unwrap(), expected.grad(&expected_grads).unwrap());
                assert_nearly_rounded(&grad, &expected, 1.0 / 128.0, &format!("{name} of {case}"));
            }
        }
    }
}

/// Keys whose scores climb by one a token, or fall: what sums are relative to moves with every strip, or never.
#[test]
fn sums_follow_climbing_scores() {
    if let Some(mut random) = Random::on_gpu(3) {
        let (tokens, size) = (150, 16);
        let segments = Segments::packed(&[tokens]);
        for direction in [0.25, -0.25] {
            let slope: Vec<f32> = (0..tokens * size).map(|at| direction * (at / size) as f32).collect();
            let [q, k, v, upstream] = [0; 4].map(|_| random.tensor([tokens, 1, size]));
            let k = k * 0.1 + Tensor::from_data(TensorData::new(slope, [tokens, 1, size]), &v.device());
            let plain = [q * 0.1 + 1.0, k, v];
            let (fast, expected) = (plain.each_ref().map(leaf), plain.each_ref().map(|t| leaf(&on_cpu(t))));
            let y = run(Flash::any, fast.clone(), &segments, 0.25, None);
            let [q, k, v] = expected.clone();
            let expected_y = crate::reference::attention(q, k, v, &segments, 0.25, None);
            assert_close(&y, &expected_y, "the output");
            let (grads, expected_grads) = (backward(&y, &upstream), backward(&expected_y, &upstream));
            // Scores of a hundred and fifty are known to 1e-5: so are weights.
            for (index, name) in ["dq", "dk", "dv"].into_iter().enumerate() {
                let (grad, expected) =
                    (fast[index].grad(&grads).unwrap(), expected[index].grad(&expected_grads).unwrap());
                let distance = crate::oracle::distance(&grad, &expected);
                assert!(distance < 1e-4, "{name} is {distance:e} away");
            }
        }
    }
}

/// What another sequence holds is in no product, even where a tile reaches into it.
#[test]
fn nothing_of_a_neighbour_is_read() {
    if let Some(mut random) = Random::on_gpu(4) {
        let lens = [11, 30, 7];
        let segments = Segments::packed(&lens);
        let mut draw = |heads| random.tensor([48, heads, 24]);
        let [q, k, v, upstream] = [draw(4), draw(2), draw(2), draw(4)];
        let grads_of = |[q, k, v, upstream]: [Tensor<3>; 4]| {
            let leaves = [q, k, v].each_ref().map(leaf);
            let y = run(Flash::any, leaves.clone(), &segments, 0.3, None);
            let grads = backward(&y, &upstream);
            let [dq, dk, dv] = leaves.map(|leaf| leaf.grad(&grads).unwrap());
            [y.inner(), dq, dk, dv].map(|t| t.narrow(0, 11, 30))
        };
        let poisoned = |t: &Tensor<3>| {
            let parts = [(0, 11, f32::NAN), (11, 30, 1.0), (41, 7, f32::INFINITY)];
            Tensor::cat(parts.map(|(from, len, by)| t.clone().narrow(0, from, len) * by).to_vec(), 0)
        };
        let clean = grads_of([&q, &k, &v, &upstream].map(Tensor::clone));
        let other = grads_of([&q, &k, &v, &upstream].map(poisoned));
        for ((clean, other), name) in clean.iter().zip(&other).zip(["the output", "dq", "dk", "dv"]) {
            assert!(values(other).iter().all(|value| value.is_finite()), "{name}");
            assert_same_bits(clean, other, name);
        }
    }
}

#[test]
fn runs_give_the_same_bits() {
    if let Some(mut random) = Random::on_gpu(5) {
        let segments = Segments::packed(&[40, 61]);
        let mut draw = |heads| random.tensor([101, heads, 32]);
        let (plain, upstream) = ([draw(4), draw(2), draw(2)], draw(4));
        let once = || {
            let leaves = plain.each_ref().map(leaf);
            let y = run(Flash::any, leaves.clone(), &segments, 0.3, None);
            let grads = backward(&y, &upstream);
            let [dq, dk, dv] = leaves.map(|leaf| leaf.grad(&grads).unwrap());
            [y.inner(), dq, dk, dv]
        };
        for (one, two) in once().iter().zip(&once()) {
            assert_same_bits(one, two, "an output or gradient");
        }
    }
}

/// A tile is chosen for common heads, and its shared memory is what its documentation says.
#[test]
fn tiles_fit_where_they_are_said_to() {
    use super::tile::{Side, Tile, Work};

    let tile = Tile { cores: true, teams: 4, team_rows: 16, strip: 32, size: 128, vector: 8 };
    assert_eq!(tile.shared_bytes(Work::Output, 2), 49_408);
    assert_eq!(tile.shared_bytes(Work::Queries, 2), 66_560);
    let half = Tile { strip: 16, ..tile };
    assert_eq!(half.shared_bytes(Work::Keys(Side::Both), 2), 51_968);
    // What a cube of an sm_86 or sm_89 may have.
    let wide = Tile { size: 256, ..half };
    for work in [Work::Output, Work::Queries, Work::Keys(Side::Values), Work::Keys(Side::Keys)] {
        assert!(wide.shared_bytes(work, 2) <= 101_376, "{work:?}");
    }
}
