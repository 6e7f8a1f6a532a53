#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

use std::{fs, path::Path};

use proptest::prelude::*;
use qwen_tune_weights::{
    Dtype, MemorySource, TensorInfo, TensorSource, encoding,
    peft::{Adapter, FullTensor, LoraPair, TargetModules},
};

use super::*;
use crate::{
    KeyLayout, LayerFilter, LoraTargets, ModelDir, Switches,
    fixture::{Fixture, noise, stored, values},
};

fn pair(model: &ModelDir, module: &str, rank: usize, scale: f32) -> LoraPair {
    let weight = format!("{module}.weight");
    let shape = &model.inventory.iter().find(|tensor| tensor.name == weight).unwrap().shape;
    let (out_features, in_features) = (shape[0], shape[1]);
    LoraPair {
        module: model.key_layout.path(module),
        a: noise(rank as u32 * 3 + 1, rank * in_features),
        b: noise(rank as u32 * 5 + 2, out_features * rank),
        rank,
        in_features,
        out_features,
        experts: 1,
        scale,
    }
}

fn adapter(model: &ModelDir, modules: &[String], rank: usize) -> Adapter {
    let config = adapter_config(model, model.key_layout, Some("base".to_owned()), rank, 2.0 * rank as f64, modules);
    let pairs = modules.iter().map(|module| pair(model, module, rank, 2.0)).collect();
    Adapter { config, pairs, others: Vec::new() }
}

fn all_linear(model: &ModelDir) -> Vec<String> {
    LoraTargets::default().resolve(Switches::default(), &model.inventory, &LayerFilter::All).unwrap()
}

/// `W + s·B·A` in f64.
fn naive(base: &[f32], pair: &LoraPair) -> Vec<f64> {
    let element = |index: usize| {
        let (row, column) = (index / pair.in_features, index % pair.in_features);
        let terms = (0..pair.rank).map(|rank| {
            f64::from(pair.b[row * pair.rank + rank]) * f64::from(pair.a[rank * pair.in_features + column])
        });
        f64::from(base[index]) + f64::from(pair.scale) * terms.sum::<f64>()
    };
    (0..base.len()).map(element).collect()
}

fn file_names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn texts(faults: Vec<ExportError>) -> Vec<String> {
    faults.iter().map(ToString::to_string).collect()
}

#[test]
fn merged_weights_are_the_naive_product_rounded_once() {
    for (dtype, shards) in [(Dtype::F32, 1), (Dtype::BF16, 3), (Dtype::F16, 2)] {
        let home = Fixture { dtype, shards, ..Fixture::new("qwen2") }.write();
        let out = tempfile::tempdir().unwrap();
        let model = ModelDir::open(home.path()).unwrap();
        let adapter = adapter(&model, &all_linear(&model), 5);
        let merged = merge(&model, Change::Adapter(&adapter), &out.path().join("merged")).unwrap();
        assert_eq!(merged.changed, 14);

        let result = ModelDir::open(&merged.path).unwrap();
        assert_eq!(result.checkpoint.layout().shards, model.checkpoint.layout().shards);
        for info in model.checkpoint.tensors() {
            let found = result.checkpoint.read_f32(&info.name).unwrap();
            let base = model.checkpoint.read_f32(&info.name).unwrap();
            let Some(pair) = adapter.pairs.iter().find(|pair| format!("{}.weight", pair.module) == info.name) else {
                assert_eq!(result.checkpoint.read(&info.name).unwrap(), model.checkpoint.read(&info.name).unwrap());
                continue;
            };
            for (index, (found, exact)) in found.iter().zip(naive(&base, pair)).enumerate() {
                // Half of the last place of the stored type, and a little for the sum in f32.
                let places = match dtype {
                    Dtype::BF16 => 8,
                    Dtype::F16 => 11,
                    _ => 22,
                };
                let allowed = exact.abs().max(1.0 / 1024.0) / 2f64.powi(places) + 2e-6;
                assert!((f64::from(*found) - exact).abs() <= allowed, "{} [{index}]: {found} for {exact}", info.name);
            }
        }
    }
}

proptest! {
    // Each case syncs files to the disk.
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Widths around the block and tile sizes, ranks that are no multiple of the unrolling.
    #[test]
    fn any_width_and_rank_is_merged_exactly_once(
        hidden in prop::sample::select(vec![2_usize, 1022, 1024, 1030]),
        inner in 1..40_usize,
        rank in 1..10_usize,
    ) {
        let mut fixture = Fixture::new("llama");
        for (field, value) in [("hidden_size", hidden), ("intermediate_size", inner), ("num_hidden_layers", 1), ("vocab_size", 2)] {
            fixture.config[field] = value.into();
        }
        let home = fixture.write();
        let out = tempfile::tempdir().unwrap();
        let model = ModelDir::open(home.path()).unwrap();
        let adapter = adapter(&model, &["layers.0.mlp.gate_proj".to_owned(), "layers.0.mlp.down_proj".to_owned()], rank);
        let merged = merge(&model, Change::Adapter(&adapter), &out.path().join("merged")).unwrap();
        let result = ModelDir::open(&merged.path).unwrap();
        for pair in &adapter.pairs {
            let name = format!("{}.weight", pair.module);
            let base = model.checkpoint.read_f32(&name).unwrap();
            for (found, exact) in result.checkpoint.read_f32(&name).unwrap().iter().zip(naive(&base, pair)) {
                prop_assert!((f64::from(*found) - exact).abs() < 1e-5, "{} for {}", found, exact);
            }
        }
    }
}

#[test]
fn an_adapter_of_zeros_leaves_every_byte_as_it_was() {
    let extra =
        vec![TensorInfo::new("mtp.fc.weight", Dtype::U8, [3]), TensorInfo::new("model.visual.x", Dtype::BF16, [2, 2])];
    let home = Fixture { dtype: Dtype::BF16, shards: 2, extra, ..Fixture::new("qwen3") }.write();
    fs::write(home.path().join("merges.txt"), "a b\r\n").unwrap();
    fs::write(home.path().join("LICENSE"), "free").unwrap();
    let out = tempfile::tempdir().unwrap();
    let model = ModelDir::open(home.path()).unwrap();
    let mut adapter = adapter(&model, &all_linear(&model), 2);
    adapter.pairs.iter_mut().for_each(|pair| pair.b.fill(0.0));
    let merged = merge(&model, Change::Adapter(&adapter), &out.path().join("merged")).unwrap();
    assert_eq!(merged.copied, ["LICENSE", "config.json", "merges.txt", "tokenizer.json"]);
    let expected: Vec<_> = file_names(home.path()).into_iter().filter(|name| name != "README.md").collect();
    assert_eq!(file_names(&merged.path), expected);
    for name in expected.iter().filter(|name| *name != "model.safetensors.index.json") {
        assert_eq!(fs::read(home.path().join(name)).unwrap(), fs::read(merged.path.join(name)).unwrap(), "{name}");
    }
    assert!(merged.written.files.iter().all(|file| file.starts_with(&merged.path) && file.is_file()));
}

#[test]
fn whole_tensors_replace_those_of_the_base() {
    let home = Fixture { dtype: Dtype::BF16, ..Fixture::new("qwen3") }.write();
    let out = tempfile::tempdir().unwrap();
    let model = ModelDir::open(home.path()).unwrap();
    let norm: Vec<f32> = (0..8).map(|index| index as f32 / 3.0).collect();
    let head = noise(5, 24 * 8);
    // One by the inventory's name, one by the checkpoint's.
    let trained = MemorySource::from_f32([
        ("norm.weight".to_owned(), vec![8], norm.clone()),
        ("lm_head.weight".to_owned(), vec![24, 8], head),
        ("model.layers.1.self_attn.q_norm.weight".to_owned(), vec![4], vec![1.5; 4]),
    ])
    .unwrap();
    let merged = merge(&model, Change::Full(&trained), &out.path().join("merged")).unwrap();
    assert_eq!(merged.changed, 3);
    let result = ModelDir::open(&merged.path).unwrap();
    let info = TensorInfo::new("model.norm.weight", Dtype::BF16, [8]);
    assert_eq!(*result.checkpoint.read("model.norm.weight").unwrap(), encoding::encode(&info, &norm).unwrap());
    assert_eq!(result.checkpoint.read_f32("model.layers.1.self_attn.q_norm.weight").unwrap(), [1.5; 4]);
    assert_eq!(
        result.checkpoint.read("model.embed_tokens.weight").unwrap(),
        model.checkpoint.read("model.embed_tokens.weight").unwrap()
    );
}

#[test]
fn a_copied_head_follows_the_embedding() {
    let home = Fixture { head_copy: true, ..Fixture::new("qwen3").tied() }.write();
    let out = tempfile::tempdir().unwrap();
    let model = ModelDir::open(home.path()).unwrap();
    let embedding = noise(9, 24 * 8);
    let trained = MemorySource::from_f32([("embed_tokens.weight".to_owned(), vec![24, 8], embedding.clone())]).unwrap();
    let merged = merge(&model, Change::Full(&trained), &out.path().join("merged")).unwrap();
    let result = ModelDir::open(&merged.path).unwrap();
    assert_eq!(result.checkpoint.read_f32("lm_head.weight").unwrap(), embedding);
    assert_eq!(result.checkpoint.read_f32("model.embed_tokens.weight").unwrap(), embedding);
}

#[test]
fn an_adapters_whole_tensors_are_merged_too() {
    let home = Fixture::new("qwen3").write();
    let out = tempfile::tempdir().unwrap();
    let model = ModelDir::open(home.path()).unwrap();
    let mut adapter = adapter(&model, &["layers.0.mlp.up_proj".to_owned()], 2);
    let info = TensorInfo::new("lm_head.weight", Dtype::F32, [24, 8]);
    let bytes = encoding::encode(&info, &[0.25; 24 * 8]).unwrap();
    adapter.others.push(FullTensor { info, bytes });
    let merged = merge(&model, Change::Adapter(&adapter), &out.path().join("merged")).unwrap();
    assert_eq!(merged.changed, 2);
    let result = ModelDir::open(&merged.path).unwrap();
    assert_eq!(result.checkpoint.read_f32("lm_head.weight").unwrap(), [0.25; 24 * 8]);
}

#[test]
fn adapters_of_either_class_merge_into_either_prefix_and_are_written_for_either_class() {
    let out = tempfile::tempdir().unwrap();
    let up = "layers.0.mlp.up_proj";
    for (index, prefix) in ["model.", "model.language_model.", ""].into_iter().enumerate() {
        let home = Fixture { prefix, ..Fixture::new("qwen3") }.write();
        let model = ModelDir::open(home.path()).unwrap();
        for (other, layout) in [KeyLayout::Text, KeyLayout::Multimodal].into_iter().enumerate() {
            let mut adapter = adapter(&model, &[up.to_owned()], 2);
            adapter.pairs[0].module = layout.path(up);
            adapter.config.target_modules = Some(TargetModules::List(vec![layout.path(up), "k_proj".to_owned()]));
            adapter.config.rank_pattern.0.push((layout.path(up), 2));
            merge(&model, Change::Adapter(&adapter), &out.path().join(format!("{index}-{other}"))).unwrap();
            for to in [KeyLayout::Text, KeyLayout::Multimodal] {
                let saved = out.path().join(format!("adapter-{index}-{other}-{}", to.name()));
                save_adapter(&model, to, &adapter, &saved, Dtype::F32).unwrap();
                let Adapter { config, pairs, .. } = Adapter::read(&saved).unwrap();
                assert_eq!(pairs[0].module, to.path(up));
                assert_eq!(config.rank_pattern.0, [(to.path(up), 2)]);
                assert_eq!(config.target_modules, Some(TargetModules::List(vec![to.path(up), "k_proj".to_owned()])));
            }
        }
    }
}

#[test]
fn an_expression_over_paths_of_another_class_becomes_a_list() {
    let home = Fixture::new("qwen3").write();
    let model = ModelDir::open(home.path()).unwrap();
    let mut adapter = adapter(&model, &["layers.0.mlp.up_proj".to_owned()], 2);
    let expression = r"model\.language_model\..*up_proj".to_owned();
    adapter.config.target_modules = Some(TargetModules::Pattern(expression));
    let fitted = fit_adapter(&model, KeyLayout::Text, &adapter).unwrap();
    let list = TargetModules::List(vec!["model.layers.0.mlp.up_proj".to_owned()]);
    assert_eq!(fitted.config.target_modules, Some(list));
}

#[test]
fn everything_that_does_not_fit_is_reported_before_anything_is_written() {
    let home = Fixture::new("qwen3").tied().write();
    let out = tempfile::tempdir().unwrap();
    let model = ModelDir::open(home.path()).unwrap();
    let mut wrong = adapter(&model, &vec!["layers.0.mlp.up_proj".to_owned(); 4], 2);
    wrong.pairs[0].module = "model.layers.9.mlp.up_proj".to_owned();
    wrong.pairs[1].module = "lm_head".to_owned();
    wrong.pairs[2].module = "model.layers.0.mlp.down_proj".to_owned();
    wrong.pairs[3].a.pop();
    let target = out.path().join("merged");
    assert_eq!(
        texts(merge(&model, Change::Adapter(&wrong), &target).unwrap_err()),
        [
            "the adapter has module `model.layers.9.mlp.up_proj`, which this base does not have; it has `layers.0.mlp.up_proj`, `layers.1.mlp.up_proj`, `layers.0.mlp.gate_proj`",
            "the adapter has module `lm_head`, which this base does not have",
            "the adapter of `model.layers.0.mlp.down_proj` is [12, 8] (out, in); the base has [8, 12]",
            "the adapter of `model.layers.0.mlp.up_proj` holds 15 and 24 numbers; its shapes take 16 and 24",
        ]
    );
    let trained = MemorySource::from_f32([
        ("norms.weight".to_owned(), vec![8], vec![0.0; 8]),
        ("norm.weight".to_owned(), vec![2, 4], vec![0.0; 8]),
        ("model.layers.0.mlp.up_proj.weight".to_owned(), vec![12, 8], vec![0.0; 96]),
        ("layers.0.mlp.up_proj.weight".to_owned(), vec![12, 8], vec![0.0; 96]),
    ])
    .unwrap();
    assert_eq!(
        texts(merge(&model, Change::Full(&trained), &target).unwrap_err()),
        [
            "tensor `norms.weight` was trained, but this base does not have it; it has `norm.weight`",
            "tensor `norm.weight` was trained as [2, 4]; the base has [8]",
            "tensor `model.layers.0.mlp.up_proj.weight` would be changed twice",
        ]
    );
    assert_eq!(file_names(out.path()), Vec::<String>::new());
}

#[test]
fn an_existing_model_is_not_overwritten() {
    let home = Fixture::new("qwen3").write();
    let model = ModelDir::open(home.path()).unwrap();
    let adapter = adapter(&model, &["layers.0.mlp.up_proj".to_owned()], 2);
    let faults = texts(merge(&model, Change::Adapter(&adapter), home.path()).unwrap_err());
    assert_eq!(faults, [format!("`{}` exists already", home.path().display())]);
}

#[test]
fn targets_are_leaves_where_those_say_it_all() {
    let home = Fixture::new("qwen3").write();
    let model = ModelDir::open(home.path()).unwrap();
    let targets =
        |modules: &[String]| match adapter_config(&model, model.key_layout, None, 4, 8.0, modules).target_modules {
            Some(TargetModules::List(list)) => list,
            other => panic!("{other:?}"),
        };
    assert_eq!(
        targets(&all_linear(&model)),
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    );
    let some = ["layers.0.self_attn.q_proj", "layers.0.mlp.up_proj", "layers.1.mlp.up_proj"].map(str::to_owned);
    assert_eq!(targets(&some), ["model.layers.0.self_attn.q_proj", "up_proj"]);
}

#[test]
fn fixtures_store_what_they_say() {
    let home = Fixture::new("qwen3").write();
    let model = ModelDir::open(home.path()).unwrap();
    let info = model.checkpoint.info("model.norm.weight").unwrap();
    assert_eq!(model.checkpoint.read_f32(&info.name).unwrap(), values(info));
    assert_eq!(*model.checkpoint.read(&info.name).unwrap(), stored(info));
}

fn whole(name: &str, values: &[f32]) -> FullTensor {
    let info = TensorInfo::new(name, Dtype::F32, [24, 8]);
    FullTensor { bytes: encoding::encode(&info, values).unwrap(), info }
}

/// PEFT has two modules where the base has one tensor.
#[test]
fn a_tied_head_is_saved_twice_and_merged_once() {
    let home = Fixture::new("qwen3").tied().write();
    let out = tempfile::tempdir().unwrap();
    let model = ModelDir::open(home.path()).unwrap();
    let embedding = model.inventory.iter().find(|tensor| tensor.name == "embed_tokens.weight").unwrap();
    let names = saved_names(&model, KeyLayout::Text, embedding);
    assert_eq!(names, ["model.embed_tokens.weight", "lm_head.weight"]);
    assert_eq!(modules_to_save(&model, KeyLayout::Text, [embedding]), ["embed_tokens", "lm_head"]);

    let mut adapter = adapter(&model, &["layers.0.mlp.up_proj".to_owned()], 2);
    let values = noise(9, 24 * 8);
    adapter.others = names.iter().map(|name| whole(name, &values)).collect();
    let merged = merge(&model, Change::Adapter(&adapter), &out.path().join("merged")).unwrap();
    assert_eq!(merged.changed, 2);
    let result = ModelDir::open(&merged.path).unwrap();
    assert!(result.checkpoint.info("lm_head.weight").is_none());
    assert_eq!(whole_tensors(&model, &adapter).unwrap().len(), 1);
    // Under the other class's paths, both again.
    let fitted = fit_adapter(&model, KeyLayout::Multimodal, &adapter).unwrap();
    let names: Vec<&str> = fitted.others.iter().map(|other| other.info.name.as_str()).collect();
    assert_eq!(names, ["model.language_model.embed_tokens.weight", "lm_head.weight"]);
    assert_eq!(fitted.config.modules_to_save, Some(vec!["embed_tokens".to_owned(), "lm_head".to_owned()]));
}

#[test]
fn a_head_cut_from_its_embedding_is_refused() {
    let home = Fixture::new("qwen3").tied().write();
    let out = tempfile::tempdir().unwrap();
    let model = ModelDir::open(home.path()).unwrap();
    let (one, other) = (noise(9, 24 * 8), noise(10, 24 * 8));
    let (embedding, head) = ("model.embed_tokens.weight", "lm_head.weight");
    for (others, told) in [
        (vec![whole(embedding, &one)], "trains `embed_tokens` alone"),
        (vec![whole(head, &one)], "trains `lm_head` alone"),
        (vec![whole(embedding, &one), whole(head, &other)], "trains them apart"),
    ] {
        let mut adapter = adapter(&model, &["layers.0.mlp.up_proj".to_owned()], 2);
        adapter.others = others;
        let faults = merge(&model, Change::Adapter(&adapter), &out.path().join("merged")).unwrap_err();
        assert!(faults.len() == 1 && faults[0].to_string().contains(told), "{faults:?}");
        assert_eq!(fit_adapter(&model, KeyLayout::Text, &adapter).unwrap_err().len(), 1);
    }
}

#[test]
fn whole_tensors_that_are_none_of_the_bases_are_reported_with_the_pairs() {
    let home = Fixture::new("qwen3").write();
    let out = tempfile::tempdir().unwrap();
    let model = ModelDir::open(home.path()).unwrap();
    let mut adapter = adapter(&model, &["layers.0.mlp.up_proj".to_owned()], 2);
    adapter.pairs[0].module = "model.layers.0.mlp.upp_proj".to_owned();
    adapter.others =
        vec![whole("model.embed_token.weight", &[0.0; 24 * 8]), whole("model.norm.weight", &[0.0; 24 * 8])];
    let faults = merge(&model, Change::Adapter(&adapter), &out.path().join("merged")).unwrap_err();
    let told: Vec<String> = faults.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(told.iter().any(|one| one.ends_with("it has `embed_tokens.weight`")), "{told:?}");
}
