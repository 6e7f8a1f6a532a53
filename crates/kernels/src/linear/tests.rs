//! The public linear map against its reference and finite differences.
#![allow(clippy::unwrap_used)]

use burn::tensor::DType;

use super::*;
use crate::oracle::{
    Random, assert_close, assert_same_bits, backward, distance, double, finite_differences, leaf, on_threads,
};

/// x, weight, bias, a, b.
#[derive(Clone)]
struct Operands {
    x: Tensor<2>,
    weight: Tensor<2>,
    bias: Tensor<1>,
    a: Tensor<2>,
    b: Tensor<2>,
}

const NAMES: [&str; 5] = ["dx", "dweight", "dbias", "da", "db"];

impl Operands {
    fn draw(random: &mut Random, [tokens, inputs, outputs, rank]: [usize; 4], strided: bool) -> Self {
        let mut draw = |shape| if strided { random.view(shape) } else { random.tensor(shape) };
        let (x, weight) = (draw([tokens, inputs]), draw([outputs, inputs]));
        let (a, b) = (draw([rank, inputs]), draw([outputs, rank]));
        Self { x, weight, bias: random.tensor([outputs]), a, b }
    }

    /// Leaves where `tracked`, constants elsewhere.
    fn track(&self, tracked: [bool; 5]) -> Self {
        fn one<const D: usize>(tensor: &Tensor<D>, tracked: bool) -> Tensor<D> {
            if tracked { leaf(tensor) } else { tensor.clone() }
        }
        Self {
            x: one(&self.x, tracked[0]),
            weight: one(&self.weight, tracked[1]),
            bias: one(&self.bias, tracked[2]),
            a: one(&self.a, tracked[3]),
            b: one(&self.b, tracked[4]),
        }
    }

    fn adapter(&self, dropout: Option<Dropout>) -> Adapter {
        Adapter { a: self.a.clone(), b: self.b.clone(), scale: 1.5, dropout }
    }

    fn apply(&self, bias: bool, adapter: Option<Adapter>) -> Tensor<2> {
        linear(self.x.clone(), self.weight.clone(), bias.then(|| self.bias.clone()), adapter)
    }

    fn expect(&self, bias: bool, adapter: Option<Adapter>) -> Tensor<2> {
        reference::linear(self.x.clone(), self.weight.clone(), bias.then(|| self.bias.clone()), adapter)
    }

    /// Gradients of `Σ y·upstream`, in the order of [`NAMES`], `None` for constants.
    fn grads(&self, y: &Tensor<2>, upstream: &Tensor<2>) -> [Option<Tensor<2>>; 5] {
        let grads = backward(y, upstream);
        [
            self.x.grad(&grads),
            self.weight.grad(&grads),
            self.bias.grad(&grads).map(Tensor::unsqueeze),
            self.a.grad(&grads),
            self.b.grad(&grads),
        ]
    }
}

fn agrees(operands: &Operands, upstream: &Tensor<2>, tracked: [bool; 5], bias: bool, adapted: bool, p: Option<f32>) {
    let case = format!("{:?}, tracked {tracked:?}, bias {bias}, adapter {adapted}, dropout {p:?}", operands.x.dims());
    let dropout = p.map(|p| Dropout { p, key: 5 });
    let (fast, expected) = (operands.track(tracked), operands.track(tracked));
    let y = fast.apply(bias, adapted.then(|| fast.adapter(dropout)));
    let expected_y = expected.expect(bias, adapted.then(|| expected.adapter(dropout)));
    assert_close(&y, &expected_y, &case);
    let used = [true, true, bias, adapted, adapted];
    if tracked.iter().zip(used).all(|(&tracked, used)| !(tracked && used)) {
        return;
    }
    let (grads, expected_grads) = (fast.grads(&y, upstream), expected.grads(&expected_y, upstream));
    for ((grad, expected), name) in grads.iter().zip(&expected_grads).zip(NAMES) {
        assert_eq!(grad.is_some(), expected.is_some(), "{name} of {case}");
        if let (Some(grad), Some(expected)) = (grad, expected) {
            assert_close(grad, expected, &format!("{name} of {case}"));
        }
    }
}

#[test]
fn agrees_with_the_reference_on_odd_shapes() {
    for mut random in Random::everywhere(1) {
        for shape in [[1, 1, 1, 1], [1, 8, 5, 2], [7, 5, 3, 2], [33, 64, 48, 8], [130, 100, 70, 16]] {
            for strided in [false, true] {
                let operands = Operands::draw(&mut random, shape, strided);
                let upstream = random.view([shape[0], shape[2]]);
                for (bias, adapted, p) in [
                    (false, false, None),
                    (true, false, None),
                    (false, true, None),
                    (true, true, None),
                    (true, true, Some(0.4)),
                ] {
                    agrees(&operands, &upstream, [true; 5], bias, adapted, p);
                }
            }
        }
    }
}

#[test]
fn any_mixture_of_constants_and_tracked_tensors() {
    for mut random in Random::everywhere(2) {
        let operands = Operands::draw(&mut random, [9, 6, 11, 3], false);
        let upstream = random.tensor([9, 11]);
        for mask in 0..32_u32 {
            let tracked = [0, 1, 2, 3, 4].map(|bit| mask & (1 << bit) != 0);
            for (bias, adapted) in [(false, false), (true, false), (false, true), (true, true)] {
                for p in [None, Some(0.3)] {
                    agrees(&operands, &upstream, tracked, bias, adapted, p);
                }
            }
        }
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    for mut random in Random::everywhere(3) {
        let operands = Operands::draw(&mut random, [4, 3, 5, 2], false);
        let upstream = random.tensor([4, 5]);
        let dropout = Some(Dropout { p: 0.25, key: 9 });
        let tracked = operands.track([true; 5]);
        let y = tracked.apply(true, Some(tracked.adapter(dropout)));
        let grads = tracked.grads(&y, &upstream).map(|grad| double(&grad.unwrap()));
        let exact = Operands {
            x: double(&operands.x),
            weight: double(&operands.weight),
            bias: double(&operands.bias),
            a: double(&operands.a),
            b: double(&operands.b),
        };
        let f = |operands: Operands| operands.expect(true, Some(operands.adapter(dropout)));
        let slopes = [
            finite_differences(&operands.x, &upstream, |x| f(Operands { x, ..exact.clone() })),
            finite_differences(&operands.weight, &upstream, |weight| f(Operands { weight, ..exact.clone() })),
            finite_differences(&operands.bias, &upstream, |bias| f(Operands { bias, ..exact.clone() })).unsqueeze(),
            finite_differences(&operands.a, &upstream, |a| f(Operands { a, ..exact.clone() })),
            finite_differences(&operands.b, &upstream, |b| f(Operands { b, ..exact.clone() })),
        ];
        for ((grad, slope), name) in grads.iter().zip(&slopes).zip(NAMES) {
            assert_close(grad, slope, name);
        }
    }
}

#[test]
fn thread_count_does_not_change_a_bit() {
    let mut random = Random::new(4);
    let operands = Operands::draw(&mut random, [300, 192, 320, 16], false);
    let upstream = random.tensor([300, 320]);
    let run = |threads| {
        on_threads(threads, || {
            let tracked = operands.track([true; 5]);
            let y = tracked.apply(true, Some(tracked.adapter(Some(Dropout { p: 0.1, key: 1 }))));
            let grads = tracked.grads(&y, &upstream).map(|grad| grad.unwrap());
            (y, grads)
        })
    };
    let (one, three) = (run(1), run(3));
    assert_same_bits(&one.0, &three.0, "y");
    for ((one, three), name) in one.1.iter().zip(&three.1).zip(NAMES) {
        assert_same_bits(one, three, name);
    }
}

#[test]
fn a_bf16_base_takes_f32_adapters_and_gives_their_gradients_in_f32() {
    let mut random = Random::new(5);
    let operands = Operands::draw(&mut random, [6, 8, 5, 2], false);
    let expected = operands.apply(false, Some(operands.adapter(None)));
    let (a, b) = (leaf(&operands.a), leaf(&operands.b));
    let adapter = Adapter { a: a.clone(), b: b.clone(), scale: 1.5, dropout: None };
    let y = linear(operands.x.cast(DType::BF16), operands.weight.cast(DType::BF16), None, Some(adapter));
    assert_eq!(y.dtype(), DType::BF16);
    assert!(distance(&y, &expected) < 0.02);
    let grads = backward(&y, &Tensor::ones_like(&y.clone().inner()));
    assert_eq!(a.grad(&grads).unwrap().dtype(), DType::F32);
    assert_eq!(b.grad(&grads).unwrap().dtype(), DType::F32);
}

#[test]
fn a_bf16_weight_beside_f32_activations_is_its_f32_copy() {
    let mut random = Random::new(6);
    for tokens in [1, 2, 20, 50] {
        let mut operands = Operands::draw(&mut random, [tokens, 34, 40, 3], false);
        let stored = operands.weight.clone().cast(DType::BF16);
        operands.weight = stored.clone().cast(DType::F32);
        let upstream = random.tensor([tokens, 40]);
        let exact = operands.track([true, false, false, true, true]);
        let fast = Operands { weight: stored, ..operands.track([true, false, false, true, true]) };
        let (y, expected) = (fast.apply(true, Some(fast.adapter(None))), exact.apply(true, Some(exact.adapter(None))));
        assert_eq!(y.dtype(), DType::F32);
        assert_close(&y, &expected, "y");
        let (grads, expected) = (fast.grads(&y, &upstream), exact.grads(&expected, &upstream));
        for ((grad, expected), name) in grads.iter().zip(&expected).zip(NAMES) {
            assert_eq!(grad.is_some(), expected.is_some(), "{name}");
            if let (Some(grad), Some(expected)) = (grad, expected) {
                assert_close(grad, expected, name);
            }
        }
    }
}
