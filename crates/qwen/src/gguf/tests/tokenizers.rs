use std::path::Path;

use qwen_tune_weights::gguf::Metadata;

use super::*;
use crate::gguf::tokenizer::{Tokenizer, rebuild};

fn read(change: impl Fn(&mut Value)) -> Result<Metadata, Vec<String>> {
    let (home, model) = stored(&models()[3]);
    let mut file = tokenizer();
    change(&mut file);
    fs::write(home.path().join("tokenizer.json"), file.to_string()).unwrap();
    let mut metadata = Metadata::new();
    let place = home.path().join("tokenizer.json").display().to_string();
    let tokenizer = Tokenizer::read(&model)
        .map_err(|faults| texts(faults).into_iter().map(|text| text.replace(&place, "T")).collect::<Vec<_>>())?;
    tokenizer.put(&mut metadata);
    Ok(metadata)
}

#[test]
fn every_row_of_the_embedding_has_a_token() {
    let metadata = read(|_| {}).unwrap();
    let tokens: Vec<&str> = metadata.get("tokenizer.ggml.tokens").unwrap().as_strings().unwrap().iter().collect();
    assert_eq!(tokens.len(), 24);
    assert_eq!(
        tokens[14..],
        ["ab", "cd", "abcd", "<|endoftext|>", "<|im_end|>", "[PAD19]", "<think>", "[PAD21]", "[PAD22]", "[PAD23]"]
    );
    let types = metadata.get("tokenizer.ggml.token_type").unwrap().as_array().unwrap().to_i64s().unwrap();
    assert_eq!(types[16..], [1, 3, 3, 5, 4, 5, 5, 5]);
    let merges: Vec<&str> = metadata.get("tokenizer.ggml.merges").unwrap().as_strings().unwrap().iter().collect();
    assert_eq!(merges, ["a b", "c d", "ab cd"]);
    let id = |name: &str| metadata.get(&format!("tokenizer.ggml.{name}_token_id")).and_then(|value| value.as_u64());
    // config.json says that 2 ends a text, and the tokenizer that 18 does.
    assert_eq!([id("eos"), id("eot"), id("padding"), id("bos")], [Some(18), Some(2), Some(17), None]);
    assert_eq!(metadata.get("tokenizer.chat_template").unwrap().as_str(), Some("hello"));
    assert_eq!(metadata.get("tokenizer.ggml.pre").unwrap().as_str(), Some("qwen2"));
}

#[test]
fn fillers_are_like_no_token() {
    let metadata = read(|file| file["added_tokens"][2]["content"] = json!("[PAD19]")).unwrap();
    let tokens = metadata.get("tokenizer.ggml.tokens").unwrap().as_strings().unwrap();
    assert_eq!([tokens.get(19), tokens.get(20)], [Some("[PAD19_]"), Some("[PAD19]")]);
}

#[test]
fn tokenizers_that_llama_cpp_has_no_name_for_are_refused() {
    let split = |pattern: &str| {
        let pattern = pattern.to_owned();
        read(move |file| file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!(pattern))
    };
    assert_eq!(
        split(r"\p{L}+").unwrap_err(),
        [
            r#"`T`: it cuts text by the expression "\\p{L}+", which llama.cpp has no name for; it knows `qwen2`, `qwen35`, `llama-bpe`, `smollm`, `gpt-2`"#
        ]
    );
    assert_eq!(
        read(|file| file["model"] = json!({ "type": "Unigram", "vocab": [["a", -1.0]] })).unwrap_err(),
        ["`T`: its model is Unigram; only byte-level BPE can be written to GGUF files"]
    );
    assert_eq!(
        read(|file| file["model"]["byte_fallback"] = json!(true)).unwrap_err(),
        ["`T`: its model is BPE with `byte_fallback`; only byte-level BPE can be written to GGUF files"]
    );
    assert_eq!(
        read(|file| file["model"]["ignore_merges"] = json!(true)).unwrap_err(),
        ["`T`: `ignore_merges` is true, which llama.cpp does otherwise for `qwen2`"]
    );
    assert_eq!(
        read(|file| {
            file["added_tokens"][2]["content"] = json!("ab");
            file["added_tokens"][1]["id"] = json!(24);
        })
        .unwrap_err(),
        [
            "`T`: 1 tokens, such as `<|im_end|>` with id 24, are beyond the 24 rows of the embedding",
            "`T`: two ids have the text `ab`; llama.cpp does not load such a vocabulary",
        ]
    );
}

#[test]
fn absent_and_broken_files_are_named() {
    let (home, model) = stored(&models()[3]);
    fs::write(home.path().join("tokenizer_config.json"), "{").unwrap();
    let faults = texts(Tokenizer::read(&model).unwrap_err());
    assert!(
        faults[0].ends_with("tokenizer_config.json`: EOF while parsing an object at line 1 column 1"),
        "{faults:?}"
    );
    fs::remove_file(home.path().join("tokenizer.json")).unwrap();
    let faults = texts(Tokenizer::read(&model).unwrap_err());
    assert!(faults[0].ends_with("tokenizer.json` is missing: a GGUF file holds the tokenizer too"), "{faults:?}");
}

#[test]
fn a_rebuilt_tokenizer_gives_the_same_keys() {
    let (home, model) = stored(&models()[3]);
    let mut first = Metadata::new();
    Tokenizer::read(&model).unwrap().put(&mut first);
    let rebuilt = rebuild(home.path(), &first).unwrap();
    fs::write(home.path().join("tokenizer.json"), rebuilt.tokenizer.to_string()).unwrap();
    fs::write(home.path().join("tokenizer_config.json"), rebuilt.config.to_string()).unwrap();
    let mut again = Metadata::new();
    Tokenizer::read(&model).unwrap().put(&mut again);
    assert_eq!(first, again);
    assert_eq!(rebuilt.eos, [18, 2]);
    // Every way of cutting text is written as it is read.
    for way in ["qwen2", "qwen35", "llama-bpe", "smollm", "gpt-2"] {
        first.insert("tokenizer.ggml.pre", way);
        let rebuilt = rebuild(home.path(), &first).unwrap();
        fs::write(home.path().join("tokenizer.json"), rebuilt.tokenizer.to_string()).unwrap();
        let mut again = Metadata::new();
        Tokenizer::read(&model).unwrap().put(&mut again);
        assert_eq!(again.get("tokenizer.ggml.pre").unwrap().as_str(), Some(way));
    }
}

#[test]
fn added_tokens_keep_their_ids_wherever_they_stand() {
    // The tokenizers library takes an added token's id from the vocabulary, and makes one up where that lacks it: so it
    // would here, where there is a gap before the last of them, and where special tokens come first.
    let rebuilt = rebuild(Path::new("m.gguf"), &read(|_| {}).unwrap()).unwrap().tokenizer;
    let added = rebuilt["added_tokens"].as_array().unwrap();
    let ids =
        |token: &Value| (token["id"].as_u64(), rebuilt["model"]["vocab"][token["content"].as_str().unwrap()].as_u64());
    let found: Vec<_> = added.iter().map(ids).collect();
    assert_eq!(found, [17, 18, 20].map(|id| (Some(id), Some(id))));
}
