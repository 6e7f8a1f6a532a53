//! NF4 against bitsandbytes: what it makes of a tensor, and what that decodes to (`scripts/make_nf4_golden.py`).
#![allow(clippy::unwrap_used)]

use serde_json::Value;

use super::*;

fn golden() -> Value {
    serde_json::from_str(include_str!("golden.json")).unwrap()
}

fn bytes(hex: &Value) -> Vec<u8> {
    let hex = hex.as_str().unwrap().as_bytes();
    hex.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn floats(list: &Value) -> Vec<f32> {
    list.as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32).collect()
}

/// FNV-1a, 64 bits, of the numbers' bytes.
fn hash(values: &[f32]) -> String {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}

/// The script's tensor, by the same formula.
fn tensor() -> Vec<f32> {
    let mut state = 1_u64;
    let mut values: Vec<f32> = (0..64 * 300 + 17)
        .map(|i| {
            let mut total = 0;
            for _ in 0..4 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                total += state >> 40;
            }
            ((total as f64 / f64::from(1 << 24) - 2.0) * 0.02 * (1 + i / 64 % 7) as f64) as f32
        })
        .collect();
    values[64 * 5..64 * 6].fill(0.0);
    values
}

/// The script's mean squares of input channels.
fn importance() -> Vec<f32> {
    (0..1747).map(|i| if i % 97 == 5 { 500.0 } else { (1 + i * i % 13) as f32 }).collect()
}

fn quantised(values: &[f32]) -> Nf4 {
    let read = |first: usize, part: &mut [f32]| {
        part.copy_from_slice(&values[first..][..part.len()]);
        Ok::<(), std::convert::Infallible>(())
    };
    Nf4::quantise(values.len(), read).unwrap()
}

#[test]
fn what_bitsandbytes_packed_decodes_to_its_numbers() {
    let golden = golden();
    let (codes, scales) = (bytes(&golden["codes"]), bytes(&golden["scales"]));
    let mean = golden["mean"].as_f64().unwrap() as f32;
    let packed = Nf4::from_parts(tensor().len(), codes, scales, floats(&golden["ranges"]), mean);
    let mut values = vec![f32::NAN; packed.numbers()];
    packed.decode(0, &mut values);
    assert_eq!(values[..4], floats(&golden["first"]));
    assert_eq!(hash(&values), golden["decoded"].as_str().unwrap());
    assert_eq!(hash(&*SCALE_VALUES), golden["map"].as_str().unwrap());
}

#[test]
fn a_tensor_becomes_the_codes_of_bitsandbytes() {
    let golden = golden();
    let packed = quantised(&tensor());
    let (codes, scales, ranges, mean) = packed.parts();
    assert_eq!(codes, bytes(&golden["codes"]));
    let mut expected = bytes(&golden["scales"]);
    for near in golden["near"].as_array().unwrap() {
        expected[near[0].as_u64().unwrap() as usize] = near[1].as_u64().unwrap() as u8;
    }
    assert_eq!(scales, expected);
    // Sums of f32 depend on their order.
    let close = |a: f32, b: f32| (a - b).abs() <= 2e-7 * b.abs().max(1e-3);
    assert!(close(mean, golden["mean"].as_f64().unwrap() as f32), "{mean}");
    for (range, expected) in ranges.iter().zip(floats(&golden["ranges"])) {
        assert!(close(*range, expected), "{range} {expected}");
    }
}

/// The channels of the numbers of a block.
fn weights_of(block: usize, count: usize) -> Vec<f32> {
    let importance = importance();
    (0..count).map(|i| importance[(BLOCK * block + i) % importance.len()]).collect()
}

fn lost(values: &[f32], decoded: &[f32], weights: &[f32]) -> f64 {
    let errors = values.iter().zip(decoded).zip(weights);
    errors.map(|((value, decoded), weight)| f64::from(*weight) * f64::from(value - decoded).powi(2)).sum()
}

#[test]
fn a_weighted_scale_is_the_one_of_least_loss() {
    let golden = &golden()["weighted"];
    assert_eq!(floats(&golden["shares"]), scale::SHARES);
    let mut clear = 0;
    for (block, values) in tensor().chunks(BLOCK).enumerate() {
        let Some(chosen) = golden["chosen"][block].as_u64() else { continue };
        let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let scale = scale::weighted(values, &weights_of(block, values.len()), largest);
        assert_eq!(scale, scale::SHARES[chosen as usize] * largest, "block {block}");
        clear += 1;
    }
    assert!(clear > 280, "{clear} blocks");
}

#[test]
fn the_scale_does_not_depend_on_the_instructions() {
    for (block, values) in tensor().chunks(BLOCK).enumerate() {
        let weights = weights_of(block, values.len());
        let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let expected = scale::plain(values, &weights, largest);
        assert_eq!(scale::weighted(values, &weights, largest).to_bits(), expected.to_bits(), "block {block}");
    }
}

#[test]
fn numbers_that_meet_large_inputs_lose_less() {
    let (values, importance) = (tensor(), importance());
    let read = |first: usize, part: &mut [f32]| {
        part.copy_from_slice(&values[first..][..part.len()]);
        Ok::<(), std::convert::Infallible>(())
    };
    let loss = |packed: &Nf4| {
        let mut decoded = vec![0.0; values.len()];
        packed.decode(0, &mut decoded);
        let blocks = values.chunks(BLOCK).zip(decoded.chunks(BLOCK)).enumerate();
        blocks.map(|(block, (values, decoded))| lost(values, decoded, &weights_of(block, values.len()))).sum::<f64>()
    };
    let weighted = Nf4::quantise_for(&importance, values.len(), read).unwrap();
    let (weighted, plain) = (loss(&weighted), loss(&quantised(&values)));
    // The scales themselves are quantised after they are chosen.
    let least = golden()["weighted"]["loss"].as_f64().unwrap();
    assert!((weighted / least - 1.0).abs() < 0.02, "{weighted}, at best {least}");
    assert!(weighted < 0.8 * plain, "{weighted}, unweighted {plain}");
    // Of channels that are never used, bitsandbytes' own bytes.
    let unused = Nf4::quantise_for(&[0.0; 1747], values.len(), read).unwrap();
    assert_eq!(unused.parts(), quantised(&values).parts());
}

#[test]
fn any_stretch_decodes_to_its_part_of_the_whole() {
    let packed = quantised(&tensor());
    let mut whole = vec![0.0; packed.numbers()];
    packed.decode(0, &mut whole);
    for (first, count) in
        [(0, 64), (1, 64), (63, 2), (64, 128), (100, 7), (130, 300), (19_200, 17), (19_216, 1), (5, 0)]
    {
        let mut part = vec![f32::NAN; count];
        packed.decode(first, &mut part);
        assert_eq!(part, whole[first..first + count], "{first}, {count}");
    }
}

#[test]
fn its_bytes_are_those_of_the_formula() {
    for numbers in [0, 1, 63, 64, 65, 64 * 256, 64 * 256 + 1, 99_999] {
        let values: Vec<f32> = (0..numbers).map(|i| (i % 17) as f32 - 8.0).collect();
        assert_eq!(quantised(&values).bytes() as u64, Nf4::bytes_of(numbers as u64), "{numbers}");
    }
    assert!((Nf4::bytes_of(1 << 20) as f64 * 8.0 / f64::from(1 << 20) - 4.127).abs() < 1e-3);
}

/// The values are the nearest there are: half a gap between codes at most, of the scale as it is stored.
#[test]
fn errors_are_within_half_a_gap() {
    let values = tensor();
    let packed = quantised(&values);
    let mut decoded = vec![0.0; values.len()];
    packed.decode(0, &mut decoded);
    for (block, (values, decoded)) in values.chunks(64).zip(decoded.chunks(64)).enumerate() {
        let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let scale = packed.scale(&SCALE_VALUES, block);
        for (value, decoded) in values.iter().zip(decoded) {
            let most = 0.152 * largest + (scale - largest).abs();
            assert!((value - decoded).abs() <= most + 1e-7, "{value} {decoded} of {largest}");
        }
    }
}
