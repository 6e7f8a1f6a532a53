#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

use super::*;
use crate::{WeightError, Written};

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

fn write(mut writer: GgufWriter, tensors: &[GgufTensor]) -> Written {
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
    assert_eq!(written.files, std::slice::from_ref(&path));
    assert_eq!(written.bytes, tensors().iter().map(|tensor| tensor.bytes().unwrap() as u64).sum::<u64>());
    let file = GgufFile::open(&path).unwrap();
    assert_eq!(*file.metadata(), keys());
    same(&file, &tensors());
    assert_eq!(file.tensor("experts").unwrap().shape, [2, 3, 4, 1]);
    assert_eq!(fs::metadata(&path).unwrap().len() % 32, 0);
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
}

#[test]
fn a_model_without_tensors_is_one() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("vocabulary.gguf");
    write(GgufWriter::create(&path, &keys()).unwrap(), &[]);
    assert_eq!(*GgufFile::open(&path).unwrap().metadata(), keys());
}

#[test]
fn numbers_are_read_whole_and_by_rows() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("m.gguf");
    let tensors = [
        GgufTensor::new("q", [2, 3, 64], TensorType::Q8_0),
        GgufTensor::new("f", [5], TensorType::F32),
        GgufTensor::new("other", [256], TensorType::IQ2_XXS),
        GgufTensor::new("i", [2], TensorType::I32),
    ];
    let values: Vec<f32> = (0..2 * 3 * 64).map(|n| ((n * 37) % 101) as f32 - 50.0).collect();
    let mut writer = GgufWriter::create(&path, &Metadata::new()).unwrap();
    writer.declare(&tensors).unwrap();
    let bytes = blocks::encode(TensorType::Q8_0, &values, 64).unwrap();
    bytes.chunks(68).for_each(|row| writer.write_part("q", row).unwrap());
    writer.write("f", &[1.0_f32, 2.0, 3.0, 4.0, 5.0].map(f32::to_le_bytes).concat()).unwrap();
    writer.write("other", &[1; 66]).unwrap();
    writer.write("i", &[1; 8]).unwrap();
    writer.close().unwrap();

    let file = GgufFile::open(&path).unwrap();
    let whole = file.read_f32("q").unwrap();
    // Half a step of 50/127, and the step itself rounded to 11 bits.
    let bound = 0.5 * 50.0 / 127.0 + 50.0 / 2048.0;
    assert!(whole.iter().zip(&values).all(|(a, b)| (a - b).abs() <= bound));
    assert_eq!(file.read_rows_f32("q", 2..5).unwrap(), whole[2 * 64..5 * 64]);
    assert_eq!(file.read_rows_f32("q", 6..6).unwrap(), [0.0; 0]);
    assert_eq!(file.read_rows_f32("f", 0..1).unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(file.read("other").unwrap(), &[1; 66][..]);
    let shown = path.display();
    let fault = |result: Result<Vec<f32>, WeightError>| result.unwrap_err().to_string();
    assert_eq!(
        fault(file.read_f32("other")),
        format!("tensor `other` of `{shown}` is IQ2_XXS, which cannot be read as numbers")
    );
    assert_eq!(fault(file.read_f32("i")), format!("tensor `i` of `{shown}` is I32, which cannot be read as numbers"));
    assert_eq!(fault(file.read_f32("absent")), format!("no tensor `absent` in `{shown}`"));
    assert_eq!(fault(file.read_rows_f32("q", 5..7)), format!("tensor `q` of `{shown}` has 6 rows; asked for 5..7"));
}

#[test]
fn values_are_read_whatever_their_width() {
    let numbers: [Value; 8] =
        [7_u8.into(), 7_i8.into(), 7_u16.into(), 7_i16.into(), 7_u32.into(), 7_i32.into(), 7_u64.into(), 7_i64.into()];
    for value in numbers {
        assert_eq!((value.as_u64(), value.as_i64(), value.as_f32()), (Some(7), Some(7), Some(7.0)));
    }
    assert_eq!((Value::I32(-1).as_u64(), Value::I32(-1).as_i64()), (None, Some(-1)));
    assert_eq!((Value::U64(u64::MAX).as_i64(), Value::U64(u64::MAX).as_u64()), (None, Some(u64::MAX)));
    assert_eq!(
        (Value::F64(0.5).as_f32(), Value::F32(1.0).as_u64(), Value::Bool(true).as_u64()),
        (Some(0.5), None, None)
    );
    let array: Value = vec![1_i32, 2].into();
    assert_eq!(array.as_array().unwrap().to_u64s(), Some(vec![1, 2]));
    assert_eq!(array.as_array().unwrap().to_f32s(), Some(vec![1.0, 2.0]));
    assert_eq!(Value::from(vec![-1_i32]).as_array().unwrap().to_u64s(), None);
    let texts: Value = ["a", "", "bc"].as_slice().into();
    assert_eq!(texts.as_strings().unwrap().iter().collect::<Vec<_>>(), ["a", "", "bc"]);
    assert_eq!(texts.as_array().unwrap().get(2), Some("bc".into()));
    assert_eq!(texts.as_array().unwrap().get(3), None);
}

#[test]
fn a_key_is_set_in_its_place() {
    let mut metadata: Metadata = [("a", 1_u32), ("b", 2), ("c", 3)].into_iter().collect();
    metadata.insert("b", "two");
    metadata.insert("d", true);
    assert_eq!(metadata.remove("a"), Some(Value::U32(1)));
    let keys: Vec<_> = metadata.iter().map(|(key, _)| key).collect();
    assert_eq!((keys, metadata.get("b").and_then(Value::as_str)), (vec!["b", "c", "d"], Some("two")));
}

#[test]
fn types_are_known_by_id_and_by_name() {
    for &ty in TensorType::ALL {
        assert_eq!(TensorType::from_id(ty.id()), Some(ty));
        assert_eq!(TensorType::from_name(ty.name()), Some(ty));
        assert_eq!(ty.bytes(&[3, 2 * ty.block()]), Some(6 * ty.block_bytes()));
    }
    // Given up by ggml, and types it only computes with.
    for id in [4, 5, 9, 15, 31, 38, 1000] {
        assert_eq!(TensorType::from_id(id), None);
    }
    assert_eq!(TensorType::Q4_K.bytes(&[256, 100]), None);
    assert_eq!(TensorType::F32.bytes(&[usize::MAX, 2]), None);
    assert_eq!(TensorType::F32.bytes(&[]), Some(4));
}

#[test]
fn what_no_file_can_hold_is_refused_before_anything_is_written() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("m.gguf");
    let shown = format!("`{}` cannot be written: ", path.display());
    let key = |metadata: Metadata| {
        GgufWriter::create(&path, &metadata).unwrap_err().to_string().strip_prefix(&shown).unwrap().to_owned()
    };
    assert_eq!(key([("", 1_u8)].into_iter().collect()), "a key is empty");
    assert_eq!(key([("a", 1_u8), ("a", 2)].into_iter().collect()), "key `a` occurs twice");
    assert_eq!(
        key([("general.alignment", 64_u32)].into_iter().collect()),
        "key `general.alignment` is set by the writer"
    );
    assert_eq!(key([("split.no", 0_u16)].into_iter().collect()), "key `split.no` is set by the writer");
    let tensor = |tensors: &[GgufTensor]| {
        let fault = GgufWriter::create(&path, &Metadata::new()).unwrap().declare(tensors).unwrap_err().to_string();
        fault.strip_prefix(&shown).unwrap().to_owned()
    };
    let named = |name: &str| GgufTensor::new(name, [2], TensorType::F32);
    assert_eq!(tensor(&[named("")]), "a tensor has no name");
    assert_eq!(tensor(&[named("a"), named("a")]), "tensor `a` occurs twice");
    let long = "x".repeat(64);
    assert_eq!(tensor(&[named(&long)]), format!("tensor `{long}` has a name of 64 bytes; at most 63 are allowed"));
    assert_eq!(
        tensor(&[GgufTensor::new("a", [1; 5], TensorType::F32)]),
        "tensor `a` has 5 axes; at most 4 are allowed"
    );
    assert_eq!(
        tensor(&[GgufTensor::new("a", [256, 100], TensorType::Q4_K)]),
        "tensor `a` is Q4_K with rows of 100, which is not a multiple of 256"
    );
    assert_eq!(
        tensor(&[GgufTensor::new("a", [usize::MAX, 32], TensorType::Q8_0)]),
        format!("tensor `a` is Q8_0 [{}, 32], more bytes than can be addressed", usize::MAX)
    );
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
}

#[test]
fn tensors_come_whole_and_in_turn() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("m.gguf");
    let plan = [GgufTensor::new("a", [2], TensorType::F32), GgufTensor::new("b", [1], TensorType::F32)];
    let mut writer = GgufWriter::create(&path, &Metadata::new()).unwrap();
    assert!(matches!(writer.write("a", &[0; 8]), Err(WeightError::WrongOrder { .. })));
    writer.declare(&plan).unwrap();
    assert!(matches!(writer.declare(&plan), Err(WeightError::WrongOrder { .. })));
    assert!(matches!(writer.write("b", &[0; 4]), Err(WeightError::OutOfTurn { .. })));
    assert!(matches!(writer.write("a", &[0; 4]), Err(WeightError::WrongData { expected: 8, found: 4, .. })));
    writer.write_part("a", &[0; 4]).unwrap();
    assert!(matches!(writer.write("a", &[0; 8]), Err(WeightError::WrongData { expected: 8, found: 12, .. })));
    assert!(matches!(writer.write_part("a", &[0; 5]), Err(WeightError::WrongData { expected: 8, found: 9, .. })));
    assert!(matches!(writer.write_part("b", &[0; 4]), Err(WeightError::OutOfTurn { .. })));
    writer.write_part("a", &[0; 4]).unwrap();
    assert!(matches!(writer.write_part("a", &[]), Err(WeightError::OutOfTurn { .. })));
    let unfinished = writer.close().unwrap_err().to_string();
    assert_eq!(
        unfinished,
        format!("`{}` was finished before 1 of its tensors were written; next due: `b`", path.display())
    );
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
}

/// Six tensors of 128 bytes.
fn six() -> Vec<GgufTensor> {
    (0..6).map(|n| GgufTensor::new(format!("t{n}"), [2, 16], TensorType::F32)).collect()
}

fn divided(directory: &Path, limit: u64) -> Vec<String> {
    let writer = GgufWriter::split(&directory.join("m.gguf"), &keys(), limit).unwrap();
    let written = write(writer, &six());
    assert_eq!(written.tensors, 6);
    written.files.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
}

#[test]
fn a_model_is_divided_by_size_and_joined_from_any_of_its_files() {
    let home = tempfile::tempdir().unwrap();
    let whole = divided(home.path(), u64::MAX);
    assert_eq!(whole, ["m.gguf"]);
    let size = fs::metadata(home.path().join("m.gguf")).unwrap().len();
    assert_eq!(divided(home.path(), size), ["m.gguf"]);
    let limit = size - 3 * 128;
    let names = divided(home.path(), limit);
    assert_eq!(names, ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]);
    for name in &names {
        let path = home.path().join(name);
        assert!(fs::metadata(&path).unwrap().len() <= limit);
        let file = GgufFile::open(&path).unwrap();
        assert_eq!(*file.metadata(), keys());
        same(&file, &six());
    }
    // However small the limit, a file holds a tensor.
    assert_eq!(divided(home.path(), 1).len(), 6);
}

#[test]
fn files_that_do_not_belong_together_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let names = divided(home.path(), 1);
    let path = |n: usize| home.path().join(&names[n]);
    let fault = |at: &Path| GgufFile::open(at).unwrap_err().to_string();

    fs::rename(path(3), other.path().join("aside")).unwrap();
    assert!(fault(&path(0)).starts_with(&format!("cannot open `{}`", path(3).display())), "{}", fault(&path(0)));
    // Another one under its name.
    fs::copy(path(2), path(3)).unwrap();
    assert_eq!(
        fault(&path(0)),
        format!(
            "`{}` is malformed at byte 0: key `split.no` is 2 of 6; expected 3 of 6, with the same number of tensors",
            path(3).display()
        )
    );
    // A file under a name that does not tell the others'.
    let renamed = other.path().join("model.gguf");
    fs::copy(path(0), &renamed).unwrap();
    assert_eq!(
        fault(&renamed),
        format!(
            "`{}` is malformed at byte 0: the file is one of 6; its name must end in `-00001-of-00006.gguf`",
            renamed.display()
        )
    );
}
