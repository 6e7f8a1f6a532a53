//! Model directories of any family, made on the spot: weights drawn at random, the tokenizer of the tiny model.

use std::path::Path;

use qwen_tune_qwen::{family, inventory};
use qwen_tune_weights::{Dtype, Metadata, SafetensorsWriter, TensorInfo, TensorSink, encoding};
use serde_json::{Value, json};

/// Five layers of the tiny model's width, each family with its own kinds of parts.
pub fn config(model_type: &str) -> Value {
    let attention = json!({
        "vocab_size": 2048, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 5,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 1024, "tie_word_embeddings": true, "eos_token_id": 2043,
    });
    let delta = json!({
        "full_attention_interval": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "linear_key_head_dim": 32, "linear_value_head_dim": 32,
    });
    let experts = json!({
        "num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 96, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "norm_topk_prob": true,
    });
    let shared = json!({ "shared_expert_intermediate_size": 96 });
    let parts = match model_type {
        "qwen3_moe" => vec![experts],
        "qwen2_moe" => vec![experts, shared],
        "qwen3_5" | "qwen3_5_text" => vec![delta],
        "qwen3_next" | "qwen3_5_moe" | "qwen3_5_moe_text" => vec![delta, experts, shared],
        _ => vec![],
    };
    let mut fields = attention.as_object().unwrap().clone();
    parts.iter().for_each(|part| fields.extend(part.as_object().unwrap().clone()));
    fields.insert("model_type".to_owned(), model_type.into());
    Value::Object(fields)
}

/// The same as the language model of one with more senses.
pub fn nested(model_type: &str, class: &str) -> Value {
    nest(model_type, class, &config(&format!("{model_type}_text")))
}

/// A language model of this configuration, as that of one with more senses.
pub fn nest(model_type: &str, class: &str, text: &Value) -> Value {
    json!({
        "model_type": model_type, "architectures": [class], "tie_word_embeddings": text["tie_word_embeddings"],
        "text_config": text,
    })
}

/// Writes the directory in bfloat16; `prefix` stands before the names of the decoder's tensors.
pub fn write(directory: &Path, config: &Value, prefix: &str) {
    write_as(directory, config, prefix, Dtype::BF16, |_| (-0.05, 0.05));
}

/// The same in another type, the numbers of each tensor drawn between two bounds.
pub fn write_as(
    directory: &Path,
    config: &Value,
    prefix: &str,
    dtype: Dtype,
    bounds: impl Fn(&TensorInfo) -> (f32, f32),
) {
    std::fs::create_dir(directory).unwrap();
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("datasets/tiny-qwen3");
    for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        std::fs::copy(tiny.join(file), directory.join(file)).unwrap();
    }
    std::fs::write(directory.join("config.json"), config.to_string()).unwrap();
    let tensors: Vec<TensorInfo> = inventory(&family::resolve(config).unwrap())
        .into_iter()
        .map(|tensor| {
            // `lm_head` lies beside the decoder.
            let prefix = if tensor.name.starts_with("lm_head") { "" } else { prefix };
            TensorInfo::new(format!("{prefix}{}", tensor.name), dtype, tensor.shape)
        })
        .collect();
    let metadata = Metadata::from([("format".to_owned(), "pt".to_owned())]);
    let mut file = SafetensorsWriter::create(&directory.join("model.safetensors"), metadata).unwrap();
    file.declare(&tensors).unwrap();
    let mut numbers = Numbers::default();
    for info in &tensors {
        let values = numbers.draw(info.elements(), bounds(info));
        file.write(&info.name, &encoding::encode(info, &values).unwrap()).unwrap();
    }
    file.close().unwrap();
}

/// Evenly spread numbers, the same ones every time.
pub struct Numbers(u64);

impl Default for Numbers {
    fn default() -> Self {
        Self(1)
    }
}

impl Numbers {
    pub fn draw(&mut self, count: usize, (low, high): (f32, f32)) -> Vec<f32> {
        let mut next = || {
            self.0 = qwen_tune_model::mix(self.0);
            low + (self.0 >> 40) as f32 / (1_u64 << 24) as f32 * (high - low)
        };
        (0..count).map(|_| next()).collect()
    }
}
