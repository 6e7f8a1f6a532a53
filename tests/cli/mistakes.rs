//! Wrong recipes, end to end: everything at once, on the right stream, with the right exit code.

use super::{command, output_of};

const WRONG: &str = r#"[model]
base = "nowhere"
dtype = "bf61"

[lora]
rnak = 8

[[data]]
path = "rows.parquet"
weight = 0

[run]
steps = "5"
"#;

fn with_recipe(text: &str, arguments: &[&str]) -> String {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("recipe.toml"), text).unwrap();
    output_of(directory.path(), arguments)
}

macro_rules! snapshots {
    ($($name:ident: $text:expr, $($argument:expr),*;)+) => { $(
        #[test]
        fn $name() {
            insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
                insta::assert_snapshot!(concat!("mistakes_", stringify!($name)), with_recipe($text, &[$($argument),*]));
            });
        }
    )+ };
}

snapshots! {
    train_tells_all_at_once: WRONG, "train", "recipe.toml";
    check_tells_all_at_once: WRONG, "check", "recipe.toml", "--set", "run.device=gpu";
    json_goes_to_stdout: WRONG, "train", "recipe.toml", "--json";
    a_missing_recipe_is_suggested: WRONG, "train", "recipes.toml";
    settings_alone_need_a_model: WRONG, "train", "--set", "run.steps=5";
}

#[test]
fn a_refused_recipe_writes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("recipe.toml"), WRONG).unwrap();
    let status = command(directory.path(), &["train", "recipe.toml"]).output().unwrap().status;
    assert_eq!(status.code(), Some(2));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn colour_is_only_for_those_who_ask() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("recipe.toml"), WRONG).unwrap();
    let stderr = |colour: bool| {
        let mut command = command(directory.path(), &["train", "recipe.toml"]);
        if colour {
            command.env_remove("NO_COLOR").env("CLICOLOR_FORCE", "1");
        }
        command.output().unwrap().stderr
    };
    assert!(!stderr(false).contains(&0x1b));
    assert!(stderr(true).contains(&0x1b));
}
