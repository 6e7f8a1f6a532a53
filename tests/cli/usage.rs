//! Help, and what is said about arguments that cannot be.

use super::{command, output_of};

fn shown(arguments: &[&str]) -> String {
    let directory = tempfile::tempdir().unwrap();
    output_of(directory.path(), arguments)
}

macro_rules! snapshots {
    ($($name:ident: $($argument:expr),*;)+) => { $(
        #[test]
        fn $name() {
            insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
                insta::assert_snapshot!(concat!("usage_", stringify!($name)), shown(&[$($argument),*]));
            });
        }
    )+ };
}

snapshots! {
    help: "--help";
    help_of_train: "train", "--help";
    help_of_data: "data", "--help";
    help_of_eval: "eval", "--help";
    help_of_generate: "generate", "--help";
    help_of_export: "export", "--help";
    help_of_inspect: "inspect", "--help";
    no_recipe: "train";
    an_unknown_flag: "train", "recipe.toml", "--epochs", "3";
    an_unknown_verb: "finetune", "recipe.toml";
    no_prompt: "generate", "--model", "m";
    an_unknown_export: "export", "run", "--to", "onnx", "--out", "d";
}

#[test]
fn a_closed_pipe_is_no_failure() {
    use std::process::Stdio;
    let directory = tempfile::tempdir().unwrap();
    let mut child = command(directory.path(), &["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}
