#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::*;

/// Inputs, and what ggml makes of them.
#[derive(Deserialize)]
struct Golden {
    cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    input_sha256_le_f32: String,
    types: BTreeMap<String, Block>,
}

#[derive(Deserialize)]
struct Block {
    sha256: String,
    first_block_hex: String,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[test]
fn blocks_are_those_of_ggml() {
    let golden: Golden = serde_json::from_str(include_str!("golden/golden.json")).unwrap();
    let inputs: [(&str, &[u8]); 8] = [
        ("uniform", include_bytes!("golden/uniform.f32")),
        ("gauss", include_bytes!("golden/gauss.f32")),
        ("outlier", include_bytes!("golden/outlier.f32")),
        ("positive", include_bytes!("golden/positive.f32")),
        ("zeros_mixed", include_bytes!("golden/zeros_mixed.f32")),
        ("constant", include_bytes!("golden/constant.f32")),
        ("tiny", include_bytes!("golden/tiny.f32")),
        ("bf16src", include_bytes!("golden/bf16src.f32")),
    ];
    assert_eq!(golden.cases.len(), inputs.len());
    for (name, input) in inputs {
        let case = &golden.cases[name];
        assert_eq!(hex(&Sha256::digest(input)), case.input_sha256_le_f32);
        assert_eq!(case.types.len(), 12);
        for (ty, expected) in &case.types {
            let kind = TensorType::from_name(ty).unwrap();
            let values = floats(input);
            let bytes = encode(kind, &values, 256).unwrap();
            assert_eq!(hex(&bytes[..expected.first_block_hex.len() / 2]), expected.first_block_hex, "{name} {ty}");
            assert_eq!(hex(&Sha256::digest(&bytes)), expected.sha256, "{name} {ty}");
            if REFERENCES.contains(&kind) {
                assert_eq!(reference::encode(kind, &values), bytes, "{name} {ty}");
            }
        }
    }
}

const REFERENCES: [TensorType; 10] = [
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::Q8_0,
    TensorType::Q4_K,
    TensorType::Q5_K,
    TensorType::Q6_K,
    TensorType::IQ4_NL,
    TensorType::MXFP4,
];

/// Numbers that go together in a sub-block: of one size, of any size, few different ones, near one another.
fn family() -> impl Strategy<Value = BoxedStrategy<f32>> {
    let tiny = prop_oneof![Just(f32::MIN_POSITIVE), Just(1e-40_f32), Just(1e-44), Just(1e-15), Just(6e-8)];
    prop_oneof![
        (-30_i32..30).prop_map(|e| (-1.0_f32..1.0).prop_map(move |x| x * 2.0_f32.powi(e)).boxed()),
        Just(any::<f32>().prop_filter("finite", |x| x.is_finite()).boxed()),
        Just((-40_i32..38, -10.0_f32..10.0).prop_map(|(e, x)| x * 10.0_f32.powi(e)).boxed()),
        (-1e3_f32..1e3).prop_map(|x| prop_oneof![Just(x), Just(-x), Just(0.0), Just(-0.0)].boxed()),
        (-1e3_f32..1e3, 0_u32..40).prop_map(|(x, ulps)| {
            (0..=ulps).prop_map(move |n| f32::from_bits(x.to_bits().wrapping_add(n))).boxed()
        }),
        tiny.prop_map(|x| (-8_i32..8).prop_map(move |n| x * n as f32).boxed()),
        Just(prop_oneof![Just(f32::MAX), Just(-f32::MAX), Just(1.0), Just(0.0)].boxed()),
    ]
}

/// A few blocks whose sub-blocks are of different families.
fn blocks() -> impl Strategy<Value = Vec<f32>> {
    let sub = family().prop_flat_map(|numbers| prop::collection::vec(numbers, 32));
    prop::collection::vec(sub, 8 * 3).prop_map(|subs| subs.concat())
}

/// Runs `work` as on each kind of machine up to this one.
fn on_every_machine(mut work: impl FnMut(&str) -> Result<(), TestCaseError>) -> Result<(), TestCaseError> {
    #[cfg(target_arch = "x86_64")]
    for level in multiversion::limit::LEVELS {
        multiversion::limit::set(level);
        work(&format!("{level:?}"))?;
    }
    #[cfg(not(target_arch = "x86_64"))]
    work("")?;
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn encoders_equal_the_reference_on_every_machine(values in blocks()) {
        for ty in REFERENCES {
            let theirs = reference::encode(ty, &values);
            on_every_machine(|machine| {
                let ours = encode(ty, &values, 256).unwrap();
                let mut pairs = ours.chunks(ty.block_bytes()).zip(theirs.chunks(ty.block_bytes()));
                let differs = pairs.position(|(ours, theirs)| ours != theirs);
                prop_assert!(differs.is_none(), "{} {} block {:?}", ty, machine, differs);
                Ok(())
            })?;
        }
    }

    #[test]
    fn every_machine_encodes_and_decodes_alike(values in blocks(), bytes in prop::collection::vec(any::<u8>(), 512..2048)) {
        for ty in TensorType::ALL.iter().copied().filter(|&ty| can_decode(ty)) {
            let bytes = &bytes[..bytes.len() / ty.block_bytes() * ty.block_bytes()];
            let mut seen: Option<(Vec<u32>, Vec<u8>)> = None;
            on_every_machine(|machine| {
                let mut decoded = vec![0.0; bytes.len() / ty.block_bytes() * ty.block()];
                decode(ty, bytes, &mut decoded).unwrap();
                // Which NaN is not said.
                let bits = decoded.iter().map(|x| if x.is_nan() { 0x7fc0_0000 } else { x.to_bits() }).collect();
                let encoded = if can_encode(ty) { encode(ty, &values, 256).unwrap() } else { Vec::new() };
                let now = (bits, encoded);
                prop_assert!(seen.as_ref().is_none_or(|seen| *seen == now), "{} {}", ty, machine);
                seen = Some(now);
                Ok(())
            })?;
        }
    }
}

#[test]
fn pieces_and_odd_numbers_of_blocks_are_all_converted() {
    for ty in REFERENCES {
        for blocks in [0, 1, 2, 3, 257, 2 * PIECE / 256 + 1] {
            let row = blocks * 256;
            let values: Vec<f32> = (0..row).map(|n| ((n * 7919) % 1009) as f32 - 500.0).collect();
            let bytes = encode(ty, &values, row).unwrap();
            assert_eq!(bytes.len(), ty.row_bytes(row).unwrap());
            let last = blocks.saturating_sub(1) * 256;
            assert!(bytes.ends_with(&reference::encode(ty, &values[last..])), "{ty} {blocks}");
            let mut back = vec![0.0; row];
            decode(ty, &bytes, &mut back).unwrap();
            // The coarsest, MXFP4, reaches to 6·64 where the farthest number is 508.
            assert!(back.iter().zip(&values).all(|(a, b)| (a - b).abs() <= 508.0 - 384.0), "{ty} {blocks}");
        }
    }
}

#[test]
fn what_does_not_go_together_is_refused() {
    let fault = |result: Result<Vec<u8>, WeightError>| result.unwrap_err().to_string();
    assert_eq!(
        fault(encode(TensorType::Q4_K, &[0.0; 512], 128)),
        "512 values in rows of 128 and 288 bytes of Q4_K do not go together"
    );
    assert_eq!(
        fault(encode(TensorType::Q8_0, &[0.0; 96], 64)),
        "96 values in rows of 64 and 102 bytes of Q8_0 do not go together"
    );
    assert_eq!(fault(encode(TensorType::Q2_K, &[0.0; 256], 256)), "numbers cannot be stored as Q2_K");
    let refused = decode(TensorType::IQ1_S, &[0; 50], &mut [0.0; 256]).unwrap_err().to_string();
    assert_eq!(refused, "numbers cannot be read from IQ1_S");
    assert!(decode(TensorType::Q8_0, &[0; 34], &mut [0.0; 31]).is_err());
}

#[test]
fn numbers_that_are_none_are_encoded_without_a_panic() {
    for ty in TensorType::ALL.iter().copied().filter(|&ty| can_encode(ty)) {
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let values: Vec<f32> = (0..512).map(|n| if n % 3 == 0 { odd } else { n as f32 }).collect();
            assert_eq!(encode(ty, &values, 256).unwrap().len(), ty.row_bytes(512).unwrap());
            assert_eq!(encode(ty, &[odd; 256], 256).unwrap().len(), ty.row_bytes(256).unwrap());
        }
    }
}
