//! GGUF export and import by hand, for `scripts/check_gguf.py` until the program has commands for them.
//!
//! ```text
//! gguf export BASE OUT NAME QUANT,QUANT [ADAPTER]    a model, with an adapter merged into it
//! gguf adapter BASE ADAPTER FILE                     an adapter alone
//! gguf read FILE OUT                                 a model directory from a file
//! ```

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program, if a small one")]

use std::{error::Error, fs, path::Path, process::ExitCode};

use qwen_tune_qwen::export::Change;
use qwen_tune_qwen::gguf::{About, GgufError, GgufModel, Quant, WriteOptions, write, write_adapter};
use qwen_tune_qwen::{ModelDir, ModelError};
use qwen_tune_weights::peft::{Adapter, AdapterError};
use qwen_tune_weights::{Metadata, SafetensorsWriter, TensorSink, TensorSource};
use serde_json::json;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Result<(), Box<dyn Error>> {
    match *arguments {
        ["export", base, out, name, quants] => export(base, out, name, quants, None),
        ["export", base, out, name, quants, adapter] => export(base, out, name, quants, Some(adapter)),
        ["adapter", base, adapter, file] => {
            let model = ModelDir::open(base).map_err(|e| joined(&e))?;
            let adapter = Adapter::read(Path::new(adapter)).map_err(|e| joined::<AdapterError>(&e))?;
            write_adapter(&model, &adapter, Path::new(file), &about(base)).map_err(|e| joined::<GgufError>(&e))?;
            Ok(())
        }
        ["read", file, out] => read(Path::new(file), Path::new(out)),
        _ => {
            Err("usage: gguf export BASE OUT NAME QUANTS [ADAPTER] | adapter BASE ADAPTER FILE | read FILE OUT".into())
        }
    }
}

fn about(base: &str) -> About {
    About { name: "check".to_owned(), base: Some(base.to_owned()), ..About::default() }
}

fn export(base: &str, out: &str, name: &str, quants: &str, adapter: Option<&str>) -> Result<(), Box<dyn Error>> {
    let model = ModelDir::open(base).map_err(|e| joined::<ModelError>(&e))?;
    let adapter =
        adapter.map(|path| Adapter::read(Path::new(path)).map_err(|e| joined::<AdapterError>(&e))).transpose()?;
    let quants = quants.split(',').map(str::parse).collect::<Result<Vec<Quant>, _>>()?;
    let options = WriteOptions { name: name.to_owned(), quants, about: about(base), shard_bytes: u64::MAX };
    fs::create_dir_all(out)?;
    let report = write(&model, adapter.as_ref().map(Change::Adapter), Path::new(out), &options)
        .map_err(|e| joined::<GgufError>(&e))?;
    report.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    for file in report.models.iter().flat_map(|model| &model.files) {
        println!("{}", file.display());
    }
    Ok(())
}

fn read(file: &Path, out: &Path) -> Result<(), Box<dyn Error>> {
    let model = GgufModel::open(file).map_err(|e| joined(&e))?;
    fs::create_dir_all(out)?;
    fs::write(out.join("config.json"), model.config().to_string())?;
    let (tokenizer, settings) = model.tokenizer().map_err(joined)?;
    fs::write(out.join("tokenizer.json"), tokenizer.to_string())?;
    fs::write(out.join("tokenizer_config.json"), settings.to_string())?;
    let metadata = Metadata::from([("format".to_owned(), "pt".to_owned())]);
    let mut sink = Box::new(SafetensorsWriter::create(&out.join("model.safetensors"), metadata)?);
    sink.declare(model.tensors())?;
    for tensor in model.tensors() {
        sink.write(&tensor.name, &model.read(&tensor.name)?)?;
    }
    sink.finish()?;
    println!("{}", json!({ "architecture": model.architecture(), "tensors": model.tensors().len() }));
    Ok(())
}

fn joined<E: Error>(errors: &[E]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
