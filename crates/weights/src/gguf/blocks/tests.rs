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

const REFERENCES: [TensorType; 8] = [
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::Q8_0,
    TensorType::Q4_K,
    TensorType::Q5_K,
    TensorType::Q6_K,
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn fast_encoders_equal_the_reference(values in blocks()) {
        for ty in REFERENCES {
            let (ours, theirs) = (encode(ty, &values, 256).unwrap(), reference::encode(ty, &values));
            let differs = ours.chunks(ty.block_bytes()).zip(theirs.chunks(ty.block_bytes())).position(|(a, b)| a != b);
            prop_assert!(differs.is_none(), "{} block {:?}", ty, differs);
        }
    }
}
