#![no_main]
//! A recipe's text, and the same text as settings of the command line: read with diagnostics that can be drawn.

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use qwen_tune::diagnostic::Look;
use qwen_tune::recipe::{Purpose, Recipe, RecipeDoc, Setting};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (file, settings) = text.split_once('\0').unwrap_or((text, ""));
    let settings: Vec<Setting> = settings.lines().map(|line| Setting::from_set(line.to_owned())).collect();
    let doc = RecipeDoc::from_text(Some(Path::new("recipe.toml")), file, &settings);
    let (_, said) = Recipe::examine(&doc, Purpose::Train);
    let _ = said.render(Look::PLAIN);
    let _ = said.to_json();
});
