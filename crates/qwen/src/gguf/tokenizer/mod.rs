//! [`Tokenizer`]: the tokenizer of a model directory as the keys of a GGUF file, and back.

mod pre;
mod rebuild;
mod template;

use std::{
    collections::{HashMap, HashSet},
    fs,
};

use qwen_tune_weights::WeightError;
use qwen_tune_weights::gguf::{Metadata, Strings};
use serde::Deserialize;
use serde_json::Value;

use self::pre::Pre;
use self::template::{DEFAULT, config, templates};
use super::GgufError;
use crate::ModelDir;

pub(super) use rebuild::{Rebuilt, rebuild};

const FILE: &str = "tokenizer.json";
/// `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// Texts that end a generation in llama.cpp wherever they occur as a token.
const ENDS: [&str; 5] = ["<|im_end|>", "<|endoftext|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"];

/// A byte-level tokenizer, and what text is like around a conversation.
#[derive(Debug)]
pub(super) struct Tokenizer {
    pre: &'static Pre,
    tokens: Vec<String>,
    types: Vec<i32>,
    merges: Strings,
    begins_with_bos: bool,
    special: Special,
    templates: Vec<(String, String)>,
    /// What the file cannot say, for people.
    pub(super) warnings: Vec<String>,
}

/// Ids of tokens that mean something.
#[derive(Debug, Default)]
struct Special {
    bos: Option<u32>,
    eos: Option<u32>,
    /// Another that ends a turn.
    eot: Option<u32>,
    padding: Option<u32>,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    id: usize,
    content: String,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Model {
    /// Absent in old files.
    #[serde(default, rename = "type")]
    kind: Option<String>,
    vocab: HashMap<String, usize>,
    #[serde(default)]
    merges: Vec<Merge>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Text(String),
    Pair(String, String),
}

impl Tokenizer {
    /// Reads the tokenizer of a model directory. Everything that cannot be written is reported.
    pub(super) fn read(model: &ModelDir) -> Result<Self, Vec<GgufError>> {
        let path = model.side_directory().join(FILE);
        if !path.is_file() {
            return Err(vec![GgufError::NoTokenizer { path }]);
        }
        let wrong = |reason: String| GgufError::Tokenizer { path: path.clone(), reason };
        let text = fs::read(&path).map_err(WeightError::io("read", &path)).map_err(one)?;
        let file: File = serde_json::from_slice(&text).map_err(|error| vec![wrong(unreadable(&text, &error))])?;
        let mut faults = Vec::new();
        let pre = match file.way() {
            Ok(pre) => Some(pre),
            Err(reason) => {
                faults.push(wrong(reason));
                None
            }
        };
        let (tokens, types) = match file.vocabulary(model.spec.vocab_size) {
            Ok(vocabulary) => vocabulary,
            Err(reasons) => {
                faults.extend(reasons.into_iter().map(&wrong));
                Default::default()
            }
        };
        let config = config(model.side_directory()).unwrap_or_else(|fault| {
            faults.push(fault);
            Value::Null
        });
        let templates = templates(model.side_directory(), &config).unwrap_or_else(|fault| {
            faults.push(fault);
            Vec::new()
        });
        let (Some(pre), true) = (pre, faults.is_empty()) else {
            return Err(faults);
        };
        let mut warnings = Vec::new();
        let special = Special::read(model, &config, &tokens, &mut warnings);
        let begins_with_bos = match config["add_bos_token"].as_bool() {
            Some(on) => on,
            None => special.bos.is_some_and(|bos| file.begins_with(&tokens[bos as usize])),
        };
        Ok(Self { pre, types, merges: file.merges(), begins_with_bos, special, templates, tokens, warnings })
    }

    /// The keys, in the order of llama.cpp's own converter.
    pub(super) fn put(&self, metadata: &mut Metadata) {
        metadata.push("tokenizer.ggml.model", "gpt2");
        metadata.push("tokenizer.ggml.pre", self.pre.name);
        metadata.push("tokenizer.ggml.tokens", self.tokens.as_slice());
        metadata.push("tokenizer.ggml.token_type", self.types.clone());
        if !self.merges.is_empty() {
            metadata.push("tokenizer.ggml.merges", self.merges.clone());
        }
        let ids = [
            ("bos", self.special.bos),
            ("eos", self.special.eos),
            ("eot", self.special.eot),
            ("padding", self.special.padding),
        ];
        for (name, id) in ids {
            if let Some(id) = id {
                metadata.push(format!("tokenizer.ggml.{name}_token_id"), id);
            }
        }
        metadata.push("tokenizer.ggml.add_bos_token", self.begins_with_bos);
        metadata.push("tokenizer.ggml.add_eos_token", false);
        let others: Vec<&str> =
            self.templates.iter().map(|(name, _)| name.as_str()).filter(|name| *name != DEFAULT).collect();
        for (name, text) in &self.templates {
            let suffix = if name == DEFAULT { String::new() } else { format!(".{name}") };
            metadata.push(format!("tokenizer.chat_template{suffix}"), text.as_str());
        }
        if !others.is_empty() {
            metadata.push("tokenizer.chat_templates", others.as_slice());
        }
    }
}

impl File {
    fn way(&self) -> Result<&'static Pre, String> {
        let model = &self.model;
        if model.kind.as_deref().is_some_and(|kind| kind != "BPE") || model.byte_fallback {
            let kind = model.kind.as_deref().unwrap_or("BPE");
            let fallback = if model.byte_fallback { " with `byte_fallback`" } else { "" };
            return Err(format!("its model is {kind}{fallback}; only byte-level BPE can be written to GGUF files"));
        }
        let pre = Pre::of(&self.pre_tokenizer).map_err(|found| {
            let known: Vec<&str> = pre::WAYS.iter().map(|way| way.name).collect();
            format!("it cuts text by {found}, which llama.cpp has no name for; it knows `{}`", known.join("`, `"))
        })?;
        if model.ignore_merges != pre.ignore_merges {
            let (found, name) = (model.ignore_merges, pre.name);
            return Err(format!("`ignore_merges` is {found}, which llama.cpp does otherwise for `{name}`"));
        }
        Ok(pre)
    }

    /// Text and type of every row of the embedding.
    fn vocabulary(&self, rows: usize) -> Result<(Vec<String>, Vec<i32>), Vec<String>> {
        let mut found: Vec<Option<(&str, i32)>> = vec![None; rows];
        let mut faults = Vec::new();
        let base = self.model.vocab.iter().map(|(text, &id)| (id, text.as_str(), NORMAL));
        let added = self.added_tokens.iter().map(|token| (token.id, token.content.as_str(), token.kind()));
        let mut beyond = Vec::new();
        for (id, text, kind) in base.chain(added) {
            match found.get_mut(id) {
                Some(place) => *place = Some((text, kind)),
                None => beyond.push((id, text)),
            }
        }
        if let Some((id, text)) = beyond.iter().max() {
            let count = beyond.len();
            faults.push(format!(
                "{count} tokens, such as `{text}` with id {id}, are beyond the {rows} rows of the embedding"
            ));
        }
        let texts: HashSet<&str> = found.iter().flatten().map(|(text, _)| *text).collect();
        if texts.len() < found.iter().flatten().count() {
            let mut seen = HashSet::new();
            let twice = found.iter().flatten().find(|(text, _)| !seen.insert(*text)).map_or("", |(text, _)| text);
            faults.push(format!("two ids have the text `{twice}`; llama.cpp does not load such a vocabulary"));
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let named = |(id, token): (usize, &Option<(&str, i32)>)| match token {
            Some((text, kind)) => ((*text).to_owned(), *kind),
            None => (filler(id, &texts), UNUSED),
        };
        Ok(found.iter().enumerate().map(named).unzip())
    }

    fn merges(&self) -> Strings {
        // A blank inside a part would look like the one between the parts.
        let blank = |part: &str| part.replace(' ', "\u{120}");
        self.model
            .merges
            .iter()
            .map(|merge| match merge {
                Merge::Text(text) => text.clone(),
                Merge::Pair(left, right) => format!("{} {}", blank(left), blank(right)),
            })
            .collect()
    }

    /// Whether the post-processor puts this token before every text.
    fn begins_with(&self, token: &str) -> bool {
        let steps = self.post_processor["processors"].as_array().map(Vec::as_slice);
        let steps = steps.unwrap_or(std::slice::from_ref(&self.post_processor));
        steps.iter().any(|step| step["single"][0]["SpecialToken"]["id"] == token)
    }
}

impl Added {
    fn kind(&self) -> i32 {
        let looks_special = self.content.starts_with("<|") && self.content.ends_with("|>");
        if self.special || looks_special { CONTROL } else { USER_DEFINED }
    }
}

/// A text for a row without a token, like no token's.
fn filler(id: usize, taken: &HashSet<&str>) -> String {
    let mut text = format!("[PAD{id}]");
    while taken.contains(text.as_str()) {
        text.insert(text.len() - 1, '_');
    }
    text
}

impl Special {
    fn read(model: &ModelDir, config: &Value, tokens: &[String], warnings: &mut Vec<String>) -> Self {
        let by_text: HashMap<&str, u32> = tokens.iter().zip(0..).map(|(text, id)| (text.as_str(), id)).collect();
        let named = |field: &str| {
            let text = config[field].as_str().or_else(|| config[field]["content"].as_str())?;
            by_text.get(text).copied()
        };
        let known = |id: &u32| (*id as usize) < tokens.len();
        let stops: Vec<u32> = model.eos_ids().into_iter().filter(known).collect();
        let eos = named("eos_token").or(stops.first().copied());
        let ends_anyway = |id: &u32| Some(*id) == eos || ENDS.contains(&tokens[*id as usize].as_str());
        let mut further = stops.into_iter().filter(|id| !ends_anyway(id));
        let eot = further.next();
        for id in further {
            let text = &tokens[id as usize];
            warnings.push(format!("token {id} `{text}` also ends a text; GGUF files have no key for a third one"));
        }
        Self { bos: named("bos_token"), eos, eot, padding: named("pad_token") }
    }
}

/// Why a file is no byte-level tokenizer: other kinds hold their vocabulary in other shapes, which says nothing to people.
fn unreadable(text: &[u8], error: &serde_json::Error) -> String {
    let kind =
        serde_json::from_slice::<Value>(text).ok().and_then(|file| Some(file["model"]["type"].as_str()?.to_owned()));
    match kind {
        Some(kind) if kind != "BPE" => {
            format!("its model is {kind}; only byte-level BPE can be written to GGUF files")
        }
        _ => error.to_string(),
    }
}

fn one(error: WeightError) -> Vec<GgufError> {
    vec![error.into()]
}
