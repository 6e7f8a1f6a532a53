//! What the targets share: a place for files, a model directory around a small tokenizer, and reading all of a data file.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use qwen_tune_data::{Dataset, Encoder, Message, SourceConfig, TokensConfig};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// Ids that the model directory's vocabulary allows.
pub const VOCAB: usize = 300;

/// ChatML with everything that the encoder looks for.
const TEMPLATE: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% for c in m.tool_calls or [] %}{{ c|tojson }}{% endfor %}{% endfor %}{{ tools|tojson if tools }}";

/// A directory in memory that lasts as long as the process.
pub fn home() -> &'static Path {
    static HOME: OnceLock<TempDir> = OnceLock::new();
    HOME.get_or_init(|| {
        // The fuzzer's hook ends the process at any panic, also at those of other readers that become errors.
        let end = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !qwen_tune_data::panics_are_contained() {
                end(panic);
            }
        }));
        let memory = Path::new("/dev/shm");
        let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        made.expect("a temporary directory")
    })
    .path()
}

/// Writes a file of [`home`].
pub fn write(name: &str, bytes: &[u8]) -> PathBuf {
    let path = home().join(name);
    std::fs::write(&path, bytes).expect("room in the temporary directory");
    path
}

/// A byte-level tokenizer with the tokens of ChatML.
pub fn tokenizer() -> Value {
    let mut next = 256_u32;
    let mut vocab = Map::new();
    for byte in 0..=255_u8 {
        let c = match byte {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
            _ => {
                next += 1;
                char::from_u32(next - 1).expect("a character")
            }
        };
        vocab.insert(c.to_string(), json!(byte));
    }
    let added: Vec<Value> = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        .iter()
        .enumerate()
        .map(|(i, content)| {
            json!({"id": 256 + i, "content": content, "special": true, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false})
        })
        .collect();
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true});
    json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": {"type": "NFC"},
        "pre_tokenizer": level, "post_processor": level, "decoder": level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []}})
}

/// A model directory below [`home`], without weights.
pub fn model_dir() -> PathBuf {
    let dir = home().join("model");
    if !dir.is_dir() {
        std::fs::create_dir(&dir).expect("a new directory");
        let settings = json!({"eos_token": "<|im_end|>", "chat_template": TEMPLATE});
        std::fs::write(dir.join("tokenizer.json"), tokenizer().to_string()).expect("room");
        std::fs::write(dir.join("tokenizer_config.json"), settings.to_string()).expect("room");
    }
    dir
}

/// A conversation with each kind of message.
pub fn conversation() -> (Vec<Message>, Value) {
    let turns = json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 6 x 7?"},
        {"role": "assistant", "content": "", "reasoning_content": "six sevens", "tool_calls": [
            {"type": "function", "function": {"name": "times", "arguments": {"a": 6, "b": [7.5, null, true]}}}]},
        {"role": "tool", "content": "42"},
        {"role": "assistant", "content": "<think>\nso\n</think>\n\n42"},
    ]);
    let tools = json!([{"type": "function", "function": {"name": "times", "parameters": {"type": "object"}}}]);
    (qwen_tune_data::read_messages(turns).expect("a conversation"), tools)
}

/// Opens a data file and tokenises its rows; what is wrong with it is an error and nothing else.
pub fn read_data(path: &Path) {
    static ENCODER: OnceLock<Arc<Encoder>> = OnceLock::new();
    let encoder = ENCODER.get_or_init(|| {
        let config = TokensConfig { max_length: 64, ..TokensConfig::default() };
        Arc::new(Encoder::from_dir(&model_dir(), &config, VOCAB).expect("the model directory is sound"))
    });
    let source = SourceConfig::new(path.to_str().expect("the path is text"));
    if let Ok(dataset) = Dataset::open(&[source], encoder.clone(), &[]) {
        dataset.samples().take(100).for_each(drop);
    }
}
