//! The models that llama.cpp is asked about: each kind of model that a GGUF file can hold, as small as K-quants allow.

use std::path::Path;

use qwen_tune_qwen::export::adapter_config;
use qwen_tune_qwen::gguf::Quant;
use qwen_tune_qwen::{LayerFilter, LoraTargets, Matrices, ModelDir, Switches};
use qwen_tune_weights::peft::{Adapter, LoraPair};
use qwen_tune_weights::{Dtype, TensorInfo};
use serde_json::{Value, json};

use crate::made_model::{self, Numbers};

pub(super) struct Case {
    pub(super) name: &'static str,
    config: Value,
    prefix: &'static str,
    pub(super) quants: &'static [Quant],
}

/// Every type of file.
const EVERY: &[Quant] = &[
    Quant::F32,
    Quant::F16,
    Quant::BF16,
    Quant::Q8_0,
    Quant::Q4_0,
    Quant::Q4_1,
    Quant::Q5_0,
    Quant::Q5_1,
    Quant::Q4_K_S,
    Quant::Q4_K_M,
    Quant::Q5_K_S,
    Quant::Q5_K_M,
    Quant::Q6_K,
    Quant::IQ4_NL,
    Quant::MXFP4_MOE,
];
/// What shows that a model with more senses is written as its language model alone is.
const FEW: &[Quant] = &[Quant::F32, Quant::Q8_0];

/// All of them. Between them they have biases, tied and own heads, and each way of scaling rotary frequencies that a file
/// can say.
pub(super) fn all() -> Vec<Case> {
    let case = |name, fields: &Value| Case { name, config: config(name, fields), prefix: "model.", quants: EVERY };
    let own_head = json!({ "tie_word_embeddings": false });
    let wave = json!({
        "rope_type": "llama3", "rope_theta": 1000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    });
    let yarn = json!({
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64,
    });
    let linear = json!({ "rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5 });
    let nested = |name, class, text| {
        let config = made_model::nest(name, class, &config(text, &own_head));
        Case { name, config, prefix: "model.language_model.", quants: FEW }
    };
    vec![
        case("llama", &json!({ "attention_bias": true, "mlp_bias": true, "rope_parameters": wave })),
        case("mistral", &json!({ "tie_word_embeddings": false, "sliding_window": null, "rope_parameters": linear })),
        case("qwen2", &json!({ "rope_parameters": yarn })),
        case("qwen2_moe", &json!({ "norm_topk_prob": false })),
        case("qwen3", &json!({ "tie_word_embeddings": false, "head_dim": 128 })),
        case("qwen3_moe", &json!({ "head_dim": 32 })),
        case("qwen3_next", &own_head),
        case("qwen3_5_text", &json!({})),
        nested("qwen3_5", "Qwen3_5ForConditionalGeneration", "qwen3_5_text"),
        case("qwen3_5_moe_text", &json!({})),
        nested("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe_text"),
    ]
}

/// Rows of products are multiples of 256, which blocks of K-quants take. Of exactly eight experts llama.cpp would think
/// that they are Mixtral's, and choose other types.
fn config(model_type: &str, fields: &Value) -> Value {
    let mut config = made_model::config(model_type);
    let is_hybrid = config.get("full_attention_interval").is_some();
    let sizes = json!({
        "hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "num_hidden_layers": if is_hybrid { 4 } else { 3 },
    });
    let experts = json!({
        "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 256, "shared_expert_intermediate_size": 256,
    });
    let delta = json!({ "linear_key_head_dim": 64, "linear_value_head_dim": 64 });
    let known: Vec<String> = config.as_object().unwrap().keys().cloned().collect();
    let object = config.as_object_mut().unwrap();
    for (key, value) in [sizes, experts, delta].iter().flat_map(|part| part.as_object().unwrap()) {
        if known.contains(key) {
            object.insert(key.clone(), value.clone());
        }
    }
    object.extend(fields.as_object().unwrap().clone());
    config
}

impl Case {
    /// Its directory, in f32: of numbers that have no more digits than a file's type there would be nothing to round.
    pub(super) fn write(&self, directory: &Path) -> ModelDir {
        made_model::write_as(directory, &self.config, self.prefix, Dtype::F32, bounds);
        ModelDir::open(directory).unwrap_or_else(|e| panic!("{}: {e:?}", self.name))
    }
}

/// Activations of about one throughout, so that no part of a model is too small to be missed.
fn bounds(tensor: &TensorInfo) -> (f32, f32) {
    let around = |centre: f32, width: f32| (centre - width, centre + width);
    match tensor.shape[..] {
        [_] if tensor.name.ends_with("norm.weight") => around(0.5, 0.5),
        [_] => around(0.0, 0.5),
        [.., columns] => around(0.0, spread(columns)),
        [] => unreachable!("no tensor of a model is a scalar"),
    }
}

/// Half the width of evenly spread numbers of which a row of so many adds up to a deviation of 1.5.
fn spread(columns: usize) -> f32 {
    1.5 * (3.0 / columns as f32).sqrt()
}

/// An adapter on everything that takes one, experts and routers included, which changes each module's answers by a few
/// tenths.
pub(super) fn adapter(model: &ModelDir) -> Adapter {
    let is_sparse = model.spec.sparse().is_some();
    let switches = Switches { experts: is_sparse, router: is_sparse };
    let modules = LoraTargets::default().resolve(switches, &model.inventory, &LayerFilter::All).unwrap();
    let (rank, alpha) = (3, 6.0);
    let config = adapter_config(model, model.key_layout, None, rank, alpha, &modules);
    let scaling = config.scaling().unwrap();
    let mut numbers = Numbers::default();
    let mut pair = |module: &String| {
        let tensor = model.inventory.iter().find(|tensor| tensor.module.as_ref() == Some(module)).unwrap();
        let Matrices { count: experts, rows: out_features, columns: in_features } = tensor.matrices().unwrap();
        let path = model.key_layout.path(module);
        let scale = scaling.scale(&path);
        LoraPair {
            a: numbers.draw(experts * rank * in_features, (-spread(in_features), spread(in_features))),
            b: numbers.draw(experts * out_features * rank, (-0.1, 0.1)),
            module: path,
            rank,
            in_features,
            out_features,
            experts,
            scale,
        }
    };
    Adapter { pairs: modules.iter().map(&mut pair).collect(), config, others: Vec::new() }
}
