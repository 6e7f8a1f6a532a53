//! What a recipe is refused for, word for word.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use super::{Choice, Parsed, Purpose, Recipe, RecipeDoc, Setting, to_resolved_toml};
use crate::diagnostic::{Diagnostics, Look};

/// The least a training recipe needs.
const LEAST: &str = "[model]\nbase = \"qwen\"\n\n[[data]]\npath = \"rows.parquet\"\n";

fn read(text: &str, settings: &[&str]) -> Result<Parsed, Diagnostics> {
    let settings: Vec<Setting> = settings.iter().map(|setting| Setting::from_set(*setting)).collect();
    Recipe::from_doc(RecipeDoc::from_text(Some(Path::new("recipe.toml")), text, &settings), Purpose::Train)
}

/// Everything said about a recipe, as a pipe sees it.
fn said(text: &str, settings: &[&str]) -> String {
    match read(text, settings) {
        Ok(parsed) => parsed.warnings.render(Look::PLAIN),
        Err(said) => {
            assert_eq!(said.exit_code(), 2);
            said.render(Look::PLAIN)
        }
    }
}

/// One refusal (or warning) a test: the recipe is the snapshot's description, the whole report its content.
macro_rules! reports {
    ($($name:ident: $text:expr $(, set $set:expr)*;)+) => { $(
        #[test]
        fn $name() {
            let text: &str = $text;
            let settings: &[&str] = &[$($set),*];
            let said = said(text, settings);
            assert!(!said.is_empty(), "nothing was said");
            insta::with_settings!({ description => [&[text], settings].concat().join("\n--set "), omit_expression => true, prepend_module_to_snapshot => false }, {
                insta::assert_snapshot!(stringify!($name), said);
            });
        }
    )+ };
}

/// A section beside the least recipe.
macro_rules! with {
    ($section:literal) => {
        concat!("[model]\nbase = \"qwen\"\n\n[[data]]\npath = \"rows.parquet\"\n\n", $section, "\n")
    };
}

// Shape.
reports! {
    toml_syntax_is_told_with_everything_else: "[model]\nbase = qwen\ndtype = \"bf61\"\n\n[run]\nsteps = 5\nsteps = 6\nrank = 8\n";
    a_misspelt_key_is_suggested: with!("[optimizer]\nlearning_rat = 1e-4");
    a_misspelt_section_is_suggested: with!("[optimiser]\nlearning_rate = 1e-4");
    a_key_of_another_section_is_sent_there: with!("[lora]\nlearning_rate = 1e-4");
    a_name_of_another_tool_is_translated: with!("[lora]\nlora_r = 8\n\n[run]\ngradient_accumulation_steps = 4\nmax_seq_length = 4096");
    a_section_of_another_tool_is_translated: with!("[training]\nsteps = 4");
    a_planned_key_is_named_as_planned: with!("[eval]\nfraction = 0.1\nregression = true");
    a_key_like_no_other_lists_the_keys: with!("[checkpoint]\nfrequency = 4");
    a_key_outside_any_section: "rank = 8\n[model]\nbase = \"qwen\"\n[[data]]\npath = \"x\"\n";
    a_number_in_quotes: with!("[lora]\nrank = \"16\"");
    a_fraction_for_a_whole_number: with!("[run]\nsteps = 1e3");
    a_negative_count: with!("[run]\nseed = -1");
    a_switch_for_a_word: with!("[tokens]\npacking = false");
    a_string_for_a_list: with!("[lora]\nmodules_to_save = \"lm_head\"");
    an_unknown_word_is_suggested: with!("[schedule]\nkind = \"cosin\"");
    an_unknown_word_beside_numbers: with!("[run]\nmicro_batch = \"big\"\nrecompute = \"some\"");
    single_brackets_for_a_list_of_sections: "[model]\nbase = \"qwen\"\n\n[data]\npath = \"rows.parquet\"\n";
    double_brackets_for_one_section: with!("[[lora]]\nrank = 8");
    the_model_is_missing: "[[data]]\npath = \"rows.parquet\"\n";
    the_base_is_missing: "[model]\ndtype = \"f32\"\n\n[[data]]\nformat = \"text\"\n";
    everything_is_missing: "";
    a_planned_data_format: "[model]\nbase = \"qwen\"\n\n[[data]]\npath = \"rows.parquet\"\nformat = \"preference\"\n";
}

// Command line.
reports! {
    a_setting_without_a_value: LEAST, set "run.steps", set "run.steps=";
    a_setting_of_the_wrong_type: LEAST, set "run.steps=many";
    a_setting_of_an_unknown_key: LEAST, set "run.stps=5", set "lr=1e-4";
    a_setting_beyond_the_end_of_a_list: LEAST, set "data[4].path=x";
    a_setting_of_a_list_without_index: LEAST, set "data.path=x";
    a_setting_inside_a_value: LEAST, set "model.base.name=x";
    a_setting_that_is_broken_toml: LEAST, set "lora.target=[\"q_proj\"";
    a_setting_with_a_broken_path: LEAST, set "lora..rank=3", set "data[x].path=y";
    a_setting_takes_the_place_of_its_rival: with!("[run]\nepochs = 3"), set "run.steps=20";
    two_settings_that_exclude_each_other: LEAST, set "run.epochs=3", set "run.steps=20";
}

// Meaning.
reports! {
    lora_and_full: with!("[lora]\nrank = 8\n\n[full]");
    lora_numbers: with!("[lora]\nrank = 0\nalpha = 0\ndropout = 1.0");
    optimizer_numbers: with!("[optimizer]\nlearning_rate = 0\nweight_decay = -0.1\nbeta1 = 1.0\nbeta2 = 2\neps = 0\nmax_grad_norm = -1");
    a_high_learning_rate: with!("[optimizer]\nlearning_rate = 0.02");
    numbers_that_are_none: with!("[optimizer]\nlearning_rate = nan\n[lora]\nalpha = inf");
    schedule_numbers: with!("[schedule]\nwarmup = 2.5\nmin_ratio = 1.5\ndecay = -1");
    a_warmup_without_end: with!("[schedule]\nwarmup = 100\n\n[run]\nsteps = 100");
    two_run_lengths: with!("[run]\nepochs = 1\nsteps = 5");
    three_run_lengths: with!("[run]\nepochs = 1\nsteps = 5\ntokens = 100");
    a_run_of_nothing: with!("[run]\nepochs = 0.0");
    two_batch_sizes: with!("[run]\nglobal_batch = 8\nglobal_tokens = 8192");
    more_threads_than_there_can_be: with!("[run]\nthreads = 100000");
    batches_of_nothing: with!("[run]\nglobal_batch = 0\nmicro_batch = 0");
    a_length_without_room: with!("[tokens]\nmax_length = 0");
    a_mask_for_continued_pretraining: with!("[objective]\nkind = \"cpt\"\n\n[tokens]\nloss_on = \"last\"");
    a_date_that_is_none: with!("[tokens]\ntemplate_date = \"26 Jul 2024\"");
    evaluation_without_rows: with!("[eval]\nevery = 10");
    evaluation_with_two_kinds_of_rows: with!("[eval]\ndata = \"held.parquet\"\nfraction = 0.1");
    evaluation_numbers: with!("[eval]\nfraction = 1.0\nevery = 0\nlimit = 0\nearly_stop = 0");
    early_stop_without_evaluations: with!("[eval]\nfraction = 0.1\nearly_stop = 3");
    checkpoint_numbers: with!("[checkpoint]\nevery = 0\nkeep = 0");
    an_objective_that_is_planned: with!("[objective]\nkind = \"dpo\"");
    adapters_that_are_planned: with!("[model.quantise]\n[lora]\ndora = true\nplus_ratio = 16.0\ninit = \"pissa\"");
    reports_that_are_planned: with!("[report]\ntensorboard = true\nhtml = true");
    types_of_gguf_that_are_none: with!("[[export]]\nto = \"gguf\"\nquant = [\"q4_k\", \"q8_0\"]\n\n[[export]]\nto = \"adapter-gguf\"\nquant = [\"f16\"]");
    a_balance_that_is_none: with!("[objective]\nrouter_aux_loss_coef = -0.001");
    exports_to_the_same_place: with!("[[export]]\nto = \"merged\"\n\n[[export]]\nto = \"merged\"");
    quantised_merge: with!("[[export]]\nto = \"merged\"\nquant = [\"q8_0\"]");
    an_adapter_of_a_full_run: with!("[full]\n\n[optimizer]\nlearning_rate = 1e-5\n\n[[export]]\nto = \"adapter\"");
    a_full_run_with_the_rate_of_adapters: with!("[full]");
    quantised_weights_that_are_trained: with!("[full]\n\n[optimizer]\nlearning_rate = 1e-5"), set "model.quantize=nf4";
    a_quantisation_that_is_none: LEAST, set "model.quantize=nf8";
    a_shape_beside_an_adapter_that_has_one: with!("[lora]\ninit = \"runs/a/adapter\"\nrank = 8\ntarget = \"mlp\"");
    a_device_that_is_none: with!("[run]\ndevice = \"gpu\"");
    a_device_with_a_wrong_number: with!("[run]\ndevice = \"cpu:1\"");
    copies_on_the_cpu_that_do_not_count_from_0: with!("[run]\ndevice = \"cpu:1,2\"");
    a_device_that_is_not_built: with!("[run]\ndevice = \"vulkan\"");
    empty_paths: "[model]\nbase = \"\"\n\n[[data]]\npath = []\n\n[run]\ndir = \"\"\n\n[lora]\ninit = \" \"\n";
    data_numbers: "[model]\nbase = \"qwen\"\n\n[[data]]\npath = \"a\"\nweight = 0\n\n[[data]]\npath = \"b\"\nlimit = 0\n";
    no_data: "data = []\n[model]\nbase = \"qwen\"\n";
    sampling_numbers: with!("[generate]\nmax_tokens = 0\ntemperature = -1\ntop_p = 0");
}

#[test]
fn the_least_recipe_is_enough() {
    let parsed = read(LEAST, &[]).unwrap();
    assert!(parsed.warnings.is_empty());
    assert_eq!(parsed.recipe.model.base, "qwen");
    assert_eq!(parsed.recipe.adapter().unwrap().rank, 16);
}

#[test]
fn a_recipe_can_be_made_of_settings_alone() {
    let settings: Vec<Setting> =
        ["model.base=qwen", "data.0.path=rows.parquet", "data[1].path=[\"a\", \"b\"]", "lora.rank=4"]
            .map(Setting::from_set)
            .into();
    let parsed = Recipe::load(None, &settings, Purpose::Train).unwrap();
    assert_eq!(parsed.recipe.data.len(), 2);
    assert_eq!(parsed.recipe.data[1].path.as_slice(), ["a", "b"]);
    assert_eq!(parsed.recipe.lora.unwrap().rank, 4);
}

#[test]
fn a_recipe_with_mistakes_is_read_as_far_as_it_goes() {
    let text = with!("[lora]\nrank = \"8\"\nalpha = 4\nfoo = 1\n\n[full]");
    let doc = RecipeDoc::from_text(Some(Path::new("recipe.toml")), text, &[]);
    let (recipe, said) = Recipe::examine(&doc, Purpose::Train);
    let lora = recipe.unwrap().lora.unwrap();
    assert_eq!((lora.rank, lora.alpha.to_string()), (16, "4".to_owned()));
    assert_eq!(
        said.iter().map(|d| d.code).collect::<Vec<_>>(),
        ["wrong-type", "unknown-key", "lora-and-full", "adapter-learning-rate"]
    );
}

#[test]
fn settings_lie_over_the_recipe_and_the_last_one_counts() {
    let parsed = read(
        with!("[run]\nsteps = 5\nseed = 1"),
        &["run.steps=6", "run.steps = 7", "data[0].weight=2", "run.shuffle=false"],
    )
    .unwrap();
    assert_eq!(parsed.recipe.run.steps, Some(7));
    assert_eq!(parsed.recipe.run.seed, 1);
    assert_eq!(parsed.recipe.data[0].weight.to_string(), "2");
    assert!(!parsed.recipe.run.shuffle);
}

#[test]
fn bare_words_are_strings_where_strings_are_wanted() {
    let settings = [
        "model.base=2024-01-01",
        "model.revision=7",
        "run.device=cpu",
        "run.dir=../out dir",
        "tokens.template_vars.enable_thinking=false",
    ];
    let recipe = read(LEAST, &settings).unwrap().recipe;
    assert_eq!(recipe.model.base, "2024-01-01");
    assert_eq!(recipe.model.revision.as_deref(), Some("7"));
    assert_eq!(recipe.run.dir, qwen_tune_qwen::Auto::Value("../out dir".to_owned()));
    assert_eq!(recipe.tokens.template_vars["enable_thinking"], false);
}

#[test]
fn a_flag_is_a_setting_that_is_named_in_reports() {
    let settings = [Setting::from_flag("--model", "model.base", "m"), Setting::from_flag("--data", "eval.data", "")];
    let parsed = Recipe::load(None, &settings[..1], Purpose::Use).unwrap();
    assert_eq!(parsed.recipe.model.base, "m");
    assert_eq!(parsed.doc.span_of("model.base").unwrap().source.name, "--model");
}

#[test]
fn keys_know_their_place() {
    let doc = RecipeDoc::from_text(
        Some(Path::new("r.toml")),
        with!("[lora]\nrank = 8"),
        &[Setting::from_set("run.steps=20")],
    );
    let place = |key: &str| {
        let span = doc.span_of(key).unwrap();
        let (line, column) = span.source.locate(span.range.start);
        (span.source.text[span.range.clone()].to_owned(), span.source.name.clone(), line, column)
    };
    assert_eq!(place("lora.rank"), ("8".to_owned(), "r.toml".to_owned(), 8, 8));
    assert_eq!(place("data[0].path"), ("\"rows.parquet\"".to_owned(), "r.toml".to_owned(), 5, 8));
    assert_eq!(place("run.steps"), ("20".to_owned(), "--set".to_owned(), 1, 11));
    assert!(doc.span_of("data[1].path").is_none());
    assert!(doc.span_of("lora.alpha").is_none());
}

#[test]
fn relative_paths_are_tried_from_the_recipe_too() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("rows.jsonl"), "").unwrap();
    let path = directory.path().join("recipe.toml");
    std::fs::write(&path, LEAST).unwrap();
    let doc = Recipe::load(Some(&path), &[], Purpose::Train).unwrap().doc;
    assert_eq!(doc.resolve_path(Path::new("rows.jsonl")), directory.path().join("rows.jsonl"));
    assert_eq!(doc.resolve_path(Path::new("nowhere.jsonl")), Path::new("nowhere.jsonl"));
    assert_eq!(doc.resolve_path(directory.path()), directory.path());
}

#[test]
fn files_that_are_no_recipes_are_refused_without_reading_them() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("recipe.toml"), LEAST).unwrap();
    std::fs::write(path("bytes.toml"), [0x66, 0xff, 0xfe]).unwrap();
    std::fs::File::create(path("huge.toml")).unwrap().set_len(1 << 40).unwrap();
    let mut text = String::new();
    for name in ["recpie.toml", "bytes.toml", "huge.toml", "."] {
        let said = Recipe::load(Some(&path(name)), &[], Purpose::Train).unwrap_err();
        assert_eq!(said.exit_code(), 2);
        text.push_str(&said.render(Look::PLAIN).replace(directory.path().to_str().unwrap(), "DIR"));
        text.push('\n');
    }
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, { insta::assert_snapshot!("unreadable_recipes", text) });
}

#[test]
fn a_resolved_recipe_is_a_recipe_and_says_why() {
    let text = with!(
        "[lora]\ntarget = [\"q_proj\", \"v_proj\"]\n\n[tokens.template_vars]\nenable_thinking = false\n\n[eval]\nfraction = 0.1\n\n[[export]]\nto = \"merged\""
    );
    let recipe = read(text, &[]).unwrap().recipe;
    let choices = [
        Choice::new("run.dir", "runs/recipe", "the recipe's name"),
        Choice::new("run.micro_batch", 4, "fits 2.1 GiB"),
        Choice::new("run.device", "cpu", "no GPU in this build"),
        Choice::new("data[0].format", "messages", "column `messages`"),
    ];
    let resolved = to_resolved_toml(&recipe, &choices).unwrap();
    let again = read(&resolved, &[]).unwrap().recipe;
    assert_eq!(again.run.micro_batch, qwen_tune_qwen::Auto::Value(4));
    assert_eq!(again.lora, recipe.lora);
    assert_eq!(again.tokens, recipe.tokens);
    assert_eq!(again.eval, recipe.eval);
    // Resolving again changes nothing but the reasons.
    let without_reasons =
        |text: &str| text.lines().map(|line| line.split("  # ").next().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(without_reasons(&to_resolved_toml(&again, &[]).unwrap()), without_reasons(&resolved));
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, { insta::assert_snapshot!("resolved_recipe", resolved) });
}

#[test]
fn the_adapter_of_a_recipe_without_sections_is_written_out() {
    let resolved = to_resolved_toml(&read(LEAST, &[]).unwrap().recipe, &[]).unwrap();
    assert!(resolved.contains("\n[lora]  # neither `[lora]` nor `[full]` was given\nrank = 16\n"), "{resolved}");
}

#[test]
fn a_resolved_recipe_leaves_the_shape_to_the_adapter_it_goes_on_from() {
    let recipe = read(with!("[lora]\ninit = \"runs/a/adapter\""), &[]).unwrap().recipe;
    let resolved = to_resolved_toml(&recipe, &[]).unwrap();
    assert!(!resolved.contains("rank ="), "{resolved}");
    assert!(read(&resolved, &[]).unwrap().warnings.is_empty());
}

#[test]
fn json_reports_have_places_and_hints() {
    let said = read(with!("[lora]\nrnak = 8"), &["run.device=gpu"]).unwrap_err();
    let json = serde_json::to_string_pretty(&said.to_json()).unwrap();
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, { insta::assert_snapshot!("json_report", json) });
}

#[test]
fn colour_and_boxes_only_where_asked_for() {
    let said = read(with!("[lora]\nrnak = 8"), &[]).unwrap_err();
    let render = |colour, unicode| said.render(Look { colour, unicode });
    assert!(render(false, false).is_ascii());
    assert!(render(true, false).contains('\u{1b}'));
    assert!(!render(false, true).contains('\u{1b}') && render(false, true).contains('╭'));
}

#[test]
fn reports_follow_the_lines_of_the_recipe() {
    let said = read(
        "[run]\nstps = 1\n\n[model]\nbase = \"\"\n\n[[data]]\npath = \"x\"\nweight = -1\n",
        &["lora.rank=0", "run.seed=x"],
    )
    .unwrap_err();
    let lines: Vec<(usize, usize)> = said
        .iter()
        .map(|d| d.span.as_ref().unwrap())
        .map(|span| (span.source.order, span.source.locate(span.range.start).0))
        .collect();
    assert_eq!(lines, [(0, 2), (0, 5), (0, 9), (1, 1), (2, 1)]);
}

proptest::proptest! {
    #[test]
    fn no_text_makes_reading_panic(text in "\\PC{0,80}", setting in "[a-z.0-9\\[\\]=\"' ]{0,30}") {
        let _ = read(&text, &[&setting]).map_err(|said| (said.render(Look { colour: false, unicode: true }), said.to_json()));
    }

    #[test]
    fn no_mangled_recipe_makes_reading_panic(at in 0usize..400, byte in 0u8..128, cut in 0usize..400) {
        let mut text = with!("[lora]\nrank = 8\ntarget = [\"a\"]\n[tokens.template_vars]\nx = { y = 1 }\n[run]\nmicro_batch = \"auto\"\n[[export]]\nto = \"merged\"").as_bytes().to_vec();
        let length = text.len();
        text[at % length] = byte;
        text.truncate(length - cut % length);
        let text = String::from_utf8(text).unwrap();
        let _ = read(&text, &["run.steps=3"]).map_err(|said| (said.render(Look::PLAIN), said.to_json()));
    }
}
