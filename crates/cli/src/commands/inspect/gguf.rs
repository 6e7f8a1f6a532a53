//! A GGUF file for people: what its keys say, and in which types its numbers are stored. Files of any architecture are
//! described; whether one can be a base here is told too.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use qwen_tune_qwen::gguf::{GgufModel, Quant};
use qwen_tune_weights::gguf::{GgufFile, Metadata, TensorType};
use serde_json::{Value, json};

use super::layers;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::terminal::{Table, bytes, count};

const MAGIC: [u8; 4] = *b"GGUF";

/// Whether a file is one, by its name or its first bytes: the files of Ollama's store have no extension.
pub(super) fn is_gguf(path: &Path) -> bool {
    let begins = || -> Option<bool> {
        let mut magic = [0; 4];
        File::open(path).ok()?.read_exact(&mut magic).ok()?;
        Some(magic == MAGIC)
    };
    let is_named = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    path.is_file() && (is_named || begins().unwrap_or(false))
}

/// Everything a file says of itself, for programs and for people.
pub(super) fn describe(path: &Path) -> Result<(Value, String), Diagnostics> {
    let file = GgufFile::open(path).map_err(|e| Diagnostics::from(Diagnostic::mistake_from("gguf", &e)))?;
    let keys = Keys(file.metadata());
    let types = Stored::of(&file);
    let mut table = Table::new(["", ""]);
    let mut row = |name: &str, text: Option<String>| {
        if let Some(text) = text {
            table.row([name.to_owned(), text]);
        }
    };
    let is_adapter = keys.text("general.type") == Some("adapter");
    let architecture = keys.text("general.architecture");
    let kind = if is_adapter { ", an adapter" } else { "" };
    row("architecture", architecture.map(|name| format!("{name}{kind}")));
    row("name", keys.text("general.name").map(str::to_owned));
    let file_type = keys.number("general.file_type");
    let type_name = file_type.and_then(|id| u32::try_from(id).ok()).and_then(Quant::of_file_type).map(Quant::name);
    row("file type", file_type.map(|id| type_name.map_or_else(|| format!("number {id}"), str::to_owned)));
    let (parameters, stored) = (types.iter().map(|ty| ty.elements).sum(), types.iter().map(|ty| ty.bytes).sum());
    row("parameters", Some(count(parameters)));
    row("on disk", Some(format!("{} in {} file(s)", bytes(stored), file.files().len())));
    for (index, ty) in types.iter().enumerate() {
        let text =
            format!("{}: {} tensor(s), {} numbers, {}", ty.ty, count(ty.tensors), count(ty.elements), bytes(ty.bytes));
        row(if index == 0 { "stored as" } else { "" }, Some(text));
    }
    let of_kind = |key: &str| keys.number(&format!("{}.{key}", architecture.unwrap_or_default()));
    let (layers, hidden, context) = (of_kind("block_count"), of_kind("embedding_length"), of_kind("context_length"));
    let tokens = keys.length("tokenizer.ggml.tokens");
    row("hidden", hidden.map(count));
    row("positions", context.map(count));
    let (tokenizer, pre) = (keys.text("tokenizer.ggml.model"), keys.text("tokenizer.ggml.pre"));
    row("tokenizer", tokenizer.map(|name| tokenizer_line(name, pre, tokens)));
    let template = keys.text("tokenizer.chat_template");
    if !is_adapter {
        row("chat template", Some(if template.is_some() { "yes" } else { "no" }.to_owned()));
    }
    let base = keys.text("general.base_model.0.repo_url").or_else(|| keys.text("general.base_model.0.name"));
    row("base model", base.map(str::to_owned));
    let lock = keys.text("qwen_tune.base_lock.digest");
    row("base's lock", lock.map(str::to_owned));
    let license = keys.text("general.license");
    row("license", license.map(str::to_owned));
    let alpha = keys.0.get("adapter.lora.alpha").and_then(|value| value.as_f32());
    row("alpha", alpha.map(|alpha| alpha.to_string()));
    // Opening reads headers only, and says what a run would say.
    let opened = (!is_adapter).then(|| GgufModel::open(path));
    if !matches!(opened, Some(Ok(_))) {
        row("layers", layers.map(count));
    }
    match &opened {
        Some(Ok(model)) => {
            layers::rows(&model.spec().layers).into_iter().for_each(|[name, text]| row(&name, Some(text)));
            row("as a base", Some("yes".to_owned()));
        }
        Some(Err(faults)) => {
            for (index, fault) in faults.iter().enumerate() {
                row(if index == 0 { "as a base" } else { "" }, Some(format!("no: {fault}")));
            }
        }
        None => {}
    }
    let faults: Option<Vec<String>> = opened.map(|opened| match opened {
        Ok(_) => Vec::new(),
        Err(faults) => faults.iter().map(ToString::to_string).collect(),
    });
    let stored_as: Vec<Value> = types.iter().map(Stored::json).collect();
    let value = json!({
        "kind": if is_adapter { "gguf-adapter" } else { "gguf" },
        "architecture": architecture,
        "name": keys.text("general.name"),
        "file_type": file_type,
        "file_type_name": type_name,
        "parameters": parameters,
        "bytes": stored,
        "files": file.files().len(),
        "types": stored_as,
        "hidden": hidden,
        "layers": layers,
        "context_length": context,
        "tokenizer": { "model": tokenizer, "pre": pre, "tokens": tokens },
        "chat_template": template.is_some(),
        "base_model": base,
        "base_lock": lock,
        "license": license,
        "alpha": alpha,
        "faults_as_base": faults,
    });
    Ok((value, table.render(0)))
}

fn tokenizer_line(model: &str, pre: Option<&str>, tokens: Option<u64>) -> String {
    let pre = pre.map(|pre| format!(", split as {pre}")).unwrap_or_default();
    let tokens = tokens.map(|tokens| format!(", {} tokens", count(tokens))).unwrap_or_default();
    format!("{model}{pre}{tokens}")
}

/// Keys that may hold anything, or be absent.
struct Keys<'a>(&'a Metadata);

impl<'a> Keys<'a> {
    fn text(&self, key: &str) -> Option<&'a str> {
        self.0.get(key)?.as_str()
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.0.get(key)?.as_u64()
    }

    fn length(&self, key: &str) -> Option<u64> {
        Some(self.0.get(key)?.as_array()?.len() as u64)
    }
}

/// What is stored in one type.
struct Stored {
    ty: TensorType,
    tensors: u64,
    elements: u64,
    bytes: u64,
}

impl Stored {
    /// The types of a file, that with most bytes first.
    fn of(file: &GgufFile) -> Vec<Self> {
        let mut found: Vec<Self> = Vec::new();
        for tensor in file.tensors() {
            let index = found.iter().position(|known| known.ty == tensor.ty).unwrap_or_else(|| {
                found.push(Self { ty: tensor.ty, tensors: 0, elements: 0, bytes: 0 });
                found.len() - 1
            });
            found[index].tensors += 1;
            found[index].elements += tensor.elements() as u64;
            found[index].bytes += tensor.bytes().unwrap_or_default() as u64;
        }
        found.sort_by(|one, other| other.bytes.cmp(&one.bytes).then(one.ty.name().cmp(other.ty.name())));
        found
    }

    fn json(&self) -> Value {
        json!({ "type": self.ty.name(), "tensors": self.tensors, "numbers": self.elements, "bytes": self.bytes })
    }
}
