use qwen_tune_weights::gguf::{GgufFile, Metadata, Value as Key};

use super::*;
use crate::family;
use crate::gguf::metadata;

/// One key a line, as `name = value`.
fn keys(config: &Value) -> String {
    let spec = family::resolve(config).unwrap();
    let mut keys = Metadata::new();
    metadata::put(&mut keys, Architecture::of(&spec).unwrap(), &spec, config);
    let shown = |value: &Key| match value {
        Key::U32(value) => value.to_string(),
        Key::F32(value) => format!("{value:?}f"),
        Key::String(text) => format!("{text:?}"),
        Key::Array(array) => format!("{array:?}"),
        other => format!("{other:?}"),
    };
    keys.iter().map(|(key, value)| format!("{key} = {}\n", shown(value))).collect()
}

#[test]
fn a_dense_model_with_yarn() {
    assert_eq!(
        keys(&models()[1]),
        r#"qwen2.block_count = 2
qwen2.context_length = 64
qwen2.embedding_length = 8
qwen2.feed_forward_length = 12
qwen2.attention.head_count = 2
qwen2.attention.head_count_kv = 1
qwen2.attention.key_length = 4
qwen2.attention.value_length = 4
qwen2.attention.layer_norm_rms_epsilon = 1e-6f
qwen2.rope.dimension_count = 4
qwen2.rope.freq_base = 10000.0f
qwen2.rope.scaling.type = "yarn"
qwen2.rope.scaling.factor = 4.0f
qwen2.rope.scaling.original_context_length = 16
"#
    );
    // What a configuration says beside the usual attention factor of 0.1 ln(4) + 1.
    let mut config = models()[1].clone();
    config["rope_scaling"]["attention_factor"] = json!(2.277_258_8);
    let last = keys(&config).lines().last().unwrap().to_owned();
    let factor: f32 =
        last.strip_prefix("qwen2.rope.scaling.attn_factor = ").unwrap().trim_end_matches('f').parse().unwrap();
    assert!((factor - 2.0).abs() < 1e-6, "{factor}");
}

#[test]
fn a_hybrid_with_experts() {
    assert_eq!(
        keys(&models()[7]),
        "qwen35moe.block_count = 4
qwen35moe.context_length = 64
qwen35moe.embedding_length = 8
qwen35moe.feed_forward_length = 12
qwen35moe.attention.head_count = 2
qwen35moe.attention.head_count_kv = 1
qwen35moe.attention.key_length = 8
qwen35moe.attention.value_length = 8
qwen35moe.attention.layer_norm_rms_epsilon = 1e-6f
qwen35moe.rope.dimension_count = 2
qwen35moe.rope.dimension_sections = I32([11, 11, 10, 0])
qwen35moe.rope.freq_base = 10000.0f
qwen35moe.expert_count = 3
qwen35moe.expert_used_count = 2
qwen35moe.expert_feed_forward_length = 6
qwen35moe.expert_shared_feed_forward_length = 10
qwen35moe.ssm.conv_kernel = 3
qwen35moe.ssm.state_size = 4
qwen35moe.ssm.group_count = 2
qwen35moe.ssm.time_step_rank = 6
qwen35moe.ssm.inner_size = 24
qwen35moe.full_attention_interval = 4
qwen35moe.attention.recurrent_layers = Bool([true, true, true, false])
"
    );
    let mut config = models()[7].clone();
    config["rope_parameters"] = json!({ "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1] });
    assert!(keys(&config).contains("qwen35moe.rope.dimension_sections = I32([1, 1, 0, 0])\n"));
    config["layer_types"] = json!(["full_attention", "linear_attention", "linear_attention", "full_attention"]);
    assert!(!keys(&config).contains("full_attention_interval"), "no interval says where these lie");
}

#[test]
fn every_architecture_says_what_it_is_and_how_it_is_stored() {
    for config in models() {
        let (home, model) = stored(&config);
        write(&model, None, home.path(), &options(&[Quant::F32, Quant::Q4_K_M])).unwrap();
        for (quant, file_type) in [(Quant::F32, 0), (Quant::Q4_K_M, 15)] {
            let file = GgufFile::open(&home.path().join(file_name("test", quant))).unwrap();
            let text = |key: &str| file.metadata().get(key).and_then(|value| value.as_str().map(str::to_owned));
            let number = |key: &str| file.metadata().get(key).and_then(Key::as_u64);
            let architecture = text("general.architecture").unwrap();
            assert!(keys(&config).starts_with(&format!("{architecture}.block_count = ")));
            assert_eq!(text("general.type").as_deref(), Some("model"));
            assert_eq!(text("general.name").as_deref(), Some("Test"));
            assert_eq!(text("general.base_model.0.repo_url").as_deref(), Some("https://huggingface.co/Qwen/Base"));
            assert_eq!(number("general.file_type"), Some(file_type));
            assert_eq!(number("general.quantization_version"), Some(2));
        }
    }
}
