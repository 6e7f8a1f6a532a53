#![no_main]
//! A GGUF file: whatever opens can be read whole, is no larger than the file, and is the same when written again.

use libfuzzer_sys::fuzz_target;
use qwen_tune_weights::gguf::{GgufFile, GgufWriter};

fuzz_target!(|data: &[u8]| {
    let path = qwen_tune_fuzz::write("m.gguf", data);
    let Ok(file) = GgufFile::open(&path) else { return };
    let mut metadata = file.metadata().clone();
    metadata.remove("general.alignment");
    let again = qwen_tune_fuzz::home().join("again.gguf");
    let mut writer = GgufWriter::create(&again, &metadata).expect("keys of a file");
    writer.declare(file.tensors()).expect("tensors of a file");
    let mut total = 0;
    for tensor in file.tensors() {
        let bytes = file.read(&tensor.name).expect("a tensor of an open file");
        assert_eq!(Some(bytes.len()), tensor.bytes());
        total += bytes.len();
        let _ = file.read_f32(&tensor.name);
        writer.write(&tensor.name, &bytes).expect("a tensor that is due");
    }
    assert!(total < data.len());
    writer.close().expect("a whole file");
    let same = GgufFile::open(&again).expect("what was written");
    // Not the values: a NaN differs from itself.
    assert_eq!(same.metadata().len(), metadata.len());
    assert_eq!(same.tensors(), file.tensors());
});
