//! The files of a model directory besides its weights.

use std::{fs, path::Path};

use qwen_tune_weights::{Layout, WeightError};

/// What a model was made from and what its files are. Not carried into exports: each has its own.
pub const LOCK_FILE: &str = "qwen_tune.lock.json";

/// Ends of names of files that hold weights or training state in some format.
const WEIGHT_ENDS: [&str; 14] = [
    ".safetensors",
    ".safetensors.index.json",
    ".bin",
    ".bin.index.json",
    ".pt",
    ".pth",
    ".ckpt",
    ".gguf",
    ".ggml",
    ".onnx",
    ".onnx_data",
    ".h5",
    ".msgpack",
    ".npz",
];

/// Everything that goes with the weights: configuration, tokenizer, templates, licences, remote code. A list of what to
/// leave out rather than of what to take, so that a file some loader needs is never lost.
pub(super) fn list(directory: &Path, layout: &Layout) -> Result<Vec<String>, WeightError> {
    let index = layout.index.as_ref().map(|index| index.file_name.as_str());
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(WeightError::io("read", directory))? {
        let entry = entry.map_err(WeightError::io("read", directory))?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        // Through links: a hub cache consists of them.
        if entry.path().is_file() && is_side_file(&name) && Some(name.as_str()) != index {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn is_side_file(name: &str) -> bool {
    let lower = name.to_lowercase();
    !lower.starts_with('.')
        && !lower.starts_with("readme")
        && name != LOCK_FILE
        && !WEIGHT_ENDS.iter().any(|end| lower.ends_with(end))
}

/// Whether a file belongs to the tokenizer or the chat template.
pub(super) fn is_tokenizer(name: &str) -> bool {
    ["tokenizer", "vocab", "merges", "special_tokens_map", "added_tokens", "chat_template"]
        .iter()
        .any(|start| name.starts_with(start))
        || name.ends_with(".jinja")
        || name.ends_with(".tiktoken")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_cards_and_hidden_files_stay_behind() {
        let stay = [
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "model.gguf",
            "README.md",
            ".gitattributes",
            "optimizer.pt",
            LOCK_FILE,
        ];
        let go = [
            "config.json",
            "tokenizer.json",
            "tokenizer.model",
            "vocab.json",
            "merges.txt",
            "chat_template.jinja",
            "LICENSE",
        ];
        assert!(stay.into_iter().all(|name| !is_side_file(name)));
        assert!(go.into_iter().all(is_side_file));
    }

    #[test]
    fn tokenizer_and_template_are_known_by_name() {
        let names = ["tokenizer_config.json", "vocab.json", "chat_template.json", "reasoning.jinja", "qwen.tiktoken"];
        assert!(names.into_iter().all(is_tokenizer));
        assert!(!is_tokenizer("config.json"));
    }
}
