//! A merge needs the memory of a few blocks of rows, whatever the size of the model and of its tensors. Alone in its
//! process, because it reads the peak of the whole process.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;

use qwen_tune_qwen::{
    LayerFilter, LoraTargets, ModelDir, Switches,
    export::{Change, adapter_config, merge},
    family, inventory,
};
use qwen_tune_weights::{
    Dtype, Layout, ShardedWriter, TensorInfo, TensorSink,
    peft::{Adapter, LoraPair},
};

const MIB: u64 = 1 << 20;

/// Peak of resident memory in bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn a_merge_needs_less_memory_than_one_tensor() {
    let config = serde_json::json!({
        "model_type": "llama", "vocab_size": 16384, "hidden_size": 2048, "intermediate_size": 16384,
        "num_hidden_layers": 1, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 128,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 64,
    });
    let home = tempfile::tempdir().unwrap();
    let base = home.path().join("base");
    fs::create_dir(&base).unwrap();
    fs::write(base.join("config.json"), config.to_string()).unwrap();
    let infos: Vec<TensorInfo> = inventory(&family::resolve(&config).unwrap())
        .into_iter()
        .map(|tensor| {
            let prefix = if tensor.name == "lm_head.weight" { "" } else { "model." };
            TensorInfo::new(format!("{prefix}{}", tensor.name), Dtype::BF16, tensor.shape)
        })
        .collect();
    let total: u64 = infos.iter().map(|info| info.bytes() as u64).sum();
    let largest: u64 = infos.iter().map(|info| info.bytes() as u64).max().unwrap();
    assert!(total > 200 * MIB && largest == 64 * MIB, "{total} {largest}");
    let mut sink = ShardedWriter::create(&base, Layout::single(&infos));
    sink.declare(&infos).unwrap();
    for info in &infos {
        sink.write(&info.name, &vec![0x3c; info.bytes()]).unwrap();
    }
    Box::new(sink).finish().unwrap();

    let model = ModelDir::open(&base).unwrap();
    let modules = LoraTargets::default().resolve(Switches::default(), &model.inventory, &LayerFilter::All).unwrap();
    let pair = |module: &String| {
        let shape = &model.tensor(&model.tensor_name(&format!("{module}.weight"))).unwrap().shape;
        LoraPair {
            module: model.key_layout.path(module),
            a: vec![0.5; 8 * shape[1]],
            b: vec![0.5; shape[0] * 8],
            rank: 8,
            in_features: shape[1],
            out_features: shape[0],
            experts: 1,
            scale: 2.0,
        }
    };
    let adapter = Adapter {
        config: adapter_config(&model, model.key_layout, None, 8, 16.0, &modules),
        pairs: modules.iter().map(pair).collect(),
        others: Vec::new(),
    };

    // Sets the recorded peak to what is resident now.
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = peak();
    merge(&model, Change::Adapter(&adapter), &home.path().join("merged")).unwrap();
    let grown = peak().saturating_sub(before);
    assert!(grown < largest, "the merge of {} MiB took {} MiB", total / MIB, grown / MIB);
}
