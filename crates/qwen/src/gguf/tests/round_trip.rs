use qwen_tune_weights::TensorSource;
use qwen_tune_weights::gguf::GgufFile;

use super::*;
use crate::{HeadSpec, family};

#[test]
fn a_file_gives_the_model_back() {
    let out = tempfile::tempdir().unwrap();
    for config in models() {
        let (_home, model) = stored(&config);
        let report = write(&model, None, out.path(), &options(&[Quant::F32])).unwrap();
        assert_eq!(report.warnings, [] as [&str; 0]);
        let read = GgufModel::open(&report.models[0].files[0]).unwrap();
        let mut spec = read.spec().clone();
        // A head that had to be written out is one.
        if read.architecture() == "qwen2moe" {
            assert_eq!(spec.head, HeadSpec::Own);
            spec.head = model.spec.head;
        }
        spec.model_type.clone_from(&model.spec.model_type);
        spec.rope.origin = model.spec.rope.origin.clone();
        assert_eq!(spec.rope.inv_freq.len(), model.spec.rope.inv_freq.len());
        for (one, other) in spec.rope.inv_freq.iter().zip(&model.spec.rope.inv_freq) {
            assert!((one - other).abs() <= 1e-6 * other, "{one} {other}");
        }
        spec.rope.inv_freq.clone_from(&model.spec.rope.inv_freq);
        assert!((spec.rope.attention_factor - model.spec.rope.attention_factor).abs() < 1e-6);
        spec.rope.attention_factor = model.spec.rope.attention_factor;
        spec.norm.eps = model.spec.norm.eps;
        for (layer, other) in spec.layers.iter_mut().zip(&model.spec.layers) {
            // The file holds f32 where the configuration holds f64.
            if let (crate::MixerSpec::GatedDelta(one), crate::MixerSpec::GatedDelta(other)) =
                (&mut layer.mixer, &other.mixer)
            {
                assert!((one.norm_eps - other.norm_eps).abs() < 1e-12);
                one.norm_eps = other.norm_eps;
            }
            if let (crate::MixerSpec::Attention(one), crate::MixerSpec::Attention(other)) =
                (&mut layer.mixer, &other.mixer)
                && let (Some(one), Some(other)) = (&mut one.qk_norm, &other.qk_norm)
            {
                one.eps = other.eps;
            }
        }
        assert_eq!(spec, model.spec, "{config}");
        for tensor in &model.inventory {
            let name = model.tensor_name(&tensor.name);
            assert_eq!(read.info(&name).unwrap().shape, tensor.shape);
            let (before, after) = (model.read_f32(tensor).unwrap(), read.read_f32(&name).unwrap());
            for (before, after) in before.iter().zip(&after) {
                assert!((before - after).abs() < 3e-7, "{name}: {before} {after}");
            }
        }
    }
}

#[test]
fn several_files_come_from_one_pass_and_one_may_be_divided() {
    let (_home, model) = stored(&models()[3]);
    let out = tempfile::tempdir().unwrap();
    let all: Vec<Quant> = Quant::all().collect();
    let report = write(&model, None, out.path(), &options(&all)).unwrap();
    assert_eq!(report.models.iter().map(|model| model.quant).collect::<Vec<_>>(), all);
    for (model, quant) in report.models.iter().zip(&all) {
        assert_eq!(model.files, [out.path().join(format!("test-{quant}.gguf"))]);
    }
    let divided = WriteOptions { name: "part".to_owned(), shard_bytes: 4000, ..options(&[Quant::F32]) };
    let report = write(&model, None, out.path(), &divided).unwrap();
    let files = &report.models[0].files;
    assert!(files.len() > 2, "{files:?}");
    assert!(files[0].ends_with(format!("part-F32-00001-of-{:05}.gguf", files.len())));
    let whole = GgufFile::open(&out.path().join("test-F32.gguf")).unwrap();
    let joined = GgufFile::open(&files[1]).unwrap();
    for tensor in whole.tensors() {
        assert_eq!(whole.read(&tensor.name).unwrap(), joined.read(&tensor.name).unwrap());
    }
    assert!(GgufModel::open(&files[0]).is_ok());
}

#[test]
fn nothing_is_left_of_a_file_that_could_not_be_written() {
    let (home, _) = stored(&models()[3]);
    let out = tempfile::tempdir().unwrap();
    let poisoned = qwen_tune_weights::MemorySource::from_f32([("norm.weight".to_owned(), vec![8], vec![f32::NAN; 8])]);
    let poisoned = poisoned.unwrap();
    let model = ModelDir::open(home.path()).unwrap();
    let change = crate::export::Change::Full(&poisoned);
    let faults = write(&model, Some(change), out.path(), &options(&[Quant::F16, Quant::Q8_0])).unwrap_err();
    assert_eq!(
        texts(faults),
        ["tensor `norm.weight` holds a number that is not finite; no quantised file could hold it"]
    );
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
}

#[test]
fn numbers_beyond_f16_are_told_of() {
    let (_home, model) = stored(&models()[3]);
    let out = tempfile::tempdir().unwrap();
    let large = qwen_tune_weights::MemorySource::from_f32([("lm_head.weight".to_owned(), vec![24, 8], vec![1e5; 192])]);
    let large = large.unwrap();
    let change = crate::export::Change::Full(&large);
    let report = write(&model, Some(change), out.path(), &options(&[Quant::BF16, Quant::F16])).unwrap();
    assert_eq!(
        report.warnings,
        [
            "1 tensor(s) of the F16 file, such as `output.weight`, hold numbers beyond 65504, which F16 makes infinite; write BF16 instead"
        ]
    );
}

#[test]
fn a_window_is_told_of() {
    let mut config = models()[8].clone();
    config["sliding_window"] = json!(16);
    let spec = family::resolve(&config).unwrap();
    assert_eq!(
        warnings(&spec),
        ["the model attends within a window of 16 tokens; llama.cpp lets it see all of a longer text"]
    );
}

#[test]
fn what_a_file_lacks_or_has_too_much_is_reported_together() {
    let (_home, model) = stored(&models()[3]);
    let out = tempfile::tempdir().unwrap();
    write(&model, None, out.path(), &options(&[Quant::F32])).unwrap();
    let path = out.path().join("test-F32.gguf");
    let file = GgufFile::open(&path).unwrap();
    let changed = out.path().join("changed.gguf");
    let rewrite = |metadata: &qwen_tune_weights::gguf::Metadata| {
        let renamed =
            |name: &str| if name == "blk.1.attn_k.weight" { "blk.1.attn_x.weight".to_owned() } else { name.to_owned() };
        let mut writer = qwen_tune_weights::gguf::GgufWriter::create(&changed, metadata).unwrap();
        let mut plan = file.tensors().to_vec();
        plan.iter_mut().for_each(|tensor| tensor.name = renamed(&tensor.name));
        writer.declare(&plan).unwrap();
        for tensor in file.tensors() {
            writer.write(&renamed(&tensor.name), &file.read(&tensor.name).unwrap()).unwrap();
        }
        writer.close().unwrap();
        let place = changed.display().to_string();
        texts(GgufModel::open(&changed).unwrap_err()).iter().map(|text| text.replace(&place, "F")).collect::<Vec<_>>()
    };
    let mut metadata = file.metadata().clone();
    metadata.insert("qwen3.feed_forward_length", 16_u32);
    let found = rewrite(&metadata);
    assert_eq!(found.len(), 2 * 3 + 2, "{found:?}");
    assert_eq!(found[0], "tensor `blk.0.ffn_gate.weight` of `F` has shape [12, 8]; its keys call for [16, 8]");
    assert!(found.contains(&"`F` has no tensor `blk.1.attn_k.weight` [8, 8]".to_owned()), "{found:?}");
    assert!(
        found.contains(
            &"tensor `blk.1.attn_x.weight` of `F` is not part of the model that its keys describe".to_owned()
        )
    );
    metadata.insert("general.architecture", "qwen33");
    assert_eq!(
        rewrite(&metadata),
        [
            "`F` is of architecture `qwen33`, did you mean `qwen3`?; known: `qwen2`, `qwen2moe`, `qwen3`, `qwen3moe`, `qwen3next`, `qwen35`, `qwen35moe`, `llama`"
        ]
    );
    let mut metadata = file.metadata().clone();
    metadata.remove("qwen3.block_count");
    metadata.remove("qwen3.embedding_length");
    metadata.insert("qwen3.attention.head_count", "four");
    assert_eq!(
        rewrite(&metadata),
        [
            "`F` has no key `qwen3.block_count`",
            "`F` has no key `qwen3.embedding_length`",
            "`F` has `four` for key `qwen3.attention.head_count`; expected a whole number, the same in all layers",
        ]
    );
}

/// A file stands for a directory wherever one is opened: for merging, for exporting again, for its tokenizer.
#[test]
fn a_file_is_one_more_kind_of_model_directory() {
    for config in models() {
        let (_home, model) = stored(&config);
        let out = tempfile::tempdir().unwrap();
        write(&model, None, out.path(), &options(&[Quant::F32])).unwrap();
        let path = out.path().join("test-F32.gguf");
        let opened = ModelDir::open(&path).unwrap();
        assert_eq!((opened.path.as_path(), opened.passengers.len()), (path.as_path(), 0));
        assert_eq!(opened.eos_ids(), [18, 2]);
        assert_eq!(opened.tokenizer_files().unwrap(), ["tokenizer.json", "tokenizer_config.json"]);
        assert_eq!(opened.defining_files().unwrap(), [("test-F32.gguf".to_owned(), path.clone())]);
        for tensor in &model.inventory {
            let (before, after) = (model.read_f32(tensor).unwrap(), opened.read_f32(tensor).unwrap());
            assert!(before.iter().zip(&after).all(|(one, other)| (one - other).abs() < 3e-7), "{}", tensor.name);
        }

        let again = WriteOptions { name: "again".to_owned(), ..options(&[Quant::F32]) };
        write(&opened, None, out.path(), &again).unwrap();
        let (first, second) =
            (GgufFile::open(&path).unwrap(), GgufFile::open(&out.path().join("again-F32.gguf")).unwrap());
        assert_eq!(first.tensors().len(), second.tensors().len());
        for tensor in first.tensors() {
            let (one, other) = (first.read_f32(&tensor.name).unwrap(), second.read_f32(&tensor.name).unwrap());
            assert!(one.iter().zip(&other).all(|(one, other)| (one - other).abs() < 5e-7), "{}", tensor.name);
        }
        let tokens = |file: &GgufFile| file.metadata().get("tokenizer.ggml.tokens").cloned();
        assert_eq!(tokens(&first), tokens(&second));

        let nothing = qwen_tune_weights::MemorySource::default();
        let change = crate::export::Change::Full(&nothing);
        let merged = crate::export::merge(&opened, change, &out.path().join("merged")).unwrap();
        assert_eq!(merged.copied, ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]);
        let merged = ModelDir::open(&merged.path).unwrap();
        assert_eq!(merged.spec, opened.spec);
        let last = merged.inventory.last().unwrap();
        assert_eq!(merged.read_f32(last).unwrap(), opened.read_f32(last).unwrap());
    }
}

#[test]
fn a_tokenizer_beside_a_file_goes_before_the_files_own() {
    let (home, model) = stored(&models()[3]);
    write(&model, None, home.path(), &options(&[Quant::F32])).unwrap();
    let path = home.path().join("test-F32.gguf");
    let opened = ModelDir::open(&path).unwrap();
    let read = |model: &ModelDir| fs::read_to_string(model.file("tokenizer.json").unwrap()).unwrap();
    assert_eq!(read(&opened), tokenizer().to_string());
    let names: Vec<String> = opened.defining_files().unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["test-F32.gguf", "tokenizer.json", "tokenizer_config.json"]);
    let directory = opened.side_directory().to_owned();
    drop(opened);
    assert!(!directory.exists());
    fs::write(&path, "GGUF").unwrap();
    assert_eq!(ModelDir::open(&path).unwrap_err().len(), 1);
}

/// Tensors of many pieces of work, read by many threads at once.
#[test]
fn a_large_file_is_written_again_without_waiting_for_itself() {
    let mut config = models()[8].clone();
    for (field, value) in
        [("hidden_size", 256), ("intermediate_size", 1500), ("head_dim", 64), ("num_attention_heads", 4)]
    {
        config[field] = value.into();
    }
    let (_home, model) = stored(&config);
    let out = tempfile::tempdir().unwrap();
    write(&model, None, out.path(), &options(&[Quant::Q8_0])).unwrap();
    let opened = ModelDir::open(out.path().join("test-Q8_0.gguf")).unwrap();
    let again = WriteOptions { name: "again".to_owned(), ..options(&[Quant::F32]) };
    write(&opened, None, out.path(), &again).unwrap();
    let open = |name: &str| GgufFile::open(&out.path().join(name)).unwrap();
    let (first, second) = (open("test-Q8_0.gguf"), open("again-F32.gguf"));
    for tensor in first.tensors() {
        assert_eq!(first.read_f32(&tensor.name).unwrap(), second.read_f32(&tensor.name).unwrap(), "{}", tensor.name);
    }
}

#[test]
fn what_was_written_is_held_against_what_was_to_be_written() {
    let out = tempfile::tempdir().unwrap();
    let (_home, model) = stored(&models()[0]);
    let all = options(&[Quant::F32, Quant::Q8_0]);
    let report = write(&model, None, out.path(), &all).unwrap();
    report.models.iter().for_each(|written| examine(&model, written, &all).unwrap());
    // As if it were the other one: another type of file, and other types of tensors.
    let mistaken = WrittenGguf { quant: Quant::F32, ..report.models[1].clone() };
    let faults: Vec<String> = examine(&model, &mistaken, &all).unwrap_err().iter().map(ToString::to_string).collect();
    assert!(faults.iter().any(|fault| fault.contains("`general.file_type` has another value")), "{faults:?}");
    assert!(faults.iter().any(|fault| fault.contains("as F16, not `token_embd.weight` [24, 8] as F32")), "{faults:?}");
}
