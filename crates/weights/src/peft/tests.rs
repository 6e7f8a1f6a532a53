#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

use proptest::prelude::*;

use super::*;
use crate::{Dtype, Metadata, SafetensorsWriter, TensorInfo, TensorSink, encoding};

fn pair(module: &str, rank: usize, in_features: usize, out_features: usize, scale: f32) -> LoraPair {
    let values = |count: usize, step: f32| (0..count).map(|index| (index as f32 - 3.0) * step).collect();
    LoraPair {
        module: module.to_owned(),
        a: values(rank * in_features, 0.25),
        b: values(out_features * rank, -0.125),
        rank,
        in_features,
        out_features,
        experts: 1,
        scale,
    }
}

fn adapter() -> Adapter {
    let mut config =
        AdapterConfig::new(Some("base".to_owned()), 4, 8.0, vec!["q_proj".to_owned(), "up_proj".to_owned()]);
    config.rank_pattern = Patterns(vec![("up_proj".to_owned(), 2)]);
    let info = TensorInfo::new("lm_head.weight", Dtype::BF16, [2, 1]);
    Adapter {
        config,
        pairs: vec![
            pair("model.layers.0.self_attn.q_proj", 4, 3, 5, 2.0),
            pair("model.layers.0.mlp.up_proj", 2, 3, 6, 4.0),
            pair("model.layers.1.self_attn.q_proj", 4, 3, 5, 2.0),
        ],
        others: vec![FullTensor { bytes: vec![1, 2, 3, 4], info }],
    }
}

/// Writes tensors of zeros as an adapter's weights, beside this configuration.
fn write_raw(directory: &Path, config: &str, tensors: &[(&str, &[usize])]) {
    fs::write(directory.join(CONFIG_FILE), config).unwrap();
    let plan: Vec<_> = tensors.iter().map(|&(name, shape)| TensorInfo::new(name, Dtype::F32, shape)).collect();
    let mut sink = SafetensorsWriter::create(&directory.join(WEIGHTS_FILE), Metadata::new()).unwrap();
    sink.declare(&plan).unwrap();
    for info in &plan {
        sink.write(&info.name, &vec![0; info.bytes()]).unwrap();
    }
    sink.close().unwrap();
}

fn faults(config: &str, tensors: &[(&str, &[usize])]) -> Vec<String> {
    let home = tempfile::tempdir().unwrap();
    write_raw(home.path(), config, tensors);
    let place = home.path().display().to_string();
    Adapter::read(home.path()).unwrap_err().iter().map(|fault| fault.to_string().replace(&place, "DIR")).collect()
}

const PLAIN: &str = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4}"#;

#[test]
fn an_adapter_survives_a_round_trip() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("adapter");
    adapter().write(&directory, Dtype::F32).unwrap();
    assert_eq!(Adapter::read(&directory).unwrap(), adapter());
    assert!(adapter().write(&directory, Dtype::F32).is_err(), "an adapter was overwritten");
}

#[test]
fn factors_can_be_stored_in_halves() {
    let home = tempfile::tempdir().unwrap();
    adapter().write_into(home.path(), Dtype::BF16).unwrap();
    let read = Adapter::read(home.path()).unwrap();
    let info = TensorInfo::new("a", Dtype::BF16, [4, 3]);
    let rounded = encoding::decode(&info, &encoding::encode(&info, &adapter().pairs[0].a).unwrap()).unwrap();
    assert_eq!(read.pairs[0].a, rounded);
}

#[test]
fn names_are_those_of_peft() {
    let home = tempfile::tempdir().unwrap();
    adapter().write_into(home.path(), Dtype::F32).unwrap();
    let source = crate::Checkpoint::open(&home.path().join(WEIGHTS_FILE)).unwrap();
    let names: Vec<_> = source.shards()[0].tensors.iter().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
            "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight",
            "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight",
            "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight",
            "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight",
            "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight",
            "base_model.model.lm_head.weight",
        ]
    );
    assert_eq!(source.shards()[0].metadata["format"], "pt");
}

#[test]
fn the_older_names_are_read() {
    let home = tempfile::tempdir().unwrap();
    write_raw(
        home.path(),
        PLAIN,
        &[
            ("base_model.model.q_proj.lora_A.default.weight", &[2, 3]),
            ("base_model.model.q_proj.lora_B.default.weight", &[5, 2]),
        ],
    );
    let adapter = Adapter::read(home.path()).unwrap();
    let [pair] = adapter.pairs.as_slice() else { panic!("{:?}", adapter.pairs) };
    assert_eq!(
        (pair.module.as_str(), pair.rank, pair.in_features, pair.out_features, pair.scale),
        ("q_proj", 2, 3, 5, 2.0)
    );
}

#[test]
fn every_faulty_tensor_is_reported() {
    assert_eq!(
        faults(
            PLAIN,
            &[
                ("base_model.model.a.lora_A.weight", &[2, 3]),
                ("base_model.model.b.lora_B.weight", &[3, 2]),
                ("base_model.model.c.lora_A.weight", &[4, 3]),
                ("base_model.model.c.lora_B.weight", &[3, 4]),
                ("base_model.model.d.lora_A.weight", &[2, 3, 1]),
                ("base_model.model.d.lora_B.weight", &[3, 2]),
                ("base_model.model.e.lora_magnitude_vector", &[3]),
                ("model.f.lora_A.weight", &[2, 3]),
                ("base_model.model.g.lora_A.weight", &[2, 3]),
                ("base_model.model.g.lora_A.default.weight", &[2, 3]),
                ("base_model.model.g.lora_B.weight", &[3, 2]),
            ]
        ),
        [
            "tensor `base_model.model.e.lora_magnitude_vector` of `DIR/adapter_model.safetensors` is not supported: DoRA is not there yet",
            "tensor `model.f.lora_A.weight` of `DIR/adapter_model.safetensors` is not supported: PEFT's names begin with `base_model.model.`",
            "tensor `base_model.model.g.lora_A.weight` occurs twice: in `base_model.model.g.lora_A.weight` and in `base_model.model.g.lora_A.default.weight`",
            "module `a` has `lora_A` and no `lora_B`",
            "module `b` has `lora_B` and no `lora_A`",
            "module `c`: `adapter_config.json` gives rank 2, `lora_A` has 4 rows and `lora_B` 4 columns",
            "tensor `base_model.model.d.lora_A.weight` has shape [2, 3, 1]; expected [r, in]",
        ]
    );
    assert_eq!(
        faults(PLAIN, &[("base_model.model.lm_head.weight", &[2, 2])]),
        ["`DIR/adapter_model.safetensors` adapts nothing: it holds no `lora_A` and `lora_B` tensors"]
    );
}

#[test]
fn what_is_no_adapter_says_what_is_missing() {
    let home = tempfile::tempdir().unwrap();
    let fault = || Adapter::read(home.path()).unwrap_err().remove(0).to_string();
    assert!(fault().ends_with("is not an adapter directory: it has no `adapter_config.json`"));
    fs::write(home.path().join(CONFIG_FILE), PLAIN).unwrap();
    fs::write(home.path().join("adapter_model.bin"), "").unwrap();
    assert!(fault().contains("it has no `adapter_model.safetensors`; `adapter_model.bin` is a PyTorch pickle"));
    fs::write(home.path().join(WEIGHTS_FILE), "short").unwrap();
    assert!(fault().contains("adapter_model.safetensors` is 5 bytes long"));
}

#[test]
fn pairs_that_readers_would_scale_otherwise_are_not_written() {
    let home = tempfile::tempdir().unwrap();
    let mut wrong = adapter();
    wrong.pairs[1].scale = 2.0;
    let text = wrong.write_into(home.path(), Dtype::F32).unwrap_err().to_string();
    assert_eq!(text, "module `model.layers.0.mlp.up_proj` was trained with scale 2, but its configuration gives 4");
    let mut wrong = adapter();
    wrong.config.rank_pattern = Patterns::default();
    assert!(matches!(wrong.write_into(home.path(), Dtype::F32), Err(AdapterError::WrongRank { .. })));
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
}

proptest! {
    // Each case syncs files to the disk.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_shapes_and_scales_survive(
        shapes in prop::collection::vec((1..5_usize, 1..6_usize, 1..6_usize, 1..9_u32), 1..5),
        rslora in any::<bool>(),
    ) {
        let home = tempfile::tempdir().unwrap();
        let mut config = AdapterConfig::new(None, 8, 16.0, Vec::new());
        config.use_rslora = rslora;
        config.rank_pattern = Patterns(shapes.iter().enumerate().map(|(index, shape)| (format!("m{index}"), shape.0)).collect());
        config.alpha_pattern =
            Patterns(shapes.iter().enumerate().map(|(index, shape)| (format!("m{index}"), f64::from(shape.3) / 2.0)).collect());
        let scaling = config.scaling().unwrap();
        let pairs = shapes
            .iter()
            .enumerate()
            .map(|(index, &(rank, input, output, _))| {
                let module = format!("layers.m{index}");
                let scale = scaling.scale(&module);
                pair(&module, rank, input, output, scale)
            })
            .collect();
        let adapter = Adapter { config, pairs, others: Vec::new() };
        adapter.write_into(home.path(), Dtype::F32).unwrap();
        prop_assert_eq!(Adapter::read(home.path()).unwrap(), adapter);
    }
}
