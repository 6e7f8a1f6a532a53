#![no_main]
//! A safetensors file: whatever opens can be read whole, and no tensor is larger than the file.

use libfuzzer_sys::fuzz_target;
use qwen_tune_weights::{Checkpoint, TensorSource};

fuzz_target!(|data: &[u8]| {
    let path = qwen_tune_fuzz::write("model.safetensors", data);
    let Ok(checkpoint) = Checkpoint::open(&path) else { return };
    let mut total = 0;
    for info in checkpoint.tensors() {
        let bytes = checkpoint.read(&info.name).expect("a tensor of an open checkpoint");
        assert_eq!(bytes.len(), info.bytes());
        total += bytes.len();
        let _ = checkpoint.read_f32(&info.name);
    }
    assert!(total < data.len());
});
