//! An encoder from the files of a model directory.

use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::Tokenizer;

use super::Encoder;
use crate::chat::{ChatTemplate, Mask, Moment, SpecialTexts};
use crate::error::DataError;
use crate::tokens::TokensConfig;

/// Special tokens that templates may name.
const TOKEN_VARS: [&str; 7] =
    ["bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token"];

impl Encoder {
    /// The encoder of a model directory: `tokenizer.json`, what `tokenizer_config.json` says, and the chat template.
    /// `vocab_size` is the model's, which may be larger than the tokenizer's.
    pub fn from_dir(directory: &Path, config: &TokensConfig, vocab_size: usize) -> Result<Self, DataError> {
        let path = directory.join("tokenizer.json");
        if !path.is_file() {
            let message = "no such file; the tokenizer must be in this form".into();
            return Err(DataError::Tokenizer { path, message });
        }
        let bytes = std::fs::read(&path).map_err(|e| DataError::io(&path, e))?;
        let tokenizer = crate::source::guard(&path, || {
            Tokenizer::from_bytes(&bytes)
                .map_err(|e| DataError::Tokenizer { path: path.clone(), message: e.to_string() })
        })?;
        let settings = tokenizer_config(directory)?;
        Self::new(tokenizer, &settings, directory, config, vocab_size)
    }

    fn new(
        mut tokenizer: Tokenizer,
        settings: &Value,
        directory: &Path,
        config: &TokensConfig,
        vocab: usize,
    ) -> Result<Self, DataError> {
        check_settings(config, vocab)?;
        // Some exports leave the padding of the last training run behind.
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|e| DataError::Tokenizer { path: directory.to_owned(), message: e.to_string() })?;
        let today = match &config.template_date {
            None => Moment::now(),
            Some(date) => Moment::from_date(date).ok_or_else(|| DataError::Setting {
                key: "tokens.template_date",
                found: format!("{date:?}"),
                expected: "a date as `YYYY-MM-DD`",
            })?,
        };
        let template = ChatTemplate::of_model(directory, settings, config.template.as_deref(), today)?;
        let added = tokenizer.get_added_tokens_decoder();
        let special = SpecialTexts::new(added.values().filter(|t| t.special).map(|t| t.content.clone()));
        let added = added.into_keys().collect();
        let id = |token: &str| tokenizer.token_to_id(token);
        let frame = id("<|im_start|>").zip(id("<|im_end|>"));
        let chatml = match frame {
            Some((start, end)) if template.source().contains("<|im_start|>") => Mask::ChatMl { start, end },
            _ => Mask::None,
        };
        let template = Some(template).filter(|t| frame.is_some() || !t.is_built_in());
        let mut vars = Map::new();
        for name in TOKEN_VARS {
            if let Some(token) = token_text(settings, name) {
                vars.insert(name.to_owned(), token.into());
            }
        }
        vars.extend(config.template_vars.clone());
        let eos = token_text(settings, "eos_token").and_then(id);
        Ok(Self {
            bos: begin(&tokenizer, settings),
            document_end: id("<|endoftext|>").or(eos),
            begin: token_text(settings, "bos_token").and_then(id),
            pad: token_text(settings, "pad_token").and_then(id),
            added,
            eos,
            template,
            config: config.clone(),
            vars,
            vocab,
            special,
            chatml,
            tokenizer,
        })
    }
}

fn check_settings(config: &TokensConfig, vocab: usize) -> Result<(), DataError> {
    if config.max_length < 2 {
        let expected = "at least 2: a token and one that follows it";
        return Err(DataError::Setting { key: "tokens.max_length", found: config.max_length.to_string(), expected });
    }
    if vocab == 0 || i32::try_from(vocab).is_err() {
        return Err(DataError::Setting {
            key: "vocab_size",
            found: vocab.to_string(),
            expected: "between 1 and 2147483647",
        });
    }
    Ok(())
}

/// `tokenizer_config.json`, with the special tokens of an older `special_tokens_map.json` where it names none.
fn tokenizer_config(directory: &Path) -> Result<Value, DataError> {
    let mut settings = read_object(&directory.join("tokenizer_config.json"))?;
    for (name, token) in read_object(&directory.join("special_tokens_map.json"))? {
        settings.entry(name).or_insert(token);
    }
    Ok(Value::Object(settings))
}

fn read_object(path: &Path) -> Result<Map<String, Value>, DataError> {
    if !path.is_file() {
        return Ok(Map::new());
    }
    let bytes = std::fs::read(path).map_err(|e| DataError::io(path, e))?;
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(DataError::damaged(path, "it is not a JSON object")),
        Err(error) => Err(DataError::damaged(path, error.to_string())),
    }
}

/// A special token, given as text or as an object that describes it.
fn token_text<'a>(settings: &'a Value, name: &str) -> Option<&'a str> {
    let token = settings.get(name)?;
    token.as_str().or_else(|| token.get("content").and_then(Value::as_str))
}

/// The token that the tokenizer puts before a text, unless its settings say that it does not.
fn begin(tokenizer: &Tokenizer, settings: &Value) -> Option<u32> {
    let bos = token_text(settings, "bos_token").and_then(|token| tokenizer.token_to_id(token))?;
    let adds = settings
        .get("add_bos_token")
        .and_then(Value::as_bool)
        .unwrap_or_else(|| tokenizer.encode("a", true).is_ok_and(|encoding| encoding.get_ids().first() == Some(&bos)));
    adds.then_some(bos)
}
