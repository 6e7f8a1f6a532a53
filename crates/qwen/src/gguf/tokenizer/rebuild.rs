//! [`rebuild`]: `tokenizer.json` and `tokenizer_config.json` from the keys of a GGUF file.

use std::path::Path;

use qwen_tune_weights::gguf::Metadata;
use serde_json::{Map, Value, json};

use super::pre::Pre;
use super::{CONTROL, NORMAL, UNUSED, USER_DEFINED};
use crate::gguf::GgufError;

/// The files of a tokenizer.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::gguf) struct Rebuilt {
    /// `tokenizer.json`.
    pub(in crate::gguf) tokenizer: Value,
    /// `tokenizer_config.json`, the chat template inside.
    pub(in crate::gguf) config: Value,
    /// The ids that end a text, as in `generation_config.json`.
    pub(in crate::gguf) eos: Vec<u32>,
}

/// Makes the files. Everything that stands in the way is reported.
pub(in crate::gguf) fn rebuild(path: &Path, metadata: &Metadata) -> Result<Rebuilt, Vec<GgufError>> {
    let mut faults = Vec::new();
    let mut wrong = |key: &str, found: String, expected: &str| {
        faults.push(GgufError::WrongKey {
            path: path.to_owned(),
            key: key.to_owned(),
            found,
            expected: expected.to_owned(),
        });
    };
    let text = |key: &str| metadata.get(key).and_then(|value| value.as_str());
    let absent = || "nothing".to_owned();
    let model = text("tokenizer.ggml.model");
    if model != Some("gpt2") {
        let found = model.map_or_else(absent, |name| format!("`{name}`"));
        wrong("tokenizer.ggml.model", found, "`gpt2`: only byte-level BPE is read from GGUF files");
    }
    let pre = text("tokenizer.ggml.pre").map_or(Err(None), |name| Pre::named(name).ok_or(Some(name)));
    if let Err(name) = pre {
        let known: Vec<&str> = super::pre::WAYS.iter().map(|way| way.name).collect();
        let found = name.map_or_else(absent, |name| format!("`{name}`"));
        wrong("tokenizer.ggml.pre", found, &format!("one of `{}`", known.join("`, `")));
    }
    let strings = |key: &str| metadata.get(key).and_then(|value| value.as_strings());
    let tokens = strings("tokenizer.ggml.tokens");
    if tokens.is_none() {
        wrong("tokenizer.ggml.tokens", absent(), "a list of texts");
    }
    let count = tokens.map_or(0, |tokens| tokens.len());
    let types = metadata.get("tokenizer.ggml.token_type").and_then(|value| value.as_array()?.to_i64s());
    let types = types.unwrap_or_else(|| vec![NORMAL.into(); count]);
    if types.len() != count {
        wrong("tokenizer.ggml.token_type", format!("{} types", types.len()), &format!("{count}, one for each token"));
    }
    let (Ok(pre), Some(tokens), true) = (pre, tokens, faults.is_empty()) else {
        return Err(faults);
    };

    let mut vocab = Map::new();
    let mut added = Vec::new();
    for (id, (token, &kind)) in tokens.iter().zip(&types).enumerate() {
        if kind == i64::from(CONTROL) || kind == i64::from(USER_DEFINED) {
            let special = kind == i64::from(CONTROL);
            added.push(json!({ "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special }));
        }
        // Added tokens too: the tokenizers library gives those it does not find there ids of its own, behind all others.
        if kind != i64::from(UNUSED) {
            vocab.insert(token.to_owned(), id.into());
        }
    }
    let merges = strings("tokenizer.ggml.merges").map(|merges| merges.iter().collect::<Vec<_>>()).unwrap_or_default();
    let id = |name: &str| metadata.get(&format!("tokenizer.ggml.{name}_token_id")).and_then(|value| value.as_u64());
    let named = |name: &str| id(name).and_then(|id| tokens.get(usize::try_from(id).ok()?));
    let begins = metadata.get("tokenizer.ggml.add_bos_token").and_then(|value| value.as_bool()).unwrap_or(false);
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false });
    let post = match named("bos").zip(id("bos")).filter(|_| begins) {
        None => bytes.clone(),
        Some((bos, id)) => json!({ "type": "Sequence", "processors": [bytes, {
            "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": bos, "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [
                { "SpecialToken": { "id": bos, "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } },
                { "SpecialToken": { "id": bos, "type_id": 1 } }, { "Sequence": { "id": "B", "type_id": 1 } },
            ],
            "special_tokens": { bos: { "id": bos, "ids": [id], "tokens": [bos] } },
        }] }),
    };
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": if pre.composed { json!({ "type": "NFC" }) } else { Value::Null },
        "pre_tokenizer": pre.to_json(),
        "post_processor": post,
        "decoder": bytes,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": pre.ignore_merges, "vocab": vocab, "merges": merges,
        },
    });
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": begins,
        "bos_token": named("bos"),
        "eos_token": named("eos"),
        "pad_token": named("padding"),
        "clean_up_tokenization_spaces": false,
        "chat_template": text("tokenizer.chat_template"),
    });
    let eos = ["eos", "eot"].into_iter().filter_map(id).filter_map(|id| u32::try_from(id).ok()).collect();
    Ok(Rebuilt { tokenizer, config, eos })
}
