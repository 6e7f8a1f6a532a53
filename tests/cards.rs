//! Recipes that are named for a card, and the table of what fits on cards.

use std::path::{Path, PathBuf};

use qwen_tune::recipe::{Purpose, Recipe};
use qwen_tune_model::quantised_bytes;
use qwen_tune_qwen::memory::{self, Learned, Offload, OneRow, WeightBytes};
use qwen_tune_qwen::published::Published;
use qwen_tune_qwen::{LoraTargets, inventory};
use qwen_tune_train::head_rows;

use crate::runs::succeed;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The card that a recipe's directory is named for, in bytes, and the recipe.
fn recipes() -> Vec<(u64, PathBuf)> {
    let mut all = Vec::new();
    for home in std::fs::read_dir(root().join("recipes")).unwrap() {
        let home = home.unwrap().path();
        let name = home.file_name().unwrap().to_string_lossy().into_owned();
        let Some(card) = name.strip_suffix("gb").and_then(|gigabytes| gigabytes.parse::<u64>().ok()) else { continue };
        all.extend(std::fs::read_dir(&home).unwrap().map(|file| (card << 30, file.unwrap().path())));
    }
    all
}

/// By formula, with rows as long as the recipe allows and as much in host memory as the plan may move there.
#[test]
fn recipes_fit_the_cards_they_are_named_for() {
    let recipes = recipes();
    assert!(recipes.len() > 12, "{recipes:?}");
    for (card, path) in recipes {
        let name = path.display();
        let recipe = Recipe::load(Some(&path), &[], Purpose::Check).unwrap().recipe;
        let base = Published::named(&recipe.model.base).unwrap_or_else(|| panic!("{name}: {}", recipe.model.base));
        let (spec, lora) = (base.spec(), recipe.lora.clone().unwrap());
        let inventory = inventory(&spec);
        assert_eq!((recipe.run.micro_batch.value(), lora.target), (Some(1), LoraTargets::default()), "{name}");
        assert_eq!(recipe.run.recompute.blocks(1), Some(1), "{name} runs every block again");
        let learned = Learned::adapters(&inventory, lora.rank);
        let weights = WeightBytes::of(&inventory, &learned, |tensor| {
            quantised_bytes(tensor, recipe.model.quantize).unwrap_or(2 * tensor.elements())
        });
        let offload = recipe.run.offload.unwrap_or_else(|| Offload::Inputs);
        let head_rows = head_rows(spec.vocab_size, Some(card)) as u64;
        let row = OneRow {
            spec: &spec,
            inventory: &inventory,
            learned: &learned,
            weights: &weights,
            activation_bytes: 2,
            head_rows,
            offload,
        };
        let (needed, there) = (row.bytes(recipe.tokens.max_length as u64), memory::usable(card));
        assert!(needed <= there, "{name}: {needed} bytes of {there}");
    }
}

/// `recipes/README.md` shows what `plan --table` prints.
#[test]
fn the_table_of_cards_is_fresh() {
    let path = root().join("recipes/README.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once("```text\n").expect("a block for the table");
    let (written, after) = rest.split_once("```").expect("its end");
    let fresh = succeed(&["plan", "--table"]);
    if std::env::var_os("UPDATE_TABLE").is_some() {
        std::fs::write(&path, format!("{before}```text\n{fresh}```{after}")).unwrap();
        return;
    }
    assert!(
        written == fresh,
        "recipes/README.md is stale: run `UPDATE_TABLE=1 cargo test the_table_of_cards_is_fresh`"
    );
}
