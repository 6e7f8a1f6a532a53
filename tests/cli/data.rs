//! `data` on the data sets of this repository: rows, laid-out rows, numbers.

use std::path::Path;

use super::{command, output_of};

fn shown(arguments: &[&str]) -> String {
    let model = ["--set", "model.base=datasets/tiny-qwen3", "--set", "tokens.max_length=512"];
    let arguments: Vec<&str> = std::iter::once("data").chain(model).chain(arguments.iter().copied()).collect();
    output_of(Path::new(env!("CARGO_MANIFEST_DIR")), &arguments)
}

const CHAT: &str = "data[0].path=datasets/shakespeare_chat.parquet";
const TOOLS: &str = "data[0].path=datasets/tools_bfcl_train.parquet";
const TEXT: &str = "data[1].path=datasets/shakespeare_completion.jsonl";

macro_rules! snapshots {
    ($($name:ident: $($argument:expr),*;)+) => { $(
        #[test]
        fn $name() {
            insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
                insta::assert_snapshot!(concat!("data_", stringify!($name)), shown(&[$($argument),*]));
            });
        }
    )+ };
}

snapshots! {
    rows: "--set", CHAT, "--rows", "2";
    rows_with_tools: "--set", TOOLS, "--rows", "1", "--from", "3";
    rows_of_a_source: "--set", CHAT, "--set", TEXT, "--source", "1", "--rows", "1", "--from", "63";
    rows_that_are_cut: "--set", CHAT, "--rows", "1", "--set", "tokens.max_length=60";
    rows_as_json: "--set", CHAT, "--rows", "2", "--json";
    packed: "--set", CHAT, "--set", TEXT, "--packed", "--rows", "2";
    packed_as_json: "--set", CHAT, "--packed", "--rows", "1", "--json", "--set", "tokens.max_length=128";
    stats: "--set", TOOLS, "--set", TEXT, "--stats";
    stats_as_json: "--set", CHAT, "--stats", "--json";
    no_such_source: "--set", CHAT, "--source", "2";
}

#[test]
fn every_token_is_told_from_its_neighbours_where_there_is_colour() {
    let directory = tempfile::tempdir().unwrap();
    // The tiny tokenizer has no token for the crab: its bytes are tokens of their own and shown as one.
    std::fs::write(directory.path().join("rows.jsonl"), "{\"prompt\": \"a\\u0007🦀\", \"completion\": \"yes\\nno\"}\n")
        .unwrap();
    let base = format!("model.base={}/datasets/tiny-qwen3", env!("CARGO_MANIFEST_DIR"));
    let arguments = ["data", "--set", &base, "--set", "data[0].path=rows.jsonl", "--set", "tokens.max_length=99"];
    let output =
        command(directory.path(), &arguments).env_remove("NO_COLOR").env("CLICOLOR_FORCE", "1").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap().replace('\x1b', "^");
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!("data_colours", text);
    });
}
