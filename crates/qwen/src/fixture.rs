//! Tiny model directories for tests.

#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

use qwen_tune_weights::{Dtype, Layout, Metadata, ShardInfo, ShardedWriter, TensorInfo, TensorSink, encoding};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{HeadSpec, family, inventory};

/// What a directory should look like.
pub(crate) struct Fixture {
    pub(crate) config: Value,
    pub(crate) dtype: Dtype,
    pub(crate) prefix: &'static str,
    pub(crate) shards: usize,
    /// Tensors besides the model's.
    pub(crate) extra: Vec<TensorInfo>,
    /// Tensors left out.
    pub(crate) without: Vec<&'static str>,
    /// Stores the embedding a second time as `lm_head.weight`.
    pub(crate) head_copy: bool,
}

impl Fixture {
    pub(crate) fn new(model_type: &str) -> Self {
        let config = json!({
            "model_type": model_type, "vocab_size": 24, "hidden_size": 8, "intermediate_size": 12,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
            "rms_norm_eps": 1e-6, "max_position_embeddings": 64, "eos_token_id": 2,
        });
        Self {
            config,
            dtype: Dtype::F32,
            prefix: "model.",
            shards: 1,
            extra: Vec::new(),
            without: Vec::new(),
            head_copy: false,
        }
    }

    pub(crate) fn tied(mut self) -> Self {
        self.config["tie_word_embeddings"] = true.into();
        self
    }

    /// The tensors, in an order that is neither sorted nor that of the inventory.
    pub(crate) fn tensors(&self) -> Vec<TensorInfo> {
        let spec = family::resolve(&self.config).unwrap();
        let mut infos: Vec<TensorInfo> = inventory(&spec)
            .into_iter()
            .map(|tensor| {
                let name = if tensor.name == "lm_head.weight" {
                    tensor.name
                } else {
                    format!("{}{}", self.prefix, tensor.name)
                };
                TensorInfo::new(name, self.dtype, tensor.shape)
            })
            .filter(|info| !self.without.contains(&info.name.as_str()))
            .collect();
        if self.head_copy {
            assert_eq!(spec.head, HeadSpec::Tied);
            infos.push(TensorInfo::new("lm_head.weight", self.dtype, [spec.vocab_size, spec.hidden_size]));
        }
        infos.extend(self.extra.iter().cloned());
        infos.reverse();
        infos
    }

    pub(crate) fn write(&self) -> TempDir {
        let home = tempfile::tempdir().unwrap();
        self.write_into(home.path());
        home
    }

    pub(crate) fn write_into(&self, directory: &Path) {
        let side = [
            ("config.json", self.config.to_string()),
            ("tokenizer.json", "{}".to_owned()),
            ("README.md", "#".to_owned()),
        ];
        for (name, text) in side {
            fs::write(directory.join(name), text).unwrap();
        }
        let infos = self.tensors();
        let layout = layout(&infos, self.shards);
        let mut sink = ShardedWriter::create(directory, layout);
        sink.declare(&infos).unwrap();
        for info in &infos {
            sink.write(&info.name, &stored(info)).unwrap();
        }
        Box::new(sink).finish().unwrap();
    }
}

fn layout(infos: &[TensorInfo], shards: usize) -> Layout {
    let mut layout = Layout::single(infos);
    if shards > 1 {
        let size = infos.len().div_ceil(shards);
        let shard = |(index, infos): (usize, &[TensorInfo])| ShardInfo {
            file_name: format!("model-{:05}-of-{shards:05}.safetensors", index + 1),
            tensors: infos.iter().map(|info| info.name.clone()).collect(),
            metadata: Metadata::from([("format".to_owned(), "pt".to_owned())]),
        };
        layout.shards = infos.chunks(size).enumerate().map(shard).collect();
        layout.index = Some(qwen_tune_weights::safetensors::Index {
            file_name: "model.safetensors.index.json".to_owned(),
            metadata: serde_json::Map::new(),
        });
    }
    layout
}

/// Elements that depend on name and position, in [-1, 1]; the head's are the embedding's, so that it can be a copy.
pub(crate) fn values(info: &TensorInfo) -> Vec<f32> {
    let name = if info.name == "lm_head.weight" { "model.embed_tokens.weight" } else { &info.name };
    let seed = name.bytes().fold(17_u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(byte)));
    noise(seed, info.elements())
}

/// Reproducible numbers in [-1, 1].
pub(crate) fn noise(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (f64::from(state) / f64::from(u32::MAX) * 2.0 - 1.0) as f32
    };
    (0..count).map(|_| next()).collect()
}

/// The stored bytes of [`values`]; other types than floats are zero.
pub(crate) fn stored(info: &TensorInfo) -> Vec<u8> {
    if info.dtype.converts_to_f32() { encoding::encode(info, &values(info)).unwrap() } else { vec![0; info.bytes()] }
}
