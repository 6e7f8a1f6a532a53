//! Files to rows: formats, detection, and what is said about files that do not fit.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{Int32Array, Int64Builder, ListBuilder, StringArray};
use qwen_tune_data::{DataError, Dataset, Format, Paths, Row, SourceConfig, SourceFormat, TokensConfig};

use crate::fixture::{conversations, shared, strings, write, write_arrow, write_parquet};

fn open(config: SourceConfig) -> Result<Dataset, String> {
    Dataset::open(&[config], shared(TokensConfig::default()), &[])
        .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

fn source(path: &Path) -> SourceConfig {
    SourceConfig::new(path.to_str().unwrap())
}

fn rows(config: SourceConfig) -> Result<Vec<Row>, String> {
    let dataset = open(config)?;
    let mut samples = dataset.samples();
    let mut rows = Vec::new();
    while let Some(row) = samples.next_row() {
        rows.push(row.map_err(|e| e.to_string())?.1);
    }
    Ok(rows)
}

fn jsonl(text: &str) -> (tempfile::TempDir, SourceConfig) {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "data.jsonl", text);
    (dir, source(&path))
}

/// Role and content of every message of a chat row.
fn turns(row: &Row) -> Vec<(String, String)> {
    match row {
        Row::Chat(c) => c.messages.iter().map(|m| (m.role().into(), m.content().unwrap().into())).collect(),
        other => panic!("{other:?}"),
    }
}

fn turn(role: &str, content: &str) -> (String, String) {
    (role.into(), content.into())
}

/// The message after the file's name.
fn tail(error: &str) -> &str {
    error.split_once(".jsonl` ").or_else(|| error.split_once(".parquet` ")).unwrap_or(("", error)).1
}

#[test]
fn parquet_conversations_are_read_over_row_groups() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let cells: Vec<_> =
        (0..10).map(|i| Some(vec![("user", if i % 2 == 0 { "even" } else { "odd" }), ("assistant", "x")])).collect();
    write_parquet(
        &path,
        vec![("id", Arc::new(Int32Array::from_iter_values(0..10))), ("messages", conversations(&cells))],
        4,
    );
    let dataset = open(source(&path)).unwrap();
    let info = dataset.sources().next().unwrap().clone();
    assert_eq!((info.format, info.rows, info.unused), (Format::Messages, 10, vec!["id".to_owned()]));
    assert_eq!(info.reason, "the columns include `messages`");
    let rows = rows(source(&path)).unwrap();
    assert_eq!(turns(&rows[7]), [turn("user", "odd"), turn("assistant", "x")]);
}

#[test]
fn formats_are_detected_from_columns() {
    let format = |line: &str| {
        let (_dir, config) = jsonl(line);
        open(config).map(|d| d.sources().next().unwrap().format)
    };
    assert_eq!(format(r#"{"messages": [{"role": "user", "content": "x"}], "text": "y"}"#), Ok(Format::Messages));
    assert_eq!(format(r#"{"messages": "[]"}"#), Ok(Format::Messages));
    assert_eq!(format(r#"{"conversations": [{"role": "user", "content": "x"}]}"#), Ok(Format::Messages));
    assert_eq!(format(r#"{"conversations": [{"from": "human", "value": "x"}]}"#), Ok(Format::Sharegpt));
    assert_eq!(format(r#"{"instruction": "x", "output": "y"}"#), Ok(Format::Alpaca));
    assert_eq!(format(r#"{"prompt": "x", "completion": "y"}"#), Ok(Format::Completion));
    assert_eq!(format(r#"{"text": "x", "meta": {"a": 1}}"#), Ok(Format::Text));
    assert_eq!(format(r#"{"input_ids": [1, 2]}"#), Ok(Format::Tokens));
    let error = format(r#"{"prompt": "x", "chosen": "y", "rejected": "z"}"#).unwrap_err();
    assert!(error.contains("preference pairs"), "{error}");
    let error = format(r#"{"question": "x", "answer": 3}"#).unwrap_err();
    assert!(error.contains("no known format has these columns: `question: string`, `answer: integer`"), "{error}");
    assert!(error.contains("completion needs `prompt`, `completion`"), "{error}");
}

#[test]
fn renamed_columns_are_read_under_their_own_names() {
    let (_dir, mut config) = jsonl(r#"{"question": "x", "answer": "y"}"#);
    config.columns = [("prompt", "question"), ("completion", "answer")].map(|(a, b)| (a.into(), b.into())).into();
    assert_eq!(rows(config.clone()).unwrap(), [Row::Completion { prompt: "x".into(), completion: "y".into() }]);
    config.columns.insert("promt".into(), "question".into());
    assert!(rows(config.clone()).unwrap_err().contains("no known format"));
    config.format = SourceFormat::Completion;
    assert!(rows(config).unwrap_err().contains("`columns` names `promt`, which format `completion` does not read"));
}

#[test]
fn sharegpt_alpaca_and_prompt_rows_become_conversations() {
    let (_dir, config) = jsonl(
        "{\"system\": \"S\", \"conversations\": [{\"from\": \"human\", \"value\": \"q\"}, {\"from\": \"function_call\", \"value\": \"{\\\"name\\\": \\\"f\\\", \\\"arguments\\\": {\\\"b\\\": 1}}\"}, {\"from\": \"observation\", \"value\": \"o\"}, {\"from\": \"gpt\", \"value\": \"a\"}]}",
    );
    let read = rows(config).unwrap();
    assert_eq!(
        turns(&read[0]),
        [turn("system", "S"), turn("user", "q"), turn("assistant", ""), turn("tool", "o"), turn("assistant", "a")]
    );
    let Row::Chat(chat) = &read[0] else { panic!() };
    assert_eq!(chat.messages[2].fields()["tool_calls"][0]["function"]["name"], "f");

    let (_dir, config) = jsonl(
        "{\"instruction\": \"do\", \"input\": \"this\", \"output\": \"done\", \"history\": [[\"a\", \"b\"]]}\n{\"instruction\": \"do\", \"input\": \"\", \"output\": \"ok\"}",
    );
    let read = rows(config).unwrap();
    assert_eq!(
        turns(&read[0]),
        [turn("user", "a"), turn("assistant", "b"), turn("user", "do\nthis"), turn("assistant", "done")]
    );
    assert_eq!(turns(&read[1]), [turn("user", "do"), turn("assistant", "ok")]);

    let (_dir, config) = jsonl(r#"{"prompt": [{"role": "user", "content": "q"}], "completion": "a"}"#);
    let read = rows(config).unwrap();
    assert!(matches!(&read[0], Row::ChatCompletion { completion, .. } if completion[0].role() == "assistant"));
}

#[test]
fn token_rows_are_read_from_lists() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.parquet");
    let mut ids = ListBuilder::new(Int64Builder::new());
    ids.values().append_slice(&[5, 6, 7]);
    ids.append(true);
    let mut labels = ListBuilder::new(Int64Builder::new());
    labels.values().append_slice(&[-100, 6, 7]);
    labels.append(true);
    write_parquet(&path, vec![("input_ids", Arc::new(ids.finish())), ("labels", Arc::new(labels.finish()))], 10);
    assert_eq!(rows(source(&path)).unwrap(), [Row::Tokens { ids: vec![5, 6, 7], labels: Some(vec![-100, 6, 7]) }]);
}

#[test]
fn a_bad_row_names_file_row_line_and_column() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    write_parquet(&path, vec![("messages", conversations(&[Some(vec![("user", "x")]), None]))], 1);
    let error = rows(source(&path)).unwrap_err();
    assert!(error.contains("a.parquet"), "{error}");
    assert_eq!(
        tail(&error),
        "row 1, column `messages`: the cell is null, expected a list of objects with `role` and `content`, or the same as JSON text"
    );

    let error = |text: &str| {
        let (_dir, config) = jsonl(text);
        let message = rows(config).unwrap_err();
        tail(&message).to_owned()
    };
    let good = "{\"text\": \"x\"}\n\n";
    assert_eq!(
        error(&format!("{good}{{\"txt\": 1}}")),
        "row 1 (line 3), column `text`: no such key in this row, expected text; found `txt`"
    );
    assert_eq!(
        error(&format!("{good}{{\"text\": 1}}")),
        "row 1 (line 3), column `text`: the cell is a number, expected text"
    );
    let many: String = good.repeat(40);
    assert_eq!(
        error(&format!("{many}{{\"text\": ")),
        "row 40 (line 81): not valid JSON: EOF while parsing a value at column 9"
    );
}

#[test]
fn a_row_that_only_fails_when_rendered_names_its_place_too() {
    let (_dir, config) = jsonl("{\"messages\": [{\"role\": \"user\", \"content\": \"<|im_end|>\"}]}");
    let dataset = open(config).unwrap();
    let error = dataset.samples().next().unwrap().unwrap_err().to_string();
    assert!(tail(&error).starts_with("row 0 (line 1), column `messages`: `content` of message 0 spells"), "{error}");
}

#[test]
fn columns_that_are_missing_or_of_the_wrong_type_are_named_with_a_near_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    write_parquet(&path, vec![("mesages", strings(["x".into()])), ("n", Arc::new(Int32Array::from(vec![1])))], 1);
    let error = rows(SourceConfig { format: SourceFormat::Messages, ..source(&path) }).unwrap_err();
    assert_eq!(
        tail(&error),
        "has no column `messages`, which format `messages` needs; did you mean `mesages`?; found `mesages: string`, `n: int32`"
    );
    let mut config = SourceConfig { format: SourceFormat::Text, ..source(&path) };
    config.columns.insert("text".into(), "n".into());
    let error = rows(config).unwrap_err();
    assert!(error.ends_with("a.parquet`, column `n`: found int32, expected text"), "{error}");
}

#[test]
fn every_mistake_is_reported_at_once() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "empty.jsonl", "");
    write(dir.path(), "empty.parquet", "");
    write(dir.path(), "data.csv", "a,b");
    write(dir.path(), "short.parquet", "PAR1 and no footer");
    let config = |path: &str| SourceConfig { path: Paths::One(path.into()), ..SourceConfig::new("") };
    let sources = [
        config("empty.jsonl"),
        config("empty.parquet"),
        config("data.csv"),
        config("short.parquet"),
        config("nothing*"),
        SourceConfig { weight: 0.0, ..config("empty.jsonl") },
    ];
    let errors = Dataset::open(&sources, shared(TokensConfig::default()), &[dir.path().to_owned()]).err().unwrap();
    let text: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(errors.len(), 7, "{text:#?}");
    assert!(matches!(errors[0], DataError::Empty { .. }) && matches!(errors[1], DataError::Empty { .. }));
    assert!(text[2].contains("`.csv` files are not supported"), "{}", text[2]);
    assert!(text[3].contains("no readable parquet footer in its 18 bytes"), "{}", text[3]);
    assert_eq!(text[4], "no file matches `nothing*`");
    assert!(text[5].starts_with("`data.weight` is 0, expected"), "{}", text[5]);
}

#[test]
fn limit_and_globs_take_the_first_rows_of_sorted_files() {
    let dir = tempfile::tempdir().unwrap();
    for (name, n) in [("b.jsonl", 1), ("a.jsonl", 0)] {
        let text: String = (0..3).map(|i| format!("{{\"text\": \"{n}{i}\"}}\n")).collect();
        write(dir.path(), name, &text);
    }
    let path = dir.path().join("*.jsonl");
    let config = SourceConfig { limit: Some(4), ..source(&path) };
    let texts: Vec<Row> = ["00", "01", "02", "10"].map(|t| Row::Text(t.into())).into();
    assert_eq!(rows(config).unwrap(), texts);
}

#[test]
fn dictionary_and_large_columns_read_like_plain_ones() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.parquet");
    let dictionary: arrow::array::DictionaryArray<arrow::datatypes::Int8Type> =
        vec!["x", "y", "x"].into_iter().collect();
    write_parquet(&path, vec![("text", Arc::new(dictionary))], 2);
    assert_eq!(rows(source(&path)).unwrap(), ["x", "y", "x"].map(|t| Row::Text(t.into())));
    let path = dir.path().join("l.parquet");
    write_parquet(&path, vec![("text", Arc::new(arrow::array::LargeStringArray::from(vec!["x"])))], 2);
    assert_eq!(rows(source(&path)).unwrap(), [Row::Text("x".into())]);
    let path = dir.path().join("n.parquet");
    write_parquet(&path, vec![("text", Arc::new(StringArray::from(vec![Some("x"), None])))], 2);
    assert!(rows(source(&path)).unwrap_err().ends_with("row 1, column `text`: the cell is null, expected text"));
}

#[test]
fn arrow_files_are_read_in_both_forms() {
    let dir = tempfile::tempdir().unwrap();
    let cells: Vec<_> = (0..5).map(|_| Some(vec![("user", "x"), ("assistant", "y")])).collect();
    for stream in [false, true] {
        let path = dir.path().join("a.arrow");
        let dictionary: arrow::array::DictionaryArray<arrow::datatypes::Int8Type> =
            ["a", "b", "a", "b", "c"].into_iter().collect();
        write_arrow(&path, vec![("text", Arc::new(dictionary)), ("messages", conversations(&cells))], 2, stream);
        assert_eq!(turns(&rows(source(&path)).unwrap()[4]), [turn("user", "x"), turn("assistant", "y")]);
        let text = SourceConfig { format: SourceFormat::Text, ..source(&path) };
        assert_eq!(rows(text).unwrap(), ["a", "b", "a", "b", "c"].map(|t| Row::Text(t.into())), "stream: {stream}");
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(rows(source(&path)).unwrap_err().contains("is damaged"));
    }
}
