//! `recipes/recipe.schema.json` is what editors check recipes with; it is generated and has to be fresh.

use std::path::Path;

use qwen_tune::recipe::Schema;

#[test]
fn the_schema_file_is_fresh() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/recipe.schema.json");
    let fresh = Schema::of_recipe().to_json();
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::write(&path, &fresh).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == fresh,
        "recipes/recipe.schema.json is stale: run `UPDATE_SCHEMA=1 cargo test the_schema_file_is_fresh`"
    );
}

#[test]
fn every_key_of_the_recipe_is_documented() {
    let schema: serde_json::Value = serde_json::from_str(&Schema::of_recipe().to_json()).unwrap();
    let mut silent = Vec::new();
    let tables = schema["$defs"].as_object().unwrap().iter().map(|(name, table)| (name.as_str(), table));
    for (name, table) in tables.chain([("Recipe", &schema)]) {
        for (key, value) in table["properties"].as_object().into_iter().flatten() {
            if value.get("description").is_none() {
                silent.push(format!("{name}.{key}"));
            }
        }
    }
    assert!(silent.is_empty(), "without a doc comment: {silent:?}");
}
