//! A byte-level tokenizer, chat templates and data files, made on the spot.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, ListBuilder, RecordBatch, StringBuilder, StructBuilder};
use arrow::datatypes::{DataType, Field};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use qwen_tune_data::{Encoder, Message, TokensConfig};
use serde_json::{Map, Value, json};

pub(crate) const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
pub(crate) const STRUCTURAL: [&str; 2] = ["<think>", "</think>"];

/// ChatML without a generation tag, keeping reasoning as Qwen3 does for the last turn.
pub(crate) const CHATML: &str = "\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' and loop.last %}
        {{- '<think>\\n' + (message.reasoning_content + '\\n' if message.reasoning_content else '\\n') + '</think>\\n\\n' }}
    {%- endif %}
    {{- message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
";

/// ChatML that marks answers itself, the newline behind the end token included.
pub(crate) const GENERATION: &str = "\
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
        {{- message.content + '<|im_end|>\\n' }}
        {%- endgeneration %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
";

/// The characters that byte-level BPE writes bytes as (GPT-2).
fn byte_chars() -> Vec<char> {
    let mut next = 256u32;
    (0..=255u8)
        .map(|b| match b {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(b),
            _ => {
                let c = char::from_u32(next).unwrap();
                next += 1;
                c
            }
        })
        .collect()
}

/// Bytes, a few merges, then the added tokens.
pub(crate) fn tokenizer() -> Value {
    let chars = byte_chars();
    let mut vocab = Map::new();
    for c in &chars {
        vocab.insert(c.to_string(), json!(vocab.len()));
    }
    let newline = chars[10].to_string();
    let merges =
        [["a", "n"], ["t", "h"], ["th", "e"], [&newline, &newline], ["a", "s"], ["u", "s"], ["e", "r"], ["us", "er"]];
    for [a, b] in merges {
        let id = json!(vocab.len());
        vocab.insert(format!("{a}{b}"), id);
    }
    let added: Vec<Value> = SPECIAL
        .iter()
        .map(|t| (t, true))
        .chain(STRUCTURAL.iter().map(|t| (t, false)))
        .enumerate()
        .map(|(i, (content, special))| {
            json!({"id": vocab.len() + i, "content": content, "special": special, "single_word": false,
                   "lstrip": false, "rstrip": false, "normalized": false})
        })
        .collect();
    json!({
        "version": "1.0", "truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": null, "added_tokens": added, "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": merges},
    })
}

pub(crate) const VOCAB: usize = 320;

/// A model directory with the tokenizer and `tokenizer_config.json`.
pub(crate) fn model_dir(config: &Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer().to_string()).unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    dir
}

pub(crate) fn encoder_with(template: &str, config: TokensConfig) -> Encoder {
    let dir = model_dir(
        &json!({"eos_token": "<|im_end|>", "pad_token": {"content": "<|endoftext|>"}, "chat_template": template}),
    );
    Encoder::from_dir(dir.path(), &config, VOCAB).unwrap()
}

pub(crate) fn encoder(template: &str) -> Encoder {
    encoder_with(template, TokensConfig::default())
}

pub(crate) fn shared(config: TokensConfig) -> Arc<Encoder> {
    Arc::new(encoder_with(GENERATION, config))
}

pub(crate) fn messages(turns: &[(&str, &str)]) -> Vec<Message> {
    turns.iter().map(|(role, content)| Message::new(role, content)).collect()
}

pub(crate) fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

pub(crate) fn write_parquet(path: &Path, columns: Vec<(&str, ArrayRef)>, group: usize) {
    write_compressed_parquet(path, columns, group, Compression::UNCOMPRESSED);
}

pub(crate) fn write_compressed_parquet(path: &Path, columns: Vec<(&str, ArrayRef)>, group: usize, by: Compression) {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(group)).set_compression(by).build();
    let mut writer =
        ArrowWriter::try_new(std::fs::File::create(path).unwrap(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

pub(crate) fn strings(items: impl IntoIterator<Item = String>) -> ArrayRef {
    let mut builder = StringBuilder::new();
    items.into_iter().for_each(|s| builder.append_value(s));
    Arc::new(builder.finish())
}

/// A `messages` column: list of struct; `None` is a null cell.
pub(crate) fn conversations(rows: &[Option<Vec<(&str, &str)>>]) -> ArrayRef {
    let fields = ["role", "content", "name"].map(|n| Field::new(n, DataType::Utf8, true));
    let mut builder = ListBuilder::new(StructBuilder::from_fields(fields.to_vec(), 0));
    for row in rows {
        for (role, content) in row.iter().flatten() {
            let turn = builder.values();
            turn.field_builder::<StringBuilder>(0).unwrap().append_value(role);
            turn.field_builder::<StringBuilder>(1).unwrap().append_value(content);
            turn.field_builder::<StringBuilder>(2).unwrap().append_null();
            turn.append(true);
        }
        builder.append(row.is_some());
    }
    Arc::new(builder.finish())
}

/// The same columns as an Arrow file, in the file or in the stream form, `group` rows a batch.
pub(crate) fn write_arrow(path: &Path, columns: Vec<(&str, ArrayRef)>, group: usize, stream: bool) {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let file = std::fs::File::create(path).unwrap();
    let slices = (0..batch.num_rows()).step_by(group).map(|at| batch.slice(at, group.min(batch.num_rows() - at)));
    if stream {
        let mut writer = arrow::ipc::writer::StreamWriter::try_new(file, &batch.schema()).unwrap();
        slices.for_each(|slice| writer.write(&slice).unwrap());
        writer.finish().unwrap();
    } else {
        let mut writer = arrow::ipc::writer::FileWriter::try_new(file, &batch.schema()).unwrap();
        slices.for_each(|slice| writer.write(&slice).unwrap());
        writer.finish().unwrap();
    }
}
