//! The update on less memory against torchao's, its reference and the update in f32.
#![allow(clippy::unwrap_used)]

use burn::backend::Flex;
use serde_json::Value;

use super::*;
use crate::oracle::{Random, assert_close, assert_same_bits, distance, on_threads, values};

const RULE: AdamW = AdamW { step: 1, learning_rate: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, clip: 1.0 };
/// Nothing, less than a block, whole blocks, a short last block, and more than a task takes.
const SIZES: [usize; 7] = [0, 1, 7, 256, 1000, 4097, 150_001];

#[derive(Clone)]
struct State {
    value: Tensor<1>,
    first: Moment,
    second: Moment,
}

impl State {
    fn new(value: Tensor<1>, coded: [bool; 2]) -> Self {
        let elements = value.dims()[0];
        let moment = |coded, map| match coded {
            true => Moment::Codes(Codes::zeros(elements, map, &Device::flex())),
            false => Moment::Wide(Tensor::zeros([elements], (&Device::flex(), DType::F32))),
        };
        let (first, second) = (moment(coded[0], DynamicMap::Signed), moment(coded[1], DynamicMap::Unsigned));
        Self { value, first, second }
    }

    fn trained<'a>(&'a mut self, gradient: &'a Tensor<1>, weight_decay: f64, key: u64) -> CompactTrained<'a> {
        let Self { value, first, second } = self;
        CompactTrained { value, gradient, first, second, weight_decay, key }
    }
}

/// All ways to hold tensors of all sizes.
fn states(random: &mut Random) -> Vec<State> {
    let mut states = Vec::new();
    for (index, size) in SIZES.into_iter().enumerate() {
        for coded in [[true, true], [false, true], [false, false]] {
            let value = random.narrow([size], false);
            states.push(State::new(if index % 2 == 0 { value } else { value.cast(DType::F32) }, coded));
        }
    }
    states
}

fn gradients(states: &[State], random: &mut Random) -> Vec<Tensor<1>> {
    let gradient = |state: &State| {
        let size = state.value.dims()[0];
        let wide = random.tensor([size + 5]).powi_scalar(3);
        if size == 0 {
            random.tensor([0])
        } else if size.is_multiple_of(2) {
            wide.narrow(0, 3, size)
        } else {
            wide.narrow(0, 0, size).add_scalar(0.0)
        }
    };
    states.iter().map(gradient).collect()
}

fn update(states: &mut [State], gradients: &[Tensor<1>], step: u64, with: impl Fn(&mut [CompactTrained<'_>], &AdamW)) {
    let mut trained: Vec<CompactTrained<'_>> = states
        .iter_mut()
        .zip(gradients)
        .enumerate()
        .map(|(index, (state, gradient))| state.trained(gradient, 0.1 * (index % 2) as f64, step * 100 + index as u64))
        .collect();
    with(&mut trained, &AdamW { step, clip: 1.0 / step as f64, ..RULE });
}

fn codes(moment: &Moment) -> (Vec<u8>, Vec<f64>) {
    match moment {
        Moment::Wide(tensor) => (Vec::new(), values(tensor)),
        Moment::Codes(Codes { codes, scales }) => (codes.clone().into_data().try_to_vec().unwrap(), values(scales)),
    }
}

fn wide(moment: &Moment, map: DynamicMap) -> Tensor<1> {
    match moment {
        Moment::Wide(tensor) => tensor.clone(),
        Moment::Codes(codes) => reference::decoded(codes, map),
    }
}

/// Both round an update's f32 numbers differently, so one in some thousand codes is the neighbouring one, and a bf16 value
/// goes the other way: what is compared is one update from the same state.
#[test]
fn an_update_agrees_with_the_reference() {
    let mut random = Random::new(1);
    let mut expected = states(&mut random);
    for step in 1..=3 {
        let gradients = gradients(&expected, &mut random);
        let mut fast = expected.clone();
        update(&mut fast, &gradients, step, |trained, rule| assert!(flex::adamw_compact(trained, rule)));
        update(&mut expected, &gradients, step, reference::adamw_compact);
        for (fast, expected) in fast.iter().zip(&expected) {
            let what = format!("{} numbers after {step} updates", fast.value.dims()[0]);
            assert_eq!(fast.value.dtype(), expected.value.dtype());
            let differ = |a: &[f64], b: &[f64]| a.iter().zip(b).filter(|(a, b)| a != b).count();
            if fast.value.dtype() == DType::F32 {
                assert_close(&fast.value, &expected.value, &what);
            } else {
                let (ours, theirs) = (values(&fast.value), values(&expected.value));
                assert!(
                    differ(&ours, &theirs) * 1000 <= ours.len(),
                    "{what}: {} roundings differ",
                    differ(&ours, &theirs)
                );
                assert!(distance(&fast.value, &expected.value) < 1.0 / 128.0, "{what}");
            }
            for (ours, theirs) in [(&fast.first, &expected.first), (&fast.second, &expected.second)] {
                let ((ours, our_scales), (theirs, their_scales)) = (codes(ours), codes(theirs));
                let others = ours.iter().zip(&theirs).filter(|(a, b)| a != b).count();
                assert!(others * 1000 <= ours.len(), "{what}: {others} codes differ");
                assert!(ours.iter().zip(&theirs).all(|(a, b)| a.abs_diff(*b) <= 1), "{what}: codes far apart");
                // What is left of a moment where old and new gradients cancel is as exact as they were.
                let largest = their_scales.iter().fold(0.0_f64, |largest, b| largest.max(b.abs()));
                for (a, b) in our_scales.iter().zip(&their_scales) {
                    assert!((a - b).abs() <= 1e-6 * largest, "{what}: {a} for {b}");
                }
            }
        }
    }
}

#[test]
fn with_f32_everywhere_it_is_the_other_update_bit_for_bit() {
    let mut random = Random::new(2);
    for size in SIZES {
        let (value, gradient) = (random.tensor([size]), random.tensor([size]));
        let mut state = State::new(value.clone(), [false, false]);
        let mut plain = value;
        let (mut first, mut second) = (plain.zeros_like(), plain.zeros_like());
        for step in 1..=3 {
            let rule = AdamW { step, ..RULE };
            adamw_compact(&mut [state.trained(&gradient, 0.1, 0)], &rule);
            let (value, first, second) = (&mut plain, &mut first, &mut second);
            let trained = crate::Trained { value, gradient: &gradient, first, second, weight_decay: 0.1 };
            crate::adamw(&mut [trained], &rule);
        }
        assert_same_bits(&state.value, &plain, "the value");
        assert_same_bits(&wide(&state.first, DynamicMap::Signed), &first, "the first moment");
        assert_same_bits(&wide(&state.second, DynamicMap::Unsigned), &second, "the second moment");
    }
}

#[test]
fn thread_count_does_not_change_a_bit() {
    let mut random = Random::new(3);
    let states = states(&mut random);
    let gradients = gradients(&states, &mut random);
    let run = |threads| {
        on_threads(threads, || {
            let mut states = states.clone();
            (1..=2).for_each(|step| update(&mut states, &gradients, step, adamw_compact));
            states
        })
    };
    for (one, three) in run(1).iter().zip(&run(3)) {
        assert_same_bits(&one.value, &three.value, "a value");
        assert_eq!(codes(&one.first), codes(&three.first));
        assert_eq!(codes(&one.second), codes(&three.second));
    }
}

#[test]
fn unshared_memory_is_updated_where_it_lies_and_shared_memory_keeps_what_it_had() {
    let mut random = Random::new(4);
    let mut state = State::new(random.narrow([1000], false), [true, true]);
    let gradient = random.tensor([1000]);
    let addresses = |state: &State| {
        let mut found = vec![state.value.clone().try_into_primitive::<Flex>().unwrap().bytes().as_ptr()];
        for moment in [&state.first, &state.second] {
            let Moment::Codes(Codes { codes, scales }) = moment else { unreachable!() };
            found.push(codes.clone().try_into_primitive::<Flex>().unwrap().bytes().as_ptr());
            found.push(scales.clone().try_into_primitive::<Flex>().unwrap().bytes().as_ptr());
        }
        found
    };
    let before = addresses(&state);
    adamw_compact(&mut [state.trained(&gradient, 0.0, 1)], &RULE);
    assert_eq!(addresses(&state), before);
    let shared = state.clone();
    let kept = (values(&shared.value), codes(&shared.first), codes(&shared.second));
    adamw_compact(&mut [state.trained(&gradient, 0.0, 2)], &AdamW { step: 2, ..RULE });
    assert_eq!((values(&shared.value), codes(&shared.first), codes(&shared.second)), kept);
    assert_ne!(codes(&state.first), codes(&shared.first));
}

#[test]
fn rounding_is_to_a_neighbour_and_right_on_average() {
    let mut random = Random::new(5);
    let exact = [1.0, 1.0 + 1.0 / 256.0, -1.0 - 3.0 / 1024.0, 0.0, -0.0, 1e30, -3.1e-5, f32::MIN_POSITIVE];
    let drawn: Vec<f32> = (0..40).map(|_| random.unit()).collect();
    const COPIES: usize = 4096;
    for x in exact.into_iter().chain(drawn) {
        let row = vec![x; COPIES];
        let mut out = vec![burn::tensor::bf16::ZERO; COPIES];
        crate::cpu::vector::narrow_at_random(&mut out, &row, 77, 0);
        let (low, high) =
            (f32::from_bits(x.to_bits() & 0xffff_0000), f32::from_bits((x.to_bits() & 0xffff_0000) + 0x1_0000));
        assert!(out.iter().all(|y| [low, high].contains(&y.to_f32())), "{x:e}");
        let up = out.iter().filter(|y| y.to_f32() != low).count() as f64 / COPIES as f64;
        let part = f64::from(x.to_bits() & 0xffff) / 65536.0;
        // Five standard deviations of a share of 4096.
        assert!((up - part).abs() <= 5.0 * (part * (1.0 - part) / COPIES as f64).sqrt(), "{x:e}: {up} for {part}");
    }
    let mut out = vec![burn::tensor::bf16::ZERO; 3];
    crate::cpu::vector::narrow_at_random(&mut out, &[f32::INFINITY, f32::NEG_INFINITY, f32::NAN], 1, 0);
    assert_eq!((out[0].to_f32(), out[1].to_f32(), out[2].is_nan()), (f32::INFINITY, f32::NEG_INFINITY, true));
}

#[test]
fn the_reference_rounds_by_the_same_bits() {
    let mut random = Random::new(6);
    let row: Vec<f32> =
        (0..4099).map(|index| random.unit() * 2f32.powi(index % 60 - 30)).chain([0.0, 1.0, -2.0]).collect();
    let mut out = vec![burn::tensor::bf16::ZERO; row.len()];
    crate::cpu::vector::narrow_at_random(&mut out, &row, 5, 0);
    let elements = row.len();
    let rounded = reference::rounded(Tensor::from_data(TensorData::new(row, [elements]), &Device::flex()), 5);
    let expected = Tensor::<1>::from_data(TensorData::new(out, [elements]), (&Device::flex(), DType::BF16));
    assert_eq!(values(&rounded), values(&expected));
}

/// Updates of a thousandth of the distance between two bf16 would all be lost by rounding to the nearest.
#[test]
fn small_updates_add_up_in_bf16() {
    let mut state = State::new(Tensor::ones([10_000], (&Device::flex(), DType::BF16)), [true, true]);
    let gradient = Tensor::<1>::ones([10_000], (&Device::flex(), DType::F32));
    let updates = 400;
    for step in 1..=updates {
        let rule = AdamW { step, learning_rate: 1.0 / 128.0 / 1000.0, ..RULE };
        adamw_compact(&mut [state.trained(&gradient, 0.0, step)], &rule);
    }
    let moved = 1.0 - values(&state.value).iter().sum::<f64>() / 10_000.0;
    let expected = updates as f64 / 128.0 / 1000.0;
    assert!((moved / expected - 1.0).abs() < 0.05, "moved by {moved} instead of {expected}");
}

/// Written by scripts/make_optimizer_goldens.py.
fn golden() -> Value {
    serde_json::from_str(include_str!("golden.json")).unwrap()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn hex(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap();
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// Theirs go through f32 on the way, so the last bits may differ.
#[test]
fn the_maps_are_those_of_bitsandbytes_and_torchao() {
    let golden = golden();
    for (name, map) in [("signed", DynamicMap::Signed), ("unsigned", DynamicMap::Unsigned)] {
        let theirs = floats(&golden[name]);
        for (ours, theirs) in map.numbers().into_iter().zip(&theirs) {
            assert!((f64::from(ours) - theirs).abs() <= 2.4e-7 * theirs.abs(), "{name}: {ours:e} for {theirs:e}");
        }
    }
}

fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn unit(bits: u64) -> f64 {
    (bits >> 40) as f64 / f64::from(1 << 23) - 1.0
}

/// `uniform` of the script.
fn drawn_value(key: u64, index: u64) -> f32 {
    unit(mix(mix(key).wrapping_add(index))) as f32
}

/// `gradient` of the script.
fn drawn_gradient(case: u64, step: u64, index: u64, attempt: u64) -> f32 {
    let key = mix(mix(mix(case).wrapping_add(step)).wrapping_add(attempt));
    let bits = mix(key.wrapping_add(index));
    (unit(bits) * 2f64.powi(-(((bits & 0xffff) % 12) as i32))) as f32
}

/// Ten steps: the same codes, all of them, because the script drew no number that another rounding would give another code;
/// bf16 values the same bits, from the same random bits; scales and f32 values to f32 rounding. They form `1 - b2^t` in f32,
/// which at first is off by 1e-5, and with it every move.
#[test]
fn ten_steps_are_those_of_torchao() {
    let rule = AdamW { learning_rate: 1e-3, ..RULE };
    for (case, golden) in golden()["cases"].as_array().unwrap().iter().enumerate() {
        let name = golden["name"].as_str().unwrap();
        let (case, elements) = (case as u64, golden["elements"].as_u64().unwrap());
        let tensor = |values: Vec<f32>| {
            let count = values.len();
            Tensor::<1>::from_data(TensorData::new(values, [count]), &Device::flex())
        };
        let is_bf16 = golden["bf16"].as_bool().unwrap();
        let start: Vec<f32> = (0..elements).map(|index| drawn_value(case, index)).collect();
        let value = tensor(start.clone());
        let mut state = State::new(if is_bf16 { value.cast(DType::BF16) } else { value }, [true, true]);
        let retries: Vec<[u64; 3]> = golden["retries"]
            .as_array()
            .unwrap()
            .iter()
            .map(|retry| std::array::from_fn(|at| retry[at].as_u64().unwrap()))
            .collect();
        for step in 1..=10 {
            let attempt = |index| retries.iter().find(|r| r[..2] == [step, index]).map_or(0, |r| r[2]);
            let gradient = (0..elements).map(|index| drawn_gradient(case, step, index, attempt(index))).collect();
            adamw_compact(&mut [state.trained(&tensor(gradient), 0.1, 1000 * case + step)], &AdamW { step, ..rule });
            if step != 1 && step != 10 {
                continue;
            }
            for (which, moment) in [("first", &state.first), ("second", &state.second)] {
                let (codes, scales) = codes(moment);
                assert!(codes == hex(&golden[format!("{which}_codes_{step}")]), "{name}: {which} after {step}");
                for (ours, theirs) in scales.iter().zip(floats(&golden[format!("{which}_scales_{step}")])) {
                    assert!((ours - theirs).abs() <= 1e-6 * theirs, "{name}: scale {ours} for {theirs}");
                }
            }
        }
        let ours = values(&state.value);
        let theirs: Vec<f64> = if is_bf16 {
            let bits = hex(&golden["values"]);
            let wide =
                bits.chunks(2).map(|pair| f32::from_bits(u32::from(u16::from_be_bytes([pair[0], pair[1]])) << 16));
            wide.map(f64::from).collect()
        } else {
            floats(&golden["values"])
        };
        for (index, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
            let moved = (theirs - f64::from(start[index])).abs();
            // Each step two roundings of a number below 1, by 3e-8 each, and the factor of the decay rounded, by 2e-8.
            let most = if is_bf16 { 0.0 } else { 8e-7 + 1e-5 * moved };
            assert!((ours - theirs).abs() <= most, "{name}: value {index} is {ours}, not {theirs}");
        }
    }
}
