//! The update of all tensors against its reference, and what it does to memory.
#![allow(clippy::unwrap_used)]

use burn::backend::Flex;
use burn::tensor::{DType, Device};

use super::*;
use crate::oracle::{Random, assert_close, assert_same_bits, on_cpu, on_threads};

const RULE: AdamW = AdamW { step: 1, learning_rate: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, clip: 0.3 };
/// Nothing, less than a vector, odd, and more than a task takes.
const SIZES: [usize; 8] = [0, 1, 7, 33, 100, 1000, 4097, 150_001];

/// Values and their moments, in the order of [`SIZES`].
#[derive(Clone)]
struct State {
    values: Vec<Tensor<1>>,
    first: Vec<Tensor<1>>,
    second: Vec<Tensor<1>>,
}

impl State {
    fn new(random: &mut Random) -> Self {
        Self::of(random, &SIZES)
    }

    fn of(random: &mut Random, sizes: &[usize]) -> Self {
        let values: Vec<Tensor<1>> = sizes.iter().map(|&size| random.tensor([size])).collect();
        let zeros = || values.iter().map(Tensor::zeros_like).collect::<Vec<_>>();
        Self { first: zeros(), second: zeros(), values }
    }

    fn update(&mut self, gradients: &[Tensor<1>], with: impl FnOnce(&mut [Trained<'_>])) {
        let moments = self.first.iter_mut().zip(&mut self.second);
        let mut trained: Vec<Trained<'_>> = self
            .values
            .iter_mut()
            .zip(gradients)
            .zip(moments)
            .enumerate()
            .map(|(index, ((value, gradient), (first, second)))| {
                let weight_decay = if index % 2 == 0 { 0.1 } else { 0.0 };
                Trained { value, gradient, first, second, weight_decay }
            })
            .collect();
        with(&mut trained);
    }

    fn tensors(&self) -> impl Iterator<Item = &Tensor<1>> {
        self.values.iter().chain(&self.first).chain(&self.second)
    }

    fn addresses(&self) -> Vec<*const u8> {
        self.tensors().map(address).collect()
    }
}

fn address(tensor: &Tensor<1>) -> *const u8 {
    tensor.clone().try_into_primitive::<Flex>().unwrap().bytes().as_ptr()
}

/// Whole tensors and views, of very different sizes.
fn gradients(random: &mut Random) -> Vec<Tensor<1>> {
    let gradient = |(index, &size): (usize, &usize)| {
        let wide: Tensor<1> = random.tensor([size + 5]).mul_scalar(10f32.powi(index as i32 - 5));
        match size {
            0 => random.tensor([0]),
            _ if index % 2 == 0 => wide.narrow(0, 3, size),
            _ => wide.narrow(0, 0, size).add_scalar(0.0),
        }
    };
    SIZES.iter().enumerate().map(gradient).collect()
}

#[test]
fn several_updates_agree_with_the_reference() {
    for mut random in Random::everywhere(1) {
        let mut fast = State::new(&mut random);
        let mut expected = fast.clone();
        for step in 1..=5 {
            let (gradients, rule) = (gradients(&mut random), AdamW { step, clip: 1.0 / step as f64, ..RULE });
            fast.update(&gradients, |trained| adamw(trained, &rule));
            expected.update(&gradients, |trained| reference::adamw(trained, &rule));
            for (fast, expected) in fast.tensors().zip(expected.tensors()) {
                assert_close(fast, expected, &format!("{} numbers after {step} updates", expected.dims()[0]));
            }
        }
    }
}

/// More tensors than a launch takes, of sizes that are read in vectors of every width.
fn many() -> Vec<usize> {
    (0..75).map(|index| [64, 1, 0, 130, 257, 4096][index % 6]).collect()
}

#[test]
fn a_norm_may_stay_where_it_is_computed() {
    for mut random in Random::everywhere(6) {
        let mut fast = State::of(&mut random, &many());
        let mut expected = fast.clone();
        let witness = random.tensor([9]);
        for (step, most) in [(1, 0.0), (2, 0.25), (3, 1e6)] {
            let gradients: Vec<Tensor<1>> = many().iter().map(|&size| random.tensor([size])).collect();
            let norm = Norm::of(&gradients.iter().collect::<Vec<_>>(), &[&witness]);
            norm.check_queued();
            let copy = norm.copy();
            let rule = AdamW { step, ..RULE };
            fast.update(&gradients, |trained| adamw_clipped(trained, &mut [], &rule, &norm, most));
            let known = copy.value();
            let exact = gradients.iter().flat_map(crate::oracle::values).map(|g| g * g).sum::<f64>().sqrt();
            assert!((known / exact - 1.0).abs() < 1e-6, "{known} for {exact}");
            let rule = AdamW { clip: clip(exact, most), ..rule };
            expected.update(&gradients, |trained| reference::adamw(trained, &rule));
            for (fast, expected) in fast.tensors().zip(expected.tensors()) {
                assert_close(fast, expected, &format!("{} numbers after {step} updates", expected.dims()[0]));
            }
        }
    }
}

#[test]
fn what_is_no_number_leaves_everything_as_it_was() {
    for mut random in Random::everywhere(7) {
        let state = State::of(&mut random, &many());
        let gradients: Vec<Tensor<1>> = many().iter().map(|&size| random.tensor([size])).collect();
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for in_witness in [false, true] {
                let (mut gradients, mut witnesses) = (gradients.clone(), [random.tensor([5]), random.tensor([700])]);
                let spoiled = if in_witness { &mut witnesses[1] } else { &mut gradients[69] };
                let [last] = spoiled.dims();
                *spoiled = spoiled.clone().slice_fill(burn::tensor::s![last - 1..last], wrong);
                let norm = Norm::of(&gradients.iter().collect::<Vec<_>>(), &witnesses.each_ref());
                let mut after = state.clone();
                // As a step has them: nobody else holds its memory.
                after.values.iter_mut().for_each(|value| *value = value.clone().add_scalar(0.0));
                after.update(&gradients, |trained| adamw_clipped(trained, &mut [], &RULE, &norm, 1.0));
                for (after, before) in after.tensors().zip(state.tensors()) {
                    assert_same_bits(after, before, "a tensor");
                }
                assert_eq!((norm.clip(1.0), norm.value().is_finite()), (None, in_witness));
            }
        }
    }
}

#[test]
fn unshared_memory_is_updated_where_it_lies() {
    let mut random = Random::new(2);
    let mut state = State::new(&mut random);
    let gradients = gradients(&mut random);
    let before = state.addresses();
    state.update(&gradients, |trained| assert!(flex::adamw(trained, &RULE)));
    assert_eq!(state.addresses(), before);
}

#[test]
fn shared_memory_and_views_keep_what_they_had() {
    let mut random = Random::new(3);
    let shared = State::new(&mut random);
    let (mut state, gradients) = (shared.clone(), gradients(&mut random));
    let rows = random.tensor([20]);
    state.values[2] = rows.clone().narrow(0, 4, 7);
    let kept: Vec<Tensor<1>> = shared.values.iter().map(|value| value.clone().add_scalar(0.0)).collect();
    let (view, row_values) = (state.values[2].clone().add_scalar(0.0), rows.clone().add_scalar(0.0));
    let mut expected = state.clone();
    expected.values[2] = view;
    state.update(&gradients, |trained| adamw(trained, &RULE));
    expected.update(&gradients, |trained| reference::adamw(trained, &RULE));
    for (shared, kept) in shared.values.iter().zip(&kept) {
        assert_same_bits(shared, kept, "a value that another tensor shares");
    }
    assert_same_bits(&rows, &row_values, "what a value is a view of");
    for (ours, expected) in state.tensors().zip(expected.tensors()) {
        assert_close(ours, expected, "an update beside shared memory");
    }
}

#[test]
fn other_number_formats_take_the_reference() {
    let device = Device::flex();
    let double = |x: f64| Tensor::<1>::from_data([x], (&device, DType::F64));
    let (mut value, gradient, mut first, mut second) = (double(1.0), double(2.0), double(0.0), double(0.0));
    let (value, first, second) = (&mut value, &mut first, &mut second);
    adamw(&mut [Trained { value, gradient: &gradient, first, second, weight_decay: 0.0 }], &RULE);
    // The first update is one step size along the gradient's sign.
    let moved = 1.0 - value.clone().into_scalar::<f64>();
    assert!((moved - RULE.learning_rate).abs() < 1e-9, "{moved}");
    assert!((global_norm(&[&gradient]) - 2.0).abs() < 1e-6);
}

#[test]
fn the_norm_agrees_with_the_reference_and_with_f64() {
    for mut random in Random::everywhere(4) {
        let gradients = gradients(&mut random);
        let gradients: Vec<&Tensor<1>> = gradients.iter().collect();
        let norm = global_norm(&gradients);
        let exact = gradients.iter().flat_map(|g| crate::oracle::values(g)).map(|g| g * g).sum::<f64>().sqrt();
        assert!((norm / exact - 1.0).abs() < 1e-6, "{norm} for {exact}");
        let on_cpu: Vec<Tensor<1>> = gradients.iter().map(|gradient| on_cpu(gradient)).collect();
        let expected = reference::global_norm(&on_cpu.iter().collect::<Vec<_>>());
        assert!((expected / exact - 1.0).abs() < 1e-5);
        assert_eq!(global_norm(&[]), 0.0);
        assert_eq!(reference::global_norm(&[]), 0.0);
        let wrong = Tensor::<1>::from_floats([1.0, f32::NAN], &gradients[3].device());
        assert!(global_norm(&[gradients[3], &wrong]).is_nan());
    }
}

#[test]
fn thread_count_does_not_change_a_bit() {
    let mut random = Random::new(5);
    let (state, gradients) = (State::new(&mut random), gradients(&mut random));
    let run = |threads| {
        on_threads(threads, || {
            let mut state = state.clone();
            state.update(&gradients, |trained| adamw(trained, &RULE));
            (global_norm(&gradients.iter().collect::<Vec<_>>()), state)
        })
    };
    let ((norm, one), (norm_of_three, three)) = (run(1), run(3));
    assert_eq!(norm.to_bits(), norm_of_three.to_bits());
    for (one, three) in one.tensors().zip(three.tensors()) {
        assert_same_bits(one, three, "a tensor");
    }
}
