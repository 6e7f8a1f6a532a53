//! The public convolution against its reference, finite differences and its own steps.
#![allow(clippy::unwrap_used)]

use burn::tensor::DType;

use super::*;
use crate::oracle::{
    Random, assert_close, assert_rounded, assert_same_bits, backward, double, finite_differences, leaf, on_threads,
    wide,
};

#[test]
fn agrees_with_the_reference() {
    for mut random in Random::everywhere(1) {
        for (lens, channels, kernel) in [
            (&[1][..], 1, 4),
            (&[3], 5, 4),
            (&[2, 0, 1, 9], 33, 4),
            (&[300, 40], 64, 4),
            (&[7, 5], 16, 1),
            (&[6], 3, 2),
        ] {
            for strided in [false, true] {
                let segments = Segments::packed(lens);
                let shape = [segments.tokens(), channels];
                let mut draw = |shape: [usize; 2]| if strided { random.view(shape) } else { random.tensor(shape) };
                let (x, weight, upstream) = (draw(shape) * 3.0, draw([channels, kernel]), draw(shape));
                let bias = random.tensor([channels]);
                for bias in [None, Some(bias)] {
                    let fast = (leaf(&x), leaf(&weight), bias.as_ref().map(leaf));
                    let expected = (leaf(&x), leaf(&weight), bias.as_ref().map(leaf));
                    let y = causal_conv(fast.0.clone(), fast.1.clone(), fast.2.clone(), &segments);
                    let (ex, ew, eb) = expected.clone();
                    let expected_y = reference::causal_conv(ex, ew, eb, &segments);
                    let case = format!("{lens:?} x {channels}, kernel {kernel}, strided {strided}");
                    assert_close(&y, &expected_y, &case);
                    assert_close(&causal_conv(x.clone(), weight.clone(), bias, &segments), &expected_y, &case);
                    let (grads, expected_grads) = (backward(&y, &upstream), backward(&expected_y, &upstream));
                    let grad = |leaf: &Tensor<2>, grads| leaf.grad(grads).unwrap();
                    assert_close(&grad(&fast.0, &grads), &grad(&expected.0, &expected_grads), &format!("dx of {case}"));
                    assert_close(
                        &grad(&fast.1, &grads),
                        &grad(&expected.1, &expected_grads),
                        &format!("dweight of {case}"),
                    );
                    if let (Some(fast), Some(expected)) = (&fast.2, &expected.2) {
                        let (dbias, expected) = (fast.grad(&grads).unwrap(), expected.grad(&expected_grads).unwrap());
                        assert_close(&dbias, &expected, &format!("dbias of {case}"));
                    }
                }
            }
        }
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    for mut random in Random::everywhere(2) {
        let segments = Segments::packed(&[5, 2]);
        let (x, weight, bias, upstream) =
            (random.tensor([7, 3]), random.tensor([3, 4]), random.tensor([3]), random.tensor([7, 3]));
        let (tx, tw, tb) = (leaf(&x), leaf(&weight), leaf(&bias));
        let grads = backward(&causal_conv(tx.clone(), tw.clone(), Some(tb.clone()), &segments), &upstream);
        let dx = finite_differences(&x, &upstream, |x| {
            reference::causal_conv(x, double(&weight), Some(double(&bias)), &segments)
        });
        let dw = finite_differences(&weight, &upstream, |weight| {
            reference::causal_conv(double(&x), weight, Some(double(&bias)), &segments)
        });
        let db = finite_differences(&bias, &upstream, |bias| {
            reference::causal_conv(double(&x), double(&weight), Some(bias), &segments)
        });
        assert_close(&double(&tx.grad(&grads).unwrap()), &dx, "dx");
        assert_close(&double(&tw.grad(&grads).unwrap()), &dw, "dweight");
        assert_close(&double(&tb.grad(&grads).unwrap()), &db, "dbias");
    }
}

#[test]
fn the_last_column_of_the_weight_meets_the_token_itself() {
    let device = burn::tensor::Device::flex();
    let x = Tensor::<2>::from_floats([[1.0], [10.0], [100.0]], &device);
    let weight = Tensor::from_floats([[0.5, 2.0]], &device);
    let y = causal_conv(x, weight, None, &Segments::packed(&[3])).into_data().try_to_vec::<f32>().unwrap();
    let silu = |z: f32| z / (1.0 + (-z).exp());
    for (y, z) in y.iter().zip([2.0, 20.5, 205.0]) {
        assert!((y - silu(z)).abs() < 1e-4, "{y} for {z}");
    }
}

#[test]
fn columns_of_a_wider_tensor_are_read_where_they_lie() {
    for mut random in Random::everywhere(6) {
        let (wide, weight, upstream) = (random.tensor([9, 20]), random.tensor([8, 4]), random.tensor([9, 8]));
        let segments = Segments::packed(&[4, 5]);
        let tracked = leaf(&wide);
        let view = tracked.clone().narrow(1, 5, 8);
        let copy = leaf(&view);
        let y = causal_conv(view, weight.clone(), None, &segments);
        let expected = causal_conv(copy.clone(), weight, None, &segments);
        assert_same_bits(&y, &expected, "y");
        let (dwide, dcopy) =
            (tracked.grad(&backward(&y, &upstream)).unwrap(), copy.grad(&backward(&expected, &upstream)).unwrap());
        assert_same_bits(&dwide.narrow(1, 5, 8), &dcopy, "dx");
    }
}

#[test]
fn packed_is_separate_bit_for_bit_and_sees_no_neighbour() {
    let mut random = Random::new(3);
    let (x, weight) = (random.tensor([12, 40]), random.tensor([40, 4]));
    let packed = causal_conv(x.clone(), weight.clone(), None, &Segments::packed(&[7, 5]));
    for (start, len) in [(0, 7), (7, 5)] {
        let alone = causal_conv(x.clone().narrow(0, start, len), weight.clone(), None, &Segments::packed(&[len]));
        assert_same_bits(&packed.clone().narrow(0, start, len), &alone, "a packed sequence");
    }
}

#[test]
fn steps_continue_a_sequence() {
    for mut random in Random::everywhere(4) {
        let (x, weight, bias) = (random.tensor([9, 6]), random.tensor([6, 4]), random.tensor([6]));
        let whole = causal_conv(x.clone(), weight.clone(), Some(bias.clone()), &Segments::packed(&[9]));
        let mut history = Tensor::zeros([3, 6], &x.device());
        let (mut outputs, mut start) = (Vec::new(), 0);
        for tokens in [5, 1, 1, 2] {
            let (y, next) =
                causal_conv_step(history, x.clone().narrow(0, start, tokens), weight.clone(), Some(bias.clone()));
            (history, start) = (next, start + tokens);
            outputs.push(y);
        }
        assert_close(&Tensor::cat(outputs, 0), &whole, "the steps");
        assert_same_bits(&history, &x.narrow(0, 6, 3), "the history");
    }
}

#[test]
fn thread_count_does_not_change_a_bit() {
    let mut random = Random::new(5);
    let (x, weight, upstream) = (random.tensor([2000, 100]), random.tensor([100, 4]), random.tensor([2000, 100]));
    let segments = Segments::packed(&[1500, 500]);
    let run = |threads| {
        on_threads(threads, || {
            let (x, weight) = (leaf(&x), leaf(&weight));
            let y = causal_conv(x.clone(), weight.clone(), None, &segments);
            let grads = backward(&y, &upstream);
            [y.inner(), x.grad(&grads).unwrap(), weight.grad(&grads).unwrap()]
        })
    };
    for (one, three) in run(1).iter().zip(&run(3)) {
        assert_same_bits(one, three, "an output or gradient");
    }
}

/// Weight and bias are f32, as in a bf16 model, or bf16 as in a checkpoint.
#[test]
fn bf16_is_f32_rounded_once() {
    let mut random = Random::new(7);
    for (lens, channels, kernel, strided) in [
        (&[1][..], 1, 4, false),
        (&[0], 3, 4, false),
        (&[2, 0, 1, 9], 33, 4, true),
        (&[300, 40], 640, 4, false),
        (&[7, 5], 16, 1, true),
    ] {
        let segments = Segments::packed(lens);
        let shape = [segments.tokens(), channels];
        let (x, upstream) = (random.narrow(shape, strided), random.narrow(shape, strided));
        let (weight, bias) = (random.tensor([channels, kernel]), random.tensor([channels]));
        let narrow = (weight.clone().cast(DType::BF16), bias.clone().cast(DType::BF16));
        for (weight, bias) in [(weight, bias), narrow] {
            let fast = (leaf(&x), leaf(&weight), leaf(&bias));
            let exact = (leaf(&wide(&x)), leaf(&wide(&weight)), leaf(&wide(&bias)));
            let y = causal_conv(fast.0.clone(), fast.1.clone(), Some(fast.2.clone()), &segments);
            let expected = reference::causal_conv(exact.0.clone(), exact.1.clone(), Some(exact.2.clone()), &segments);
            if shape[0] == 0 {
                assert_eq!((y.dims(), y.dtype()), (shape, DType::BF16));
                continue;
            }
            assert_rounded(&y, &expected, "y");
            let (grads, exact_grads) = (backward(&y, &upstream), backward(&expected, &wide(&upstream)));
            assert_rounded(&fast.0.grad(&grads).unwrap(), &exact.0.grad(&exact_grads).unwrap(), "dx");
            let (dweight, expected) = (fast.1.grad(&grads).unwrap(), exact.1.grad(&exact_grads).unwrap());
            let (dbias, expected_dbias) = (fast.2.grad(&grads).unwrap(), exact.2.grad(&exact_grads).unwrap());
            if weight.dtype() == DType::F32 {
                assert_close(&dweight, &expected, "dweight");
                assert_close(&dbias, &expected_dbias, "dbias");
            } else {
                assert_rounded(&dweight, &expected, "dweight");
                assert_rounded(&dbias, &expected_dbias, "dbias");
            }
        }
    }
}

#[test]
fn thread_count_does_not_change_a_bit_of_bf16() {
    let mut random = Random::new(8);
    let [x, upstream] = [0; 2].map(|_| random.narrow([2000, 100], false));
    let (weight, segments) = (random.tensor([100, 4]), Segments::packed(&[1500, 500]));
    let run = |threads| {
        on_threads(threads, || {
            let x = leaf(&x);
            let y = causal_conv(x.clone(), weight.clone(), None, &segments);
            let dx = x.grad(&backward(&y, &upstream)).unwrap();
            [y.inner(), dx]
        })
    };
    for (one, three) in run(1).iter().zip(&run(3)) {
        assert_same_bits(one, three, "y or dx");
    }
}
