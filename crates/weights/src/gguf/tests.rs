#![allow(clippy::unwrap_used)]

use super::*;

fn keys() -> Metadata {
    let mut metadata = Metadata::new();
    metadata.push("general.architecture", "qwen3");
    metadata.push("a.u8", 1_u8);
    metadata.push("a.i8", -1_i8);
    metadata.push("a.u16", 2_u16);
    metadata.push("a.i16", -2_i16);
    metadata.push("a.u32", 3_u32);
    metadata.push("a.i32", -3_i32);
    metadata.push("a.f32", 0.5_f32);
    metadata.push("a.bool", true);
    metadata.push("a.u64", u64::MAX);
    metadata.push("a.i64", i64::MIN);
    metadata.push("a.f64", 1e300_f64);
    metadata.push("b.u8", vec![1_u8, 2]);
    metadata.push("b.i8", vec![1_i8, -2]);
    metadata.push("b.u16", vec![1_u16, 2]);
    metadata.push("b.i16", vec![1_i16, -2]);
    metadata.push("b.u32", vec![1_u32, 2]);
    metadata.push("b.i32", vec![1_i32, -2]);
    metadata.push("b.f32", vec![1.5_f32, -2.0]);
    metadata.push("b.bool", vec![true, false, true]);
    metadata.push("b.string", ["", "Ġa", "b\n"].as_slice());
    metadata.push("b.u64", vec![1_u64, 2]);
    metadata.push("b.i64", vec![1_i64, -2]);
    metadata.push("b.f64", vec![1e-300_f64]);
    metadata
}

fn tensors() -> Vec<GgufTensor> {
    vec![
        GgufTensor::new("token_embd.weight", [3, 32], TensorType::Q8_0),
        GgufTensor::new("norm", [5], TensorType::F32),
        GgufTensor::new("experts", [2, 3, 4, 1], TensorType::BF16),
        GgufTensor::new("scalar", [], TensorType::I64),
    ]
}

fn content(tensor: &GgufTensor) -> Vec<u8> {
    (0..tensor.bytes().unwrap()).map(|index| (index * 7 + tensor.name.len()) as u8).collect()
}

fn write(writer: GgufWriter, tensors: &[GgufTensor]) -> crate::Written {
    let mut writer = writer;
    writer.declare(tensors).unwrap();
    for tensor in tensors {
        let bytes = content(tensor);
        let (one, two) = bytes.split_at(bytes.len() / 3);
        writer.write_part(&tensor.name, one).unwrap();
        writer.write_part(&tensor.name, two).unwrap();
    }
    writer.close().unwrap()
}

fn same(file: &GgufFile, tensors: &[GgufTensor]) {
    assert_eq!(file.tensors(), tensors);
    for tensor in tensors {
        assert_eq!(file.read(&tensor.name).unwrap(), content(tensor));
        file.release(&tensor.name);
    }
}

#[test]
fn every_kind_of_value_and_tensor_comes_back() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("m.gguf");
    let written = write(GgufWriter::create(&path, &keys()).unwrap(), &tensors());
    assert_eq!(written.files, [path.clone()]);
    let file = GgufFile::open(&path).unwrap();
    assert_eq!(*file.metadata(), keys());
    same(&file, &tensors());
}
