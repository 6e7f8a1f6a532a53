use std::collections::HashSet;

use super::*;
use crate::gguf::layout::{Layout, Piece};
use crate::gguf::names;
use crate::{DecoderSpec, family};

fn goldens() -> Vec<DecoderSpec> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens");
    let mut found: Vec<_> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    let configs = found.into_iter().filter_map(|path| fs::read(path.join("config.json")).ok());
    configs.map(|text| family::resolve(&serde_json::from_slice(&text).unwrap()).unwrap()).collect()
}

fn specs() -> Vec<DecoderSpec> {
    let made = models().into_iter().map(|config| family::resolve(&config).unwrap());
    goldens().into_iter().chain(made).collect()
}

/// Whether or not a file says all of such a model, its tensors have places.
fn architecture(spec: &DecoderSpec) -> &'static Architecture {
    ARCHITECTURES.iter().find(|found| found.model_types.contains(&spec.model_type.as_str())).unwrap()
}

#[test]
fn every_element_of_every_tensor_has_one_place() {
    let specs = specs();
    assert!(specs.len() > 25, "{}", specs.len());
    for spec in specs {
        let layout = Layout::new(architecture(&spec), &spec);
        let names: HashSet<&str> = layout.pieces.iter().map(|piece| piece.name.as_str()).collect();
        assert_eq!(names.len(), layout.pieces.len());
        for (source, tensor) in layout.inventory.iter().enumerate() {
            let is_copy = |piece: &&Piece| piece.name == names::OUTPUT && tensor.name != "lm_head.weight";
            let pieces: Vec<&Piece> =
                layout.pieces.iter().filter(|piece| piece.source == source).filter(|piece| !is_copy(piece)).collect();
            let mut rows: Vec<usize> = pieces.iter().flat_map(|piece| piece.rows.indices()).collect();
            rows.sort_unstable();
            let count: usize = tensor.shape.iter().product();
            assert_eq!(rows, (0..count / pieces[0].width).collect::<Vec<_>>(), "{} {}", spec.model_type, tensor.name);
            for piece in pieces {
                assert_eq!(piece.shape.iter().product::<usize>(), piece.elements(), "{}", piece.name);
                let mut columns = piece.columns.clone().unwrap_or_else(|| (0..piece.width).collect());
                columns.sort_unstable();
                assert_eq!(columns, (0..piece.width).collect::<Vec<_>>(), "{}", piece.name);
            }
        }
    }
}

#[test]
fn what_is_arranged_is_put_back() {
    for spec in specs() {
        let layout = Layout::new(architecture(&spec), &spec);
        for (source, tensor) in layout.inventory.iter().enumerate() {
            let count: usize = tensor.shape.iter().product();
            let before: Vec<f32> = (0..count).map(|index| (index as f32 * 0.37).sin()).collect();
            let mut after = vec![f32::NAN; count];
            for piece in layout.pieces.iter().filter(|piece| piece.source == source) {
                let rows = piece.rows.indices().flat_map(|row| &before[row * piece.width..][..piece.width]);
                let mut values: Vec<f32> = rows.copied().collect();
                piece.arrange_columns(&mut values);
                piece.numbers.apply(&mut values);
                piece.put_back(values, 0..piece.rows.len(), &mut after);
            }
            for (before, after) in before.iter().zip(&after) {
                assert!((before - after).abs() < 3e-7, "{} {}: {before} {after}", spec.model_type, tensor.name);
            }
        }
    }
}

/// Worked by hand from the shapes: two key heads of 4, three value heads each of 4 channels.
#[test]
fn value_heads_of_linear_attention_are_dealt_out() {
    let config = &models()[6];
    let spec = family::resolve(config).unwrap();
    let layout = Layout::new(architecture(&spec), &spec);
    let heads = [0, 3, 1, 4, 2, 5];
    let channels: Vec<usize> = heads.iter().flat_map(|head| head * 4..head * 4 + 4).collect();
    let piece = |name: &str| layout.pieces.iter().find(|piece| piece.name == name).unwrap();
    let rows = |name: &str| piece(name).rows.indices().collect::<Vec<_>>();
    let behind_keys: Vec<usize> = (0..16).chain(channels.iter().map(|channel| 16 + channel)).collect();
    assert_eq!(rows("blk.0.attn_qkv.weight"), behind_keys);
    assert_eq!(rows("blk.0.ssm_conv1d.weight"), behind_keys);
    assert_eq!(rows("blk.0.attn_gate.weight"), channels);
    for name in ["ssm_alpha.weight", "ssm_beta.weight", "ssm_a", "ssm_dt.bias"] {
        assert_eq!(rows(&format!("blk.0.{name}")), heads, "{name}");
    }
    assert_eq!(piece("blk.0.ssm_out.weight").columns.as_ref().unwrap(), &channels);
    assert_eq!(rows("blk.0.ssm_norm.weight"), [0, 1, 2, 3]);
    assert_eq!(piece("blk.0.ssm_conv1d.weight").shape, [40, 3]);
    assert!(!names::TENSORS.iter().any(|entry| entry.file.contains(&"post_attention_norm.weight")));
    assert_eq!(piece("blk.0.post_attention_norm.weight").shape, [8]);
}

#[test]
fn what_files_cannot_say_is_refused_all_at_once() {
    let mut config = models()[2].clone();
    for (field, value) in [
        ("norm_topk_prob", json!(true)),
        ("mlp_only_layers", json!([1])),
        ("head_dim", json!(6)),
        ("rope_scaling", json!({ "type": "yarn", "factor": 4.0, "beta_fast": 16.0 })),
    ] {
        config[field] = value;
    }
    let faults = Architecture::of(&family::resolve(&config).unwrap()).unwrap_err();
    let what = |what: &str| format!("the model has {what}, which a GGUF file of architecture `qwen2moe` cannot say");
    let expected = [
        "YaRN with a `beta_fast` of 16 and a `beta_slow` of 1",
        "2 heads of 6 channels, which do not make up the hidden size of 8",
        "layers without experts (1)",
        "expert probabilities that are renormalised (`norm_topk_prob`)",
    ];
    assert_eq!(texts(faults), expected.map(what));
    let refused = |index: usize, changes: &[(&str, Value)]| {
        let mut config = models()[index].clone();
        changes.iter().for_each(|(field, value)| config[*field] = value.clone());
        texts(Architecture::of(&family::resolve(&config).unwrap()).unwrap_err()).join("\n")
    };
    assert!(refused(3, &[("attention_bias", json!(true))]).contains("a bias on `o_proj`"));
    assert!(refused(4, &[("norm_topk_prob", json!(false))]).contains("are not renormalised"));
    assert!(
        refused(5, &[("linear_value_head_dim", json!(6))]).contains("key heads of 4 channels and value heads of 6")
    );
    let wave = models()[10]["rope_scaling"].clone();
    assert!(refused(3, &[("rope_scaling", wave)]).contains("`llama3`"));
}
