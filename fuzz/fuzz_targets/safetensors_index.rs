#![no_main]
//! An index beside two sound shards: it names files of its own directory and tensors that they hold, or it is refused.

use libfuzzer_sys::fuzz_target;
use qwen_tune_weights::{Checkpoint, TensorSource};

fn shard(tensor: &str) -> Vec<u8> {
    let mut header = format!(r#"{{"{tensor}":{{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}}}"#).into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    [&(header.len() as u64).to_le_bytes()[..], &header, b"ab"].concat()
}

fuzz_target!(|data: &[u8]| {
    let one = qwen_tune_fuzz::home().join("1.safetensors");
    if !one.exists() {
        qwen_tune_fuzz::write("1.safetensors", &shard("a"));
        qwen_tune_fuzz::write("2.safetensors", &shard("b"));
    }
    let path = qwen_tune_fuzz::write("model.safetensors.index.json", data);
    if let Ok(checkpoint) = Checkpoint::open(&path) {
        assert!(checkpoint.tensors().iter().all(|info| checkpoint.read(&info.name).is_ok()));
    }
});
