use qwen_tune_weights::gguf::{GgufFile, Value};
use qwen_tune_weights::peft::{Adapter, AdapterConfig, FullTensor, LoraPair, Patterns};
use qwen_tune_weights::{Dtype, TensorInfo};

use super::*;
use crate::export::{Change, adapter_config};
use crate::fixture::noise;
use crate::{LayerFilter, LoraTargets, Matrices, Switches, gguf};

fn adapter(model: &ModelDir, change: impl Fn(&mut AdapterConfig)) -> Adapter {
    let is_sparse = model.spec.sparse().is_some();
    let switches = Switches { experts: is_sparse, router: is_sparse };
    let modules = LoraTargets::default().resolve(switches, &model.inventory, &LayerFilter::All).unwrap();
    let mut config = adapter_config(model, model.key_layout, None, 3, 6.0, &modules);
    change(&mut config);
    let scaling = config.scaling().unwrap();
    let pair = |module: &String| {
        let tensor = model.inventory.iter().find(|tensor| tensor.module.as_ref() == Some(module)).unwrap();
        let Matrices { count: experts, rows: out_features, columns: in_features } = tensor.matrices().unwrap();
        let path = model.key_layout.path(module);
        let (rank, scale) = (scaling.rank(&path), scaling.scale(&path));
        LoraPair {
            a: noise(11 + out_features as u32, experts * rank * in_features),
            b: noise(13 + in_features as u32, experts * out_features * rank),
            module: path,
            rank,
            in_features,
            out_features,
            experts,
            scale,
        }
    };
    Adapter { pairs: modules.iter().map(pair).collect(), config, others: Vec::new() }
}

/// What llama.cpp makes of a file of the base and one of an adapter is what the merged model's file holds.
#[test]
fn an_adapter_on_the_bases_file_is_the_merged_models_file() {
    let changes: [fn(&mut AdapterConfig); 3] = [
        |_| {},
        |config| config.use_rslora = true,
        |config| {
            config.rank_pattern = Patterns(vec![("q_proj|in_proj_qkvz|experts.gate_up_proj".to_owned(), 5)]);
            config.alpha_pattern = Patterns(vec![(r"model\.layers\.1\..*".to_owned(), 4.5)]);
        },
    ];
    let out = tempfile::tempdir().unwrap();
    for (config, change) in models().iter().zip(changes.iter().cycle()) {
        let (_home, model) = stored(config);
        let adapter = adapter(&model, change);
        write(&model, None, out.path(), &options(&[Quant::F32])).unwrap();
        let merged = WriteOptions { name: "merged".to_owned(), ..options(&[Quant::F32]) };
        write(&model, Some(Change::Adapter(&adapter)), out.path(), &merged).unwrap();
        let path = out.path().join("adapter.gguf");
        write_adapter(&model, &adapter, &path, &options(&[]).about).unwrap();

        let open = |name: &str| GgufFile::open(&out.path().join(name)).unwrap();
        let (base, merged, adapter) = (open("test-F32.gguf"), open("merged-F32.gguf"), open("adapter.gguf"));
        let alpha = adapter.metadata().get("adapter.lora.alpha").unwrap().as_f32().unwrap();
        assert_eq!(adapter.metadata().get("general.architecture"), base.metadata().get("general.architecture"));
        let mut adapted = 0;
        for tensor in base.tensors() {
            let before = base.read_f32(&tensor.name).unwrap();
            let expected = merged.read_f32(&tensor.name).unwrap();
            let Some(a_info) = adapter.tensor(&format!("{}.lora_a", tensor.name)) else {
                assert_eq!(before, expected, "{}", tensor.name);
                continue;
            };
            adapted += 1;
            let a = adapter.read_f32(&a_info.name).unwrap();
            let b = adapter.read_f32(&format!("{}.lora_b", tensor.name)).unwrap();
            let [.., rank, columns] = a_info.shape[..] else { panic!("{a_info:?}") };
            assert_eq!(columns, tensor.row());
            // Rows of one expert share an A.
            let rows = if a_info.shape.len() == 3 { tensor.shape[1] } else { usize::MAX };
            for (index, (before, expected)) in before.iter().zip(&expected).enumerate() {
                let (row, column) = (index / columns, index % columns);
                let a = &a[row / rows * rank * columns..];
                let sum: f32 = (0..rank).map(|k| b[row * rank + k] * a[k * columns + column]).sum();
                let found = before + alpha / rank as f32 * sum;
                assert!((found - expected).abs() < 1e-5, "{} {index}: {found} {expected}", tensor.name);
            }
        }
        assert_eq!(adapted * 2, adapter.tensors().len(), "every pair of the file is for a tensor of the base's");
    }
}

#[test]
fn the_one_alpha_of_a_file_leaves_most_factors_as_they_are() {
    let (home, model) = stored(&models()[3]);
    let adapter = adapter(&model, |config| {
        config.use_rslora = true;
        config.alpha_pattern = Patterns(vec![("q_proj".to_owned(), 3.0)]);
    });
    let path = home.path().join("adapter.gguf");
    write_adapter(&model, &adapter, &path, &options(&[]).about).unwrap();
    let file = GgufFile::open(&path).unwrap();
    assert_eq!(file.metadata().get("adapter.lora.alpha"), Some(&Value::F32((6.0 * 3f64.sqrt()) as f32)));
    for pair in &adapter.pairs {
        let name = pair.module.replace("model.layers.", "blk.");
        let name = name.replace("self_attn.q_proj", "attn_q").replace("self_attn.k_proj", "attn_k");
        let Ok(b) = file.read_f32(&format!("{name}.weight.lora_b")) else { continue };
        let factor = if name.ends_with("attn_q") { 0.5 } else { 1.0 };
        assert!(b.iter().zip(&pair.b).all(|(found, b)| (found - b * factor).abs() < 1e-6), "{name}");
    }
}

#[test]
fn what_adapter_files_cannot_hold_is_refused_at_once() {
    let (home, model) = stored(&models()[3]);
    let mut adapter = adapter(&model, |_| {});
    let info = TensorInfo::new("lm_head.weight", Dtype::F32, [24, 8]);
    adapter.others.push(FullTensor { bytes: vec![0; info.bytes()], info });
    adapter.pairs[1].module = "model.layers.7.mlp.up_proj".to_owned();
    let path = home.path().join("adapter.gguf");
    let faults = gguf::write_adapter(&model, &adapter, &path, &About::default()).unwrap_err();
    let found = texts(faults);
    assert_eq!(
        found[0],
        "the adapter has the whole tensor `lm_head.weight`, which an adapter in GGUF cannot hold; export the merged model instead (`--to gguf`)"
    );
    assert!(found[1].starts_with("the adapter has module `model.layers.7.mlp.up_proj`, which this base does not have"));
    assert_eq!(found.len(), 2);
    assert!(!path.exists());
}
