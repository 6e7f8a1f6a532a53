#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

use proptest::prelude::*;

use super::*;
use crate::{Dtype, TensorInfo, TensorSink, TensorSource, WeightError};

fn pt() -> Metadata {
    Metadata::from([("format".to_owned(), "pt".to_owned())])
}

/// Distinct bytes for each tensor.
fn content(info: &TensorInfo, seed: usize) -> Vec<u8> {
    (0..info.bytes()).map(|index| (index * 7 + seed * 31) as u8).collect()
}

fn write_all(sink: &mut dyn TensorSink, plan: &[TensorInfo]) -> Result<(), WeightError> {
    sink.declare(plan)?;
    for (seed, info) in plan.iter().enumerate() {
        sink.write(&info.name, &content(info, seed))?;
    }
    Ok(())
}

fn write_file(path: &Path, plan: &[TensorInfo], metadata: Metadata) {
    let mut sink = SafetensorsWriter::create(path, metadata).unwrap();
    write_all(&mut sink, plan).unwrap();
    sink.close().unwrap();
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn small_plan() -> Vec<TensorInfo> {
    vec![
        TensorInfo::new("b.weight", Dtype::BF16, [3, 2]),
        TensorInfo::new("empty", Dtype::F32, [0, 4]),
        TensorInfo::new("a.weight", Dtype::F32, [2]),
        TensorInfo::new("scalar", Dtype::I64, []),
    ]
}

fn plans() -> impl Strategy<Value = Vec<TensorInfo>> {
    let dtype = prop::sample::select(Dtype::ALL.to_vec());
    let shape = prop::collection::vec(0..5_usize, 0..4);
    prop::collection::btree_map("[a-z\"\\\\é.]{1,8}", (dtype, shape), 0..8).prop_map(|tensors| {
        let mut plan: Vec<_> =
            tensors.into_iter().map(|(name, (dtype, shape))| TensorInfo::new(name, dtype, shape)).collect();
        plan.reverse();
        plan
    })
}

proptest! {
    // Each case syncs files to the disk.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_read(plan in plans(), metadata in prop::collection::btree_map("[a-z]{1,4}", ".{0,6}", 0..3)) {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("model.safetensors");
        write_file(&path, &plan, metadata.clone());
        let checkpoint = Checkpoint::open(&path).unwrap();
        prop_assert_eq!(checkpoint.tensors(), &plan[..]);
        prop_assert_eq!(&checkpoint.shards()[0].metadata, &metadata);
        for (seed, info) in plan.iter().enumerate() {
            prop_assert_eq!(&*checkpoint.read(&info.name).unwrap(), &content(info, seed)[..]);
            checkpoint.release(&info.name);
            prop_assert_eq!(&*checkpoint.read(&info.name).unwrap(), &content(info, seed)[..]);
        }
    }

    /// The format's own implementation agrees with ours in both directions.
    #[test]
    fn the_reference_implementation_reads_and_writes_the_same(plan in plans()) {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("model.safetensors");
        write_file(&path, &plan, pt());
        let bytes = fs::read(&path).unwrap();
        let theirs = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
        prop_assert_eq!(theirs.len(), plan.len());
        for (seed, info) in plan.iter().enumerate() {
            let view = theirs.tensor(&info.name).unwrap();
            prop_assert_eq!(view.shape(), &info.shape[..]);
            prop_assert_eq!(view.dtype().to_string(), info.dtype.name());
            prop_assert_eq!(view.data(), &content(info, seed)[..]);
        }
        let again = ::safetensors::serialize(theirs.tensors(), None).unwrap();
        fs::write(&path, again).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        for (seed, info) in plan.iter().enumerate() {
            prop_assert_eq!(checkpoint.info(&info.name), Some(info));
            prop_assert_eq!(&*checkpoint.read(&info.name).unwrap(), &content(info, seed)[..]);
        }
    }

    #[test]
    fn flipped_bits_never_panic(flips in prop::collection::vec((0..400_usize, 0..8_u32), 1..6)) {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("model.safetensors");
        write_file(&path, &small_plan(), pt());
        let mut bytes = fs::read(&path).unwrap();
        for (position, bit) in flips {
            let position = position % bytes.len();
            bytes[position] ^= 1 << bit;
        }
        fs::write(&path, bytes).unwrap();
        if let Ok(checkpoint) = Checkpoint::open(&path) {
            for info in checkpoint.tensors() {
                prop_assert_eq!(checkpoint.read(&info.name).unwrap().len(), info.bytes());
            }
        }
    }
}

#[test]
fn every_prefix_of_a_file_is_an_error() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("model.safetensors");
    write_file(&path, &small_plan(), pt());
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let error = Checkpoint::open(&path).expect_err("a truncated file opens");
        assert!(error.to_string().contains("model.safetensors"), "{error}");
    }
}

#[test]
fn data_begins_at_a_multiple_of_eight() {
    let home = tempfile::tempdir().unwrap();
    for extra in 0..9 {
        let path = home.path().join("model.safetensors");
        write_file(&path, &[TensorInfo::new("x".repeat(extra + 1), Dtype::F32, [1])], Metadata::new());
        let bytes = fs::read(&path).unwrap();
        assert_eq!((bytes.len() - 4) % 8, 0);
    }
}

fn sharded_layout() -> Layout {
    let shard = |number: usize, tensors: &[&str]| ShardInfo {
        file_name: format!("model-0000{number}-of-00002.safetensors"),
        tensors: tensors.iter().map(|&name| name.to_owned()).collect(),
        metadata: pt(),
    };
    Layout {
        shards: vec![shard(1, &["scalar", "b.weight"]), shard(2, &["empty", "a.weight"])],
        index: Some(Index {
            file_name: "model.safetensors.index.json".to_owned(),
            metadata: serde_json::json!({"total_parameters": 9, "total_size": 1}).as_object().unwrap().clone(),
        }),
    }
}

/// The plan's tensors in the layout's order.
fn ordered(layout: &Layout) -> Vec<TensorInfo> {
    let plan = small_plan();
    layout.tensors().map(|name| plan.iter().find(|info| info.name == name).unwrap().clone()).collect()
}

fn write_sharded(directory: &Path) {
    let layout = sharded_layout();
    let mut sink = ShardedWriter::create(directory, layout.clone());
    write_all(&mut sink, &ordered(&layout)).unwrap();
    Box::new(sink).finish().unwrap();
}

#[test]
fn shards_are_written_as_laid_out_and_read_back() {
    let home = tempfile::tempdir().unwrap();
    write_sharded(home.path());
    assert_eq!(
        names(home.path()),
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    );
    assert_eq!(
        fs::read_to_string(home.path().join("model.safetensors.index.json")).unwrap(),
        r#"{
  "metadata": {
    "total_parameters": 9,
    "total_size": 28
  },
  "weight_map": {
    "a.weight": "model-00002-of-00002.safetensors",
    "b.weight": "model-00001-of-00002.safetensors",
    "empty": "model-00002-of-00002.safetensors",
    "scalar": "model-00001-of-00002.safetensors"
  }
}
"#
    );
    let checkpoint = Checkpoint::open(home.path()).unwrap();
    let layout = sharded_layout();
    assert_eq!(checkpoint.shards(), layout.shards);
    for (seed, info) in ordered(&layout).iter().enumerate() {
        assert_eq!(&*checkpoint.read(&info.name).unwrap(), &content(info, seed)[..]);
    }

    let again = tempfile::tempdir().unwrap();
    let mut sink = ShardedWriter::create(again.path(), checkpoint.layout().clone());
    sink.declare(checkpoint.tensors()).unwrap();
    for info in checkpoint.tensors() {
        sink.write(&info.name, &checkpoint.read(&info.name).unwrap()).unwrap();
    }
    let written = Box::new(sink).finish().unwrap();
    assert_eq!((written.files.len(), written.tensors, written.bytes), (3, 4, 28));
    for name in names(home.path()) {
        assert_eq!(fs::read(home.path().join(&name)).unwrap(), fs::read(again.path().join(&name)).unwrap(), "{name}");
    }
}

#[test]
fn an_index_is_held_against_its_shards() {
    let fault = |change: &dyn Fn(&Path, &mut serde_json::Value)| {
        let home = tempfile::tempdir().unwrap();
        write_sharded(home.path());
        let path = home.path().join("model.safetensors.index.json");
        let mut index: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(home.path(), &mut index);
        fs::write(&path, index.to_string()).unwrap();
        let text = Checkpoint::open(home.path()).unwrap_err().to_string();
        text.replace(&home.path().display().to_string(), "DIR")
    };
    let index = "`DIR/model.safetensors.index.json`";
    let second = "model-00002-of-00002.safetensors";
    assert_eq!(
        fault(&|_, index| index["weight_map"]["ghost"] = second.into()),
        format!("{index} places tensor `ghost` in `{second}`, which does not hold it")
    );
    assert_eq!(
        fault(&|_, index| index["weight_map"]["scalar"] = second.into()),
        format!("{index} places tensor `scalar` in `{second}`, which does not hold it")
    );
    assert_eq!(
        fault(&|directory, _| fs::remove_file(directory.join(second)).unwrap()),
        format!("shard `{second}` named by {index} is missing (2 tensors)")
    );
    for outside in ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "", "a\\b.safetensors", "."] {
        assert_eq!(
            fault(&|_, index| index["weight_map"]["scalar"] = outside.into()),
            format!("{index} places tensor `scalar` in `{outside}`, which is not a file name inside its directory")
        );
    }
    assert_eq!(
        fault(&|_, index| index["weight_map"] = serde_json::json!({})),
        format!("{index} is malformed: its `weight_map` names no tensor")
    );
    assert!(fault(&|_, index| *index = serde_json::json!([])).starts_with(&format!("{index} is malformed: ")));
    assert!(
        fault(&|directory, _| {
            fs::copy(directory.join(second), directory.join("model-00001-of-00002.safetensors")).unwrap();
        })
        .starts_with(&format!("{index} places tensor `b.weight` in")),
    );
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let home = tempfile::tempdir().unwrap();
    write_sharded(home.path());
    write_file(&home.path().join("model-00001-of-00002.safetensors"), &small_plan(), pt());
    assert!(matches!(Checkpoint::open(home.path()), Err(WeightError::Duplicate { .. })));
}

#[test]
fn a_directory_is_opened_by_what_lies_in_it() {
    let home = tempfile::tempdir().unwrap();
    let open = || Checkpoint::open(home.path());
    let text = |result: Result<Checkpoint, WeightError>| {
        result.unwrap_err().to_string().replace(&home.path().display().to_string(), "DIR")
    };
    assert_eq!(text(open()), "no weights in `DIR`: expected `model.safetensors` or `model.safetensors.index.json`");
    fs::write(home.path().join("pytorch_model.bin"), "").unwrap();
    assert!(text(open()).ends_with(
        "; `pytorch_model.bin` are PyTorch pickles, which are not read: save the model again with `safe_serialization=True`"
    ));
    write_file(&home.path().join("weights.safetensors"), &small_plan(), pt());
    assert_eq!(open().unwrap().shards()[0].file_name, "weights.safetensors");
    write_file(&home.path().join("more.safetensors"), &small_plan(), pt());
    assert!(text(open()).starts_with("several safetensors files in `DIR`"));
    write_file(&home.path().join("model.safetensors"), &small_plan(), pt());
    assert_eq!(open().unwrap().shards()[0].file_name, "model.safetensors");
    assert!(text(Checkpoint::open(&home.path().join("none"))).starts_with("cannot open `DIR/none`: "));
    assert!(matches!(open().unwrap().read("ghost"), Err(WeightError::Missing { .. })));
}

#[test]
fn a_writer_takes_exactly_what_was_declared() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("model.safetensors");
    let plan = small_plan();
    let begin = || SafetensorsWriter::create(&path, pt()).unwrap();
    let declared = || {
        let mut sink = begin();
        sink.declare(&plan).unwrap();
        sink
    };
    assert!(matches!(begin().write("b.weight", &[]), Err(WeightError::WrongOrder { .. })));
    assert!(matches!(begin().close(), Err(WeightError::WrongOrder { .. })));
    assert!(matches!(declared().declare(&plan), Err(WeightError::WrongOrder { .. })));
    assert!(matches!(declared().write("a.weight", &[0; 8]), Err(WeightError::OutOfTurn { .. })));
    assert!(matches!(declared().write("b.weight", &[0; 8]), Err(WeightError::WrongData { .. })));
    assert!(matches!(declared().close(), Err(WeightError::Unfinished { missing: 4, .. })));
    let mut full = begin();
    write_all(&mut full, &plan).unwrap();
    assert!(matches!(full.write("more", &[]), Err(WeightError::OutOfTurn { expected: None, .. })));
    let twice = vec![plan[0].clone(), plan[0].clone()];
    assert!(matches!(begin().declare(&twice), Err(WeightError::Duplicate { .. })));
    drop(full);
    assert_eq!(names(home.path()), Vec::<String>::new());
}

#[test]
fn tensors_in_parts_make_the_same_files() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_sharded(whole.path());
    let layout = sharded_layout();
    let mut sink = Box::new(ShardedWriter::create(parts.path(), layout.clone()));
    let plan = ordered(&layout);
    sink.declare(&plan).unwrap();
    for (seed, info) in plan.iter().enumerate() {
        let bytes = content(info, seed);
        // Nothing is a part too; of an empty tensor it is all.
        if !bytes.is_empty() {
            sink.write_part(&info.name, &[]).unwrap();
        }
        let (first, rest) = bytes.split_at(bytes.len() / 3);
        if !first.is_empty() {
            sink.write_part(&info.name, first).unwrap();
            assert!(matches!(sink.write_part("ghost", rest), Err(WeightError::OutOfTurn { .. })));
            assert!(matches!(sink.write(&info.name, &bytes), Err(WeightError::WrongData { .. })));
            let found = bytes.len() + first.len();
            let error = sink.write_part(&info.name, &bytes).unwrap_err();
            assert!(matches!(error, WeightError::WrongData { found: f, .. } if f == found), "{error}");
        }
        sink.write_part(&info.name, rest).unwrap();
    }
    sink.finish().unwrap();
    assert_eq!(names(whole.path()), names(parts.path()));
    for name in names(whole.path()) {
        assert!(fs::read(whole.path().join(&name)).unwrap() == fs::read(parts.path().join(&name)).unwrap(), "{name}");
    }
    let mut cut = SafetensorsWriter::create(&parts.path().join("cut"), pt()).unwrap();
    cut.declare(&small_plan()[..1]).unwrap();
    cut.write_part(&small_plan()[0].name, &[0; 1]).unwrap();
    assert!(matches!(cut.close(), Err(WeightError::Unfinished { missing: 1, .. })));
}

#[test]
fn a_sharded_writer_wants_the_layouts_tensors() {
    let home = tempfile::tempdir().unwrap();
    let mut sink = ShardedWriter::create(home.path(), sharded_layout());
    let mut plan = small_plan();
    plan[0].name = "ghost".to_owned();
    let text = sink.declare(&plan).unwrap_err().to_string();
    assert!(text.ends_with("differ: not planned `b.weight`; not laid out `ghost`"), "{text}");
    sink.declare(&small_plan()).unwrap();
    assert!(matches!(sink.write("a.weight", &[0; 8]), Err(WeightError::OutOfTurn { .. })));
    assert!(matches!(Box::new(sink).finish(), Err(WeightError::Unfinished { .. })));
    assert_eq!(names(home.path()), Vec::<String>::new());
}
