//! Damaged weight files: an error that names the file, or a sound checkpoint; never a panic, and no more memory than the
//! file warrants.

#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "../../../tests/hostile/damage.rs"]
mod damage;
#[path = "../../../tests/hostile/memory.rs"]
mod memory;

use std::fs;
use std::path::Path;

use damage::Damage;
use proptest::prelude::*;
use qwen_tune_weights::gguf::{GgufFile, GgufTensor, GgufWriter, Metadata, TensorType};
use qwen_tune_weights::peft::{Adapter, AdapterConfig, LoraPair};
use qwen_tune_weights::{Checkpoint, Dtype, Layout, ShardInfo, ShardedWriter, TensorInfo, TensorSink, TensorSource};

/// Far more than any of the files needs (other tests of this binary allocate meanwhile), far less than a length in them can
/// claim.
const LITTLE: usize = 16 << 20;

/// Opens and reads everything. True where it opened.
fn read(path: &Path) -> bool {
    let (opened, grown) = memory::growth(|| match Checkpoint::open(path) {
        Ok(checkpoint) => {
            for info in checkpoint.tensors() {
                assert_eq!(checkpoint.read(&info.name).unwrap().len(), info.bytes());
                let _ = checkpoint.read_f32(&info.name);
            }
            true
        }
        Err(error) => {
            assert!(error.to_string().contains("safetensors"), "{error}");
            false
        }
    });
    assert!(grown < LITTLE, "{grown} bytes");
    opened
}

fn write(directory: &Path, shards: &[&str]) {
    let infos: Vec<TensorInfo> = ["a.weight", "b.weight", "c.weight"]
        .iter()
        .zip([Dtype::F32, Dtype::BF16, Dtype::I64])
        .map(|(name, dtype)| TensorInfo::new(*name, dtype, [2, 3]))
        .collect();
    let mut layout = Layout::single(&infos);
    if shards.len() > 1 {
        let shard = |(n, name): (usize, &&str)| ShardInfo {
            file_name: (*name).to_owned(),
            tensors: infos[n..if n + 1 == shards.len() { infos.len() } else { n + 1 }]
                .iter()
                .map(|info| info.name.clone())
                .collect(),
            metadata: [("format".to_owned(), "pt".to_owned())].into(),
        };
        layout.shards = shards.iter().enumerate().map(shard).collect();
        layout.index = Some(qwen_tune_weights::safetensors::Index {
            file_name: "model.safetensors.index.json".to_owned(),
            metadata: serde_json::Map::new(),
        });
    }
    let mut sink = ShardedWriter::create(directory, layout);
    sink.declare(&infos).unwrap();
    for info in &infos {
        sink.write(&info.name, &vec![7; info.bytes()]).unwrap();
    }
    Box::new(sink).finish().unwrap();
}

/// Damages a file a thousand times over; how many of the damaged files were still sound.
fn damaged(path: &Path, seed: u64, mut look: impl FnMut() -> bool) -> usize {
    let whole = fs::read(path).unwrap();
    let mut damage = Damage::new(seed);
    let sound = (0..1000)
        .filter(|_| {
            fs::write(path, damage.apply(&whole)).unwrap();
            look()
        })
        .count();
    fs::write(path, whole).unwrap();
    assert!(look(), "the whole file is sound");
    sound
}

#[test]
fn a_damaged_safetensors_file_is_an_error_or_holds_other_values() {
    let home = tempfile::tempdir().unwrap();
    write(home.path(), &["model.safetensors"]);
    let path = home.path().join("model.safetensors");
    // A third of the file is values, which may be any.
    let sound = damaged(&path, 11, || read(&path));
    assert!((50..500).contains(&sound), "{sound}");
}

#[test]
fn a_damaged_index_is_an_error_or_says_the_same() {
    let home = tempfile::tempdir().unwrap();
    write(home.path(), &["model-1.safetensors", "model-2.safetensors"]);
    let sound = damaged(&home.path().join("model.safetensors.index.json"), 12, || read(home.path()));
    assert!(sound < 200, "{sound}");
}

#[test]
fn damaged_adapters_are_errors_or_hold_other_values() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("adapter");
    let mut config = AdapterConfig::new(Some("base".into()), 2, 4.0, vec!["q_proj".into()]);
    config.rank_pattern.0.push(("up_proj".into(), 2));
    let pair = LoraPair {
        module: "model.layers.0.self_attn.q_proj".into(),
        a: vec![0.5; 6],
        b: vec![0.25; 8],
        rank: 2,
        in_features: 3,
        out_features: 4,
        experts: 1,
        scale: 2.0,
    };
    Adapter { config, pairs: vec![pair], others: Vec::new() }.write(&directory, Dtype::F32).unwrap();
    let look = || {
        let (read, grown) = memory::growth(|| Adapter::read(&directory));
        assert!(grown < LITTLE, "{grown} bytes");
        match read {
            Ok(adapter) => !adapter.pairs.is_empty(),
            Err(faults) => {
                assert!(!faults.is_empty());
                false
            }
        }
    };
    let sound = damaged(&directory.join("adapter_config.json"), 13, look);
    assert!(sound < 700, "{sound}");
    let sound = damaged(&directory.join("adapter_model.safetensors"), 14, look);
    assert!(sound < 500, "{sound}");
}

/// Opens a GGUF file and reads everything. True where it opened.
fn read_gguf(path: &Path) -> bool {
    let (opened, grown) = memory::growth(|| match GgufFile::open(path) {
        Ok(file) => {
            for tensor in file.tensors() {
                assert_eq!(file.read(&tensor.name).unwrap().len(), tensor.bytes().unwrap());
                let _ = file.read_f32(&tensor.name);
            }
            true
        }
        Err(error) => {
            assert!(error.to_string().contains(".gguf"), "{error}");
            false
        }
    });
    assert!(grown < LITTLE, "{grown} bytes");
    opened
}

fn write_gguf(path: &Path, limit: u64) {
    let mut metadata = Metadata::new();
    metadata.push("general.architecture", "qwen3");
    metadata.push("qwen3.block_count", 2_u32);
    metadata.push("tokenizer.ggml.tokens", ["a", "b", "c"].as_slice());
    metadata.push("tokenizer.ggml.token_type", vec![1_i32, 1, 3]);
    metadata.push("tokenizer.ggml.add_bos_token", false);
    let tensors = [
        GgufTensor::new("token_embd.weight", [3, 32], TensorType::Q8_0),
        GgufTensor::new("output_norm.weight", [8], TensorType::F32),
        GgufTensor::new("blk.0.ffn_down.weight", [1, 256], TensorType::Q4_K),
    ];
    let mut writer = GgufWriter::split(path, &metadata, limit).unwrap();
    writer.declare(&tensors).unwrap();
    for tensor in &tensors {
        writer.write(&tensor.name, &vec![7; tensor.bytes().unwrap()]).unwrap();
    }
    writer.close().unwrap();
}

#[test]
fn a_damaged_gguf_file_is_an_error_or_holds_other_values() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("m.gguf");
    write_gguf(&path, u64::MAX);
    let sound = damaged(&path, 15, || read_gguf(&path));
    assert!((50..700).contains(&sound), "{sound}");
}

#[test]
fn a_damaged_part_of_a_divided_gguf_model_is_an_error_or_holds_other_values() {
    let home = tempfile::tempdir().unwrap();
    write_gguf(&home.path().join("m.gguf"), 1);
    for (part, seed) in [(1, 16), (2, 17)] {
        let path = home.path().join(format!("m-{part:05}-of-00003.gguf"));
        let sound = damaged(&path, seed, || read_gguf(&path));
        assert!((50..700).contains(&sound), "{sound}");
    }
}

/// Numbers that lengths and offsets are wrong by.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..64_u64, Just(u64::MAX), Just(u64::MAX / 2), Just(1 << 32), Just((1 << 63) + 8), any::<u64>()]
}

fn entry() -> impl Strategy<Value = String> {
    let dtype = prop::sample::select(vec!["F32", "BF16", "U8", "F8_E4M3", "F4", "C64", "f32", ""]);
    let name = prop::sample::select(vec!["a", "b", "__metadata__", "", "\\u0000", "a"]);
    (name, dtype, prop::collection::vec(number(), 0..4), number(), number()).prop_map(
        |(name, dtype, shape, from, to)| {
            format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{from},{to}]}}"#)
        },
    )
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// A key of a GGUF file with a value that may not be of the size its type says.
fn key() -> impl Strategy<Value = Vec<u8>> {
    let name = || prop::sample::select(vec!["a", "b", "c.d", "", "split.count", "split.no", "general.alignment"]);
    let scalar = (name(), 0..15_u32, number())
        .prop_map(|(name, ty, value)| [text(name), ty.to_le_bytes().to_vec(), value.to_le_bytes().to_vec()].concat());
    let array = (name(), 0..15_u32, number(), 0..40_usize).prop_map(|(name, ty, count, bytes)| {
        let head = [9_u32.to_le_bytes(), ty.to_le_bytes()].concat();
        [text(name), head, count.to_le_bytes().to_vec(), vec![0; bytes]].concat()
    });
    // A type of eight bytes takes the whole number: such a key is sound.
    let sound = (name(), 10..13_u32, number())
        .prop_map(|(name, ty, value)| [text(name), ty.to_le_bytes().to_vec(), value.to_le_bytes().to_vec()].concat());
    prop_oneof![1 => scalar, 1 => array, 4 => sound]
}

/// A tensor of a GGUF file.
fn tensor() -> impl Strategy<Value = Vec<u8>> {
    let name = prop::sample::select(vec!["a", "b", "c.weight", "d.weight", ""]);
    (name, prop::collection::vec(number(), 0..6), 0..45_u32, number()).prop_map(|(name, extents, ty, offset)| {
        let mut bytes = text(name);
        bytes.extend((extents.len() as u32).to_le_bytes());
        extents.iter().for_each(|extent| bytes.extend(extent.to_le_bytes()));
        bytes.extend(ty.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Headers that are well-formed JSON with wrong numbers: overlapping, out of range, of huge shapes, named twice.
    #[test]
    fn headers_with_wrong_numbers_are_errors(
        entries in prop::collection::vec(entry(), 0..4), data in 0..64_usize, length in prop::option::of(number()), depth in 0..200_usize,
    ) {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("model.safetensors");
        let deep = format!(r#""deep":{}{}"#, "[".repeat(depth), "]".repeat(depth));
        let mut fields = entries;
        if depth > 100 {
            fields.push(deep);
        }
        let json = format!("{{{}}}", fields.join(","));
        let mut bytes = length.unwrap_or(json.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        bytes.resize(bytes.len() + data, 1);
        fs::write(&path, bytes).unwrap();
        read(&path);
    }

    /// Keys and tensors of GGUF in their places, with wrong numbers: counts, lengths, types, shapes, offsets.
    #[test]
    fn gguf_headers_with_wrong_numbers_are_errors(
        keys in prop::collection::vec(key(), 0..4), tensors in prop::collection::vec(tensor(), 0..4),
        wrong in prop::option::weighted(0.2, (number(), number())), data in 0..64_usize,
    ) {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("m.gguf");
        let (of_tensors, of_keys) = wrong.unwrap_or((tensors.len() as u64, keys.len() as u64));
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend([of_tensors.to_le_bytes(), of_keys.to_le_bytes()].concat());
        bytes.extend(keys.concat());
        bytes.extend(tensors.concat());
        bytes.resize(bytes.len() + data, 0);
        fs::write(&path, bytes).unwrap();
        read_gguf(&path);
    }
}
