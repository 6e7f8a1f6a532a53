//! [`Pre`]: how text is cut before bytes are paired, by llama.cpp's name and as `tokenizer.json` says it.
//!
//! llama.cpp knows each way by a name only, so one it has no name for cannot be written.

use serde_json::{Value, json};

/// A way of cutting text that llama.cpp has a name for.
#[derive(Debug)]
pub(super) struct Pre {
    /// The value of `tokenizer.ggml.pre`.
    pub(super) name: &'static str,
    /// Other values that mean the same.
    pub(super) aliases: &'static [&'static str],
    cut: Cut,
    /// Words that are tokens are not built up from pairs.
    pub(super) ignore_merges: bool,
    /// Text is composed first (NFC). llama.cpp leaves that out.
    pub(super) composed: bool,
}

/// What cuts the text, before its bytes are mapped to letters.
#[derive(Debug)]
enum Cut {
    /// A regular expression.
    Pattern(&'static str),
    /// Every digit by itself, then GPT-2's expression.
    Digits,
    /// GPT-2's expression.
    Gpt2,
}

const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const QWEN35: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|",
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

const PLAIN: Pre = Pre { name: "", aliases: &[], cut: Cut::Gpt2, ignore_merges: false, composed: false };

pub(super) static WAYS: &[Pre] = &[
    Pre { name: "qwen2", aliases: &["deepseek-r1-qwen"], cut: Cut::Pattern(QWEN2), composed: true, ..PLAIN },
    Pre { name: "qwen35", cut: Cut::Pattern(QWEN35), composed: true, ..PLAIN },
    Pre {
        name: "llama-bpe",
        aliases: &["llama3", "llama-v3"],
        cut: Cut::Pattern(LLAMA3),
        ignore_merges: true,
        ..PLAIN
    },
    Pre { name: "smollm", cut: Cut::Digits, ..PLAIN },
    Pre { name: "gpt-2", ..PLAIN },
];

impl Pre {
    /// The way of this name.
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        WAYS.iter().find(|way| way.name == name || way.aliases.contains(&name))
    }

    /// The way that the `pre_tokenizer` of a `tokenizer.json` means; else what it says, for people.
    pub(super) fn of(pre_tokenizer: &Value) -> Result<&'static Self, String> {
        let steps = match pre_tokenizer["pretokenizers"].as_array() {
            Some(steps) => steps.as_slice(),
            None => std::slice::from_ref(pre_tokenizer),
        };
        WAYS.iter().find(|way| way.cut.is(steps)).ok_or_else(|| match steps {
            [first, ..] if first["pattern"]["Regex"].is_string() => {
                format!("the expression {}", first["pattern"]["Regex"])
            }
            _ => pre_tokenizer.to_string(),
        })
    }

    /// The `pre_tokenizer` of a `tokenizer.json`.
    pub(super) fn to_json(&self) -> Value {
        let bytes = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": use_regex });
        match self.cut {
            Cut::Pattern(pattern) => json!({ "type": "Sequence", "pretokenizers": [
                { "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false },
                bytes(false),
            ] }),
            Cut::Digits => json!({ "type": "Sequence", "pretokenizers": [
                { "type": "Digits", "individual_digits": true },
                bytes(true),
            ] }),
            Cut::Gpt2 => bytes(true),
        }
    }
}

impl Cut {
    fn is(&self, steps: &[Value]) -> bool {
        match (self, steps) {
            (Cut::Pattern(pattern), [split, bytes]) => {
                split["type"] == "Split"
                    && split["pattern"]["Regex"] == *pattern
                    && split["behavior"] == "Isolated"
                    && split["invert"] != true
                    && is_bytes(bytes, false)
            }
            (Cut::Digits, [digits, bytes]) => {
                digits["type"] == "Digits" && digits["individual_digits"] == true && is_bytes(bytes, true)
            }
            (Cut::Gpt2, [bytes]) => is_bytes(bytes, true),
            _ => false,
        }
    }
}

fn is_bytes(step: &Value, use_regex: bool) -> bool {
    // Absent means on, as in the tokenizers library.
    let on = |field: &str| step[field].as_bool().unwrap_or(true);
    step["type"] == "ByteLevel" && on("use_regex") == use_regex && !on("add_prefix_space")
}
