//! Damaged configurations: a specification that fits the weights, or faults; never a panic, and a count of layers is not
//! believed before the weights are seen.

#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "../../../tests/hostile/damage.rs"]
mod damage;
#[path = "../../../tests/hostile/memory.rs"]
mod memory;

use std::{
    fs,
    path::{Path, PathBuf},
};

use damage::Damage;
use proptest::prelude::*;
use qwen_tune_qwen::gguf::{self, About, GgufModel, Quant, WriteOptions};
use qwen_tune_qwen::{ModelDir, family, inventory};
use qwen_tune_weights::{Dtype, Layout, ShardedWriter, TensorInfo, TensorSink, TensorSource};
use serde_json::{Value, json};

fn config() -> Value {
    json!({
        "model_type": "qwen3", "vocab_size": 24, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64, "max_window_layers": 28, "sliding_window": 32, "use_sliding_window": false,
        "rope_theta": 10000.0, "tie_word_embeddings": true, "attention_bias": false, "hidden_act": "silu",
        "layer_types": ["full_attention", "full_attention"],
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        "eos_token_id": [2, 3], "torch_dtype": "bfloat16",
    })
}

/// A directory with the weights that the configuration calls for.
fn model_dir() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("config.json"), config().to_string()).unwrap();
    let infos: Vec<TensorInfo> = inventory(&family::resolve(&config()).unwrap())
        .into_iter()
        .map(|tensor| TensorInfo::new(format!("model.{}", tensor.name), Dtype::BF16, tensor.shape))
        .collect();
    let mut sink = ShardedWriter::create(home.path(), Layout::single(&infos));
    sink.declare(&infos).unwrap();
    for info in &infos {
        sink.write(&info.name, &vec![0x3c; info.bytes()]).unwrap();
    }
    Box::new(sink).finish().unwrap();
    home
}

#[test]
fn damaged_configurations_are_faults_or_still_fit_the_weights() {
    let home = model_dir();
    let mut sound = 0;
    for (name, seed, text) in [
        ("config.json", 21, config().to_string()),
        ("generation_config.json", 22, json!({"eos_token_id": [2, 3], "temperature": 0.7, "top_k": 20}).to_string()),
    ] {
        let path = home.path().join(name);
        let mut damage = Damage::new(seed);
        for _ in 0..1000 {
            fs::write(&path, damage.apply(text.as_bytes())).unwrap();
            let (opened, grown) = memory::growth(|| ModelDir::open(home.path()));
            // Four thousand layers are allowed, and each of their tensors that is not there is a fault.
            assert!(grown < 32 << 20, "{grown} bytes: {}", fs::read_to_string(&path).unwrap_or_default());
            match opened {
                Ok(model) => {
                    sound += 1;
                    let _ = (model.eos_ids(), model.tokenizer_files(), family::warnings(&model.config));
                }
                Err(faults) => assert!(faults.iter().all(|fault| !fault.to_string().is_empty())),
            }
        }
        fs::write(&path, text).unwrap();
        assert!(ModelDir::open(home.path()).is_ok());
    }
    assert!((50..1200).contains(&sound), "{sound}");
}

#[test]
fn damaged_weights_are_faults_or_other_values() {
    let home = model_dir();
    let path = home.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    let mut damage = Damage::new(23);
    let sound = (0..1000).filter(|_| {
        fs::write(&path, damage.apply(&whole)).unwrap();
        let (opened, grown) = memory::growth(|| ModelDir::open(home.path()));
        assert!(grown < 32 << 20, "{grown} bytes");
        opened.is_ok()
    });
    let sound = sound.count();
    assert!((50..700).contains(&sound), "{sound}");
}

/// A GGUF file of the same model, with a tokenizer of four tokens.
fn gguf_file(home: &Path) -> PathBuf {
    let pattern = concat!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    );
    let tokenizer = json!({
        "added_tokens": [{ "id": 3, "content": "<|im_end|>", "special": true }],
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false },
            { "type": "ByteLevel", "add_prefix_space": false, "use_regex": false },
        ] },
        "model": { "type": "BPE", "vocab": { "a": 0, "b": 1, "ab": 2 }, "merges": ["a b"] },
    });
    fs::write(home.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let model = ModelDir::open(home).unwrap();
    let options = WriteOptions {
        name: "m".to_owned(),
        quants: vec![Quant::Q8_0],
        about: About::default(),
        shard_bytes: u64::MAX,
    };
    let report = gguf::write(&model, None, home, &options).unwrap();
    report.models[0].files[0].clone()
}

#[test]
fn damaged_gguf_files_are_faults_or_other_values() {
    let home = model_dir();
    let path = gguf_file(home.path());
    let whole = fs::read(&path).unwrap();
    let mut damage = Damage::new(24);
    let sound = (0..2000).filter(|_| {
        fs::write(&path, damage.apply(&whole)).unwrap();
        let (opened, grown) = memory::growth(|| GgufModel::open(&path));
        assert!(grown < 32 << 20, "{grown} bytes");
        match opened {
            Ok(model) => {
                let _ = model.tokenizer().is_ok();
                model.tensors().iter().for_each(|tensor| drop(model.read_f32(&tensor.name)));
                true
            }
            Err(faults) => {
                assert!(!faults.is_empty() && faults.iter().all(|fault| !fault.to_string().is_empty()));
                false
            }
        }
    });
    let sound = sound.count();
    assert!((50..1800).contains(&sound), "{sound}");
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0..5000_u64).prop_map(Value::from),
        Just(Value::from(u64::MAX)),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(vec!["yarn", "llama3", "linear", "silu", "full_attention", "sliding_attention", ""])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(
                prop::sample::select(vec!["rope_type", "type", "factor", "beta_fast", "low_freq_factor", "mscale"]),
                inner,
                0..4
            )
            .prop_map(|fields| fields
                .into_iter()
                .map(|(k, v)| (k.to_owned(), v))
                .collect::<serde_json::Map<_, _>>()
                .into()),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Every field may be anything.
    #[test]
    fn any_value_of_any_field_gives_a_specification_or_faults(
        model_type in prop::sample::select(vec!["qwen2", "qwen3", "llama", "mistral", "qwen3_moe", "gpt2"]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), value()), 1..4),
    ) {
        let mut config = config();
        config["model_type"] = model_type.into();
        for (index, value) in changes {
            let fields = config.as_object_mut().unwrap();
            let name = fields.keys().nth(index.index(fields.len())).unwrap().clone();
            fields.insert(name, value);
        }
        let (spec, grown) = memory::growth(|| family::resolve(&config).map(|spec| inventory(&spec).len()));
        prop_assert!(grown < 64 << 20, "{} bytes", grown);
        if let Ok(tensors) = spec {
            prop_assert!(tensors > 0);
        }
    }
}
