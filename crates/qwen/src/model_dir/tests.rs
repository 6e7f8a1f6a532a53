#![allow(clippy::unwrap_used)]

use qwen_tune_weights::{Dtype, TensorInfo};
use serde_json::json;

use super::*;
use crate::{HeadSpec, fixture::Fixture};

fn open(fixture: &Fixture) -> ModelDir {
    let home = fixture.write();
    ModelDir::open(home.path()).unwrap()
}

fn faults(fixture: &Fixture) -> Vec<String> {
    let home = fixture.write();
    let place = home.path().display().to_string();
    ModelDir::open(home.path()).unwrap_err().iter().map(|fault| fault.to_string().replace(&place, "DIR")).collect()
}

fn info(name: &str, shape: &[usize]) -> TensorInfo {
    TensorInfo::new(name, Dtype::F32, shape)
}

#[test]
fn every_family_opens_single_or_sharded() {
    for family in ["qwen2", "qwen3", "llama", "mistral"] {
        for (shards, dtype) in [(1, Dtype::F32), (3, Dtype::BF16), (2, Dtype::F16)] {
            let model = open(&Fixture { shards, dtype, ..Fixture::new(family) });
            assert_eq!(model.checkpoint.shards().len(), shards);
            assert_eq!((model.prefix.as_str(), model.spec.head), ("model.", HeadSpec::Own));
            assert_eq!(model.passengers, Vec::<String>::new());
            let elements: u64 = model.inventory.iter().map(TensorSpec::elements).sum();
            assert_eq!(model.stored_bytes(), elements * dtype.size() as u64);
        }
    }
}

#[test]
fn prefixes_are_found_by_the_embedding() {
    for prefix in ["model.language_model.", "language_model.model.", "model.", ""] {
        let model = open(&Fixture { prefix, ..Fixture::new("qwen3") });
        assert_eq!(model.prefix, prefix);
        let stored = model.tensor_name("layers.1.mlp.up_proj.weight");
        assert_eq!(stored, format!("{prefix}layers.1.mlp.up_proj.weight"));
        assert_eq!(model.tensor(&stored).unwrap().name, "layers.1.mlp.up_proj.weight");
        assert_eq!(model.tensor_name("lm_head.weight"), "lm_head.weight");
        assert_eq!(model.tensor("lm_head.weight").unwrap().name, "lm_head.weight");
        for layout in [KeyLayout::Text, KeyLayout::Multimodal] {
            assert_eq!(model.module_of_peft(&layout.path("layers.1.mlp.up_proj")), Some("layers.1.mlp.up_proj"));
        }
        // A flat configuration is the text class's, whatever its tensors are called.
        assert_eq!((model.key_layout, model.key_layouts), (KeyLayout::Text, &[KeyLayout::Text][..]));
        assert_eq!(model.module_of_peft("model.layers.7.mlp.up_proj"), None);
    }
    assert_eq!(
        faults(&Fixture { prefix: "transformer.", ..Fixture::new("qwen3") }),
        [
            "no `embed_tokens.weight` in the checkpoint: looked for it after `model.language_model.`, `language_model.model.`, `model.`; found `transformer.embed_tokens.weight`"
        ]
    );
    let two = vec![info("embed_tokens.weight", &[24, 8])];
    assert_eq!(
        faults(&Fixture { extra: two, ..Fixture::new("qwen3") }),
        ["the checkpoint holds several embeddings: `model.embed_tokens.weight`, `embed_tokens.weight`"]
    );
}

#[test]
fn rows_are_those_of_the_whole() {
    for dtype in [Dtype::F32, Dtype::BF16] {
        let home = Fixture { dtype, ..Fixture::new("qwen3") }.write();
        let model = ModelDir::open(home.path()).unwrap();
        for tensor in model.inventory.iter().filter(|tensor| tensor.shape == [24, 8]) {
            let whole = model.read_f32(tensor).unwrap();
            let rows = [23, 0, 7, 7];
            let expected: Vec<f32> = rows.iter().flat_map(|&row| whole[row as usize * 8..][..8].to_vec()).collect();
            assert_eq!(model.read_rows_f32(tensor, &rows).unwrap(), expected);
        }
    }
}

#[test]
fn keys_are_those_of_the_directorys_class() {
    use KeyLayout::{Multimodal, Text};
    let flat = |model_type: &str| {
        let mut fixture = Fixture::new(model_type);
        let hybrid = json!({
            "layer_types": ["linear_attention", "full_attention"], "head_dim": 8, "linear_num_key_heads": 1,
            "linear_num_value_heads": 2, "linear_key_head_dim": 4, "linear_value_head_dim": 4,
        });
        fixture.config.as_object_mut().unwrap().extend(hybrid.as_object().unwrap().clone());
        fixture
    };
    let nested = |class: Option<&str>, prefix: &'static str| {
        let config = json!({"model_type": "qwen3_5", "architectures": class.map(|class| vec![class]), "text_config": flat("qwen3_5_text").config});
        Fixture { config, prefix, ..Fixture::new("qwen3_5") }
    };
    let under = "model.language_model.";
    for (fixture, expected) in [
        (nested(Some("Qwen3_5ForConditionalGeneration"), under), Multimodal),
        (nested(Some("Qwen3_5ForConditionalGeneration"), "model."), Multimodal),
        (nested(Some("Qwen3_5ForCausalLM"), under), Text),
        (nested(None, under), Multimodal),
        (nested(None, "model."), Text),
    ] {
        let model = open(&fixture);
        assert_eq!((model.key_layout, model.key_layouts), (expected, &[Text, Multimodal][..]), "{}", fixture.config);
    }
    // What transformers saves of the text class of a multimodal model.
    let model = open(&Fixture { prefix: under, ..flat("qwen3_5_text") });
    assert_eq!((model.prefix.as_str(), model.key_layout, model.key_layouts), (under, Text, &[Text][..]));
    assert_eq!(Text.path("lm_head"), "lm_head");
    assert_eq!(Multimodal.path("lm_head"), "lm_head");
}

#[test]
fn the_checkpoint_decides_about_the_head() {
    let tied = open(&Fixture::new("qwen3").tied());
    assert_eq!((tied.spec.head, tied.head_copy), (HeadSpec::Tied, None));
    let copied = open(&Fixture { head_copy: true, ..Fixture::new("qwen3").tied() });
    assert_eq!((copied.spec.head, copied.head_copy.as_deref()), (HeadSpec::Tied, Some("lm_head.weight")));
    assert_eq!(copied.passengers, ["lm_head.weight"]);
    // Another type, hence other bytes: a head of its own, whatever the configuration says.
    let own = TensorInfo::new("lm_head.weight", Dtype::BF16, [24, 8]);
    let own = open(&Fixture { extra: vec![own], ..Fixture::new("qwen3").tied() });
    assert_eq!((own.spec.head, own.head_copy), (HeadSpec::Own, None));
    assert_eq!(
        faults(&Fixture { without: vec!["lm_head.weight"], ..Fixture::new("qwen3") }),
        ["tensor `lm_head.weight` is missing, and `tie_word_embeddings` is not true in config.json"]
    );
}

#[test]
fn everything_that_differs_is_reported_at_once() {
    let mut fixture = Fixture::new("qwen2");
    fixture.without =
        vec!["model.layers.0.self_attn.q_proj.bias", "model.norm.weight", "model.layers.1.mlp.up_proj.weight"];
    fixture.extra = vec![
        info("model.layers.1.mlp.up_proj.weight", &[8, 12]),
        info("model.layers.1.self_attn.o_proj.bias", &[8]),
        info("model.layers.2.mlp.up_proj.weight", &[12, 8]),
        TensorInfo::new("model.norm.weight", Dtype::I8, [8]),
        info("lm_head.bias", &[24]),
    ];
    assert_eq!(
        faults(&fixture),
        [
            "tensor `model.layers.0.self_attn.q_proj.bias` [16] is missing",
            "tensor `model.layers.1.mlp.up_proj.weight` has shape [8, 12]; config.json calls for [12, 8]",
            "tensor `model.norm.weight` is I8; weights are read as F32, F16, BF16 or F64",
            "tensor `lm_head.bias` [24] is not part of the model that config.json describes",
            "tensor `model.layers.2.mlp.up_proj.weight` [12, 8] is not part of the model that config.json describes",
            "tensor `model.layers.1.self_attn.o_proj.bias` [8] is not part of the model that config.json describes",
        ]
    );
}

#[test]
fn other_parts_are_passengers() {
    let extra = vec![
        info("model.visual.patch_embed.weight", &[2, 2]),
        info("mtp.fc.weight", &[8, 16]),
        TensorInfo::new("model.layers.0.self_attn.rotary_emb.inv_freq", Dtype::F32, [2]),
    ];
    let model = open(&Fixture { extra, ..Fixture::new("llama") });
    assert_eq!(
        model.passengers,
        ["model.layers.0.self_attn.rotary_emb.inv_freq", "mtp.fc.weight", "model.visual.patch_embed.weight"]
    );
}

#[test]
fn passengers_are_counted_by_what_they_are_for() {
    let extra = vec![
        info("model.visual.patch_embed.weight", &[2, 2]),
        info("mtp.fc.weight", &[8, 16]),
        info("mtp.norm.weight", &[8]),
        TensorInfo::new("score.weight", Dtype::F16, [3]),
    ];
    let model = open(&Fixture { extra, head_copy: true, ..Fixture::new("qwen3").tied() });
    let mut groups: Vec<_> =
        model.passenger_groups().iter().map(|g| (g.purpose, g.tensors, g.parameters, g.bytes)).collect();
    groups.sort_unstable();
    assert_eq!(groups, [("head", 1, 192, 768), ("mtp", 2, 136, 544), ("other", 1, 3, 6), ("vision", 1, 4, 16)]);
}

#[test]
fn ids_that_end_a_text_come_from_both_files() {
    let home = Fixture::new("qwen3").write();
    assert_eq!(ModelDir::open(home.path()).unwrap().eos_ids(), [2]);
    std::fs::write(home.path().join("generation_config.json"), json!({"eos_token_id": [7, 2, 9]}).to_string()).unwrap();
    assert_eq!(ModelDir::open(home.path()).unwrap().eos_ids(), [7, 2, 9]);
    std::fs::write(home.path().join("generation_config.json"), "{").unwrap();
    assert!(ModelDir::open(home.path()).unwrap_err()[0].to_string().contains("generation_config.json` is malformed"));
}

#[test]
fn side_files_are_listed() {
    let home = Fixture::new("qwen3").write();
    std::fs::write(home.path().join("chat_template.jinja"), "").unwrap();
    let model = ModelDir::open(home.path()).unwrap();
    assert_eq!(model.side_files().unwrap(), ["chat_template.jinja", "config.json", "tokenizer.json"]);
    assert_eq!(model.tokenizer_files().unwrap(), ["chat_template.jinja", "tokenizer.json"]);
    assert_eq!(model.file("tokenizer.json"), Some(home.path().join("tokenizer.json")));
    assert_eq!(model.file("vocab.json"), None);
}

#[test]
fn what_is_no_model_directory_says_what_to_do() {
    let fault = |path: &Path| ModelDir::open(path).unwrap_err().remove(0).to_string();
    assert_eq!(
        fault(Path::new("Qwen/Qwen3-0.6B")),
        "no model at `Qwen/Qwen3-0.6B`: there is no such directory; to use the hub's `Qwen/Qwen3-0.6B`, download it first: `hf download Qwen/Qwen3-0.6B --local-dir Qwen3-0.6B`"
    );
    assert_eq!(fault(Path::new("/models/none")), "no model at `/models/none`: there is no such directory");
    assert_eq!(fault(Path::new("./models/none")), "no model at `./models/none`: there is no such directory");
    let home = tempfile::tempdir().unwrap();
    let other = home.path().join("model.bin");
    std::fs::write(&other, "").unwrap();
    assert!(fault(&other).ends_with("expected one with `config.json` and safetensors files, or a GGUF file"));
    assert!(fault(home.path()).ends_with("is not a model directory: it has no `config.json`"));
    std::fs::write(home.path().join("config.json"), "{\"model_type\": \"mixtral\"}").unwrap();
    assert!(
        fault(home.path())
            .ends_with("config.json`: `model_type` `mixtral` is not supported: experts of this form are not there yet")
    );
    std::fs::write(home.path().join("config.json"), Fixture::new("qwen3").config.to_string()).unwrap();
    assert!(fault(home.path()).starts_with("no weights in"));
}

#[test]
fn mapped_bytes_are_the_stored_ones_and_only_of_their_type() {
    for (dtype, other) in [(Dtype::F32, Dtype::BF16), (Dtype::BF16, Dtype::F32)] {
        let home = Fixture { dtype, shards: 2, ..Fixture::new("qwen3") }.write();
        let model = ModelDir::open(home.path()).unwrap();
        for tensor in &model.inventory {
            let stored = model.checkpoint.read(&model.tensor_name(&tensor.name)).unwrap();
            assert_eq!(model.mapped(tensor, dtype).unwrap().as_ref(), &stored[..]);
            assert!(model.mapped(tensor, other).is_none());
            assert_eq!(model.read_bf16(tensor).is_some(), dtype == Dtype::BF16);
        }
    }
}

/// Halves of tensors that are whole, and of experts that lie one by one.
#[test]
fn bf16_is_read_as_it_is_stored() {
    let expert = |index: usize, leaf: &str, shape: [usize; 2]| {
        TensorInfo::new(format!("model.layers.0.mlp.experts.{index}.{leaf}.weight"), Dtype::BF16, shape)
    };
    let each = |index| {
        [expert(index, "gate_proj", [4, 8]), expert(index, "up_proj", [4, 8]), expert(index, "down_proj", [8, 4])]
    };
    let mut fixture = Fixture {
        dtype: Dtype::BF16,
        without: vec!["model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj"],
        extra: (0..3).flat_map(each).collect(),
        ..Fixture::new("qwen3_moe")
    };
    let more = json!({
        "num_hidden_layers": 1, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 4,
        "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": [],
    });
    fixture.config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let home = fixture.write();
    let model = ModelDir::open(home.path()).unwrap();
    let mut in_pieces = 0;
    for tensor in &model.inventory {
        let widened: Vec<f32> =
            model.read_bf16(tensor).unwrap().iter().map(|&half| f32::from_bits(u32::from(half) << 16)).collect();
        assert_eq!(widened, model.read_f32(tensor).unwrap(), "{}", tensor.name);
        in_pieces += usize::from(model.mapped(tensor, Dtype::BF16).is_none());
    }
    assert_eq!(in_pieces, 2, "the experts' two tensors");
}

/// Headers may have any length, and some writers do not pad them.
#[test]
fn elements_at_odd_places_are_not_mapped() {
    let home = Fixture::new("qwen3").write();
    let path = home.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    bytes.insert(8 + header as usize, b' ');
    bytes[..8].copy_from_slice(&(header + 1).to_le_bytes());
    let model = |home: &Path| ModelDir::open(home).unwrap();
    let whole: Vec<Vec<f32>> = {
        let model = model(home.path());
        model.inventory.iter().map(|tensor| model.read_f32(tensor).unwrap()).collect()
    };
    fs::remove_file(&path).unwrap();
    fs::write(&path, bytes).unwrap();
    let model = model(home.path());
    for (tensor, whole) in model.inventory.iter().zip(&whole) {
        assert!(model.mapped(tensor, Dtype::F32).is_none());
        assert_eq!(&model.read_f32(tensor).unwrap(), whole);
    }
}
