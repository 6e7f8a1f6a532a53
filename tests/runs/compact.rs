//! Runs whose optimizer, weights or adapters are held in other ways than f32: they learn, go on bit for bit, and export.

use qwen_tune_weights::peft::Adapter;
use qwen_tune_weights::{Checkpoint, Dtype, TensorSource};
use serde_json::Value;

use super::scene::{Scene, assert_same};
use super::{FULL, LORA, MODEL, Scratch, fail, losses, root, succeed};

const NARROW: [&str; 3] = ["optimizer.kind=adamw_8bit", "model.dtype=bf16", "full.master=bf16"];
const WHOLE: &str = "lora.modules_to_save=[\"embed_tokens\"]";

fn with<'a>(recipe: &'a str, settings: &[&'a str]) -> Vec<&'a str> {
    ["train", recipe].into_iter().chain(settings.iter().flat_map(|setting| ["--set", setting])).collect()
}

/// The last checkpoint taken away, a run goes on from the one before it to the same files.
#[test]
fn a_resumed_run_is_the_uninterrupted_one_bit_for_bit() {
    for make in [Scene::compact, Scene::whole] {
        let whole = make();
        whole.succeed(whole.train(false, &[]));
        let expected = whole.files();
        let last =
            expected.keys().filter_map(|name| name.strip_prefix("checkpoints/")?.split('/').next()).max().unwrap();
        std::fs::remove_dir_all(whole.run().join("checkpoints").join(last)).unwrap();
        for directory in ["adapter", "export"] {
            let _ = std::fs::remove_dir_all(whole.run().join(directory));
        }
        whole.succeed(whole.train(true, &[]));
        assert_same(&expected, &whole.files(), "resumed");
    }
}

#[test]
fn a_full_run_in_eight_and_sixteen_bits_learns_and_saves_what_it_holds() {
    let scratch = Scratch::new();
    succeed(&with(FULL, &[&NARROW[..], &[&scratch.dir("run")]].concat()));
    let run = scratch.path("run");
    let evals = losses(&run, "eval");
    assert!(evals[1] < 5.27, "held-out loss {evals:?}");
    let step = run.join("checkpoints/step-000020");
    let trained = Checkpoint::open(&step.join("trained.safetensors")).unwrap();
    let matrix = "layers.0.mlp.up_proj.weight";
    assert_eq!(trained.info(matrix).unwrap().dtype, Dtype::BF16);
    assert_eq!(trained.info("norm.weight").unwrap().dtype, Dtype::F32);
    let moments = Checkpoint::open(&step.join("optimizer.safetensors")).unwrap();
    for which in ["first", "second"] {
        let codes = moments.info(&format!("{which}.{matrix}.codes")).unwrap();
        assert_eq!((codes.dtype, &codes.shape), (Dtype::U8, &trained.info(matrix).unwrap().shape));
        assert_eq!(
            moments.info(&format!("{which}.{matrix}.scales")).unwrap().elements(),
            codes.elements().div_ceil(256)
        );
        assert_eq!(moments.info(&format!("{which}.norm.weight")).unwrap().dtype, Dtype::F32);
    }
    // A bf16 base is merged without any rounding: its file holds the trained bits.
    let merged = Checkpoint::open(&run.join("export/merged")).unwrap();
    assert_eq!(merged.read(&format!("model.{matrix}")).unwrap(), trained.read(matrix).unwrap());
}

/// The tiny model's head is its embedding: PEFT has to load both, or it would compute with the base's head.
#[test]
fn whole_modules_are_saved_for_peft_merged_and_used_by_every_command() {
    let scratch = Scratch::new();
    // A rate for weights themselves, not for adapters.
    let rate = "optimizer.learning_rate=1e-3";
    succeed(&with(LORA, &[WHOLE, &scratch.dir("run"), "optimizer.kind=adamw_8bit", rate]));
    let run = scratch.path("run");
    let evals = losses(&run, "eval");
    assert!(evals[1] < evals[0] - 0.05, "held-out loss {evals:?}");
    let adapter = Adapter::read(&run.join("adapter")).unwrap();
    assert_eq!(adapter.config.modules_to_save, Some(vec!["embed_tokens".to_owned(), "lm_head".to_owned()]));
    let names: Vec<&str> = adapter.others.iter().map(|other| other.info.name.as_str()).collect();
    assert_eq!(names, ["model.embed_tokens.weight", "lm_head.weight"]);
    assert_eq!(adapter.others[0].bytes, adapter.others[1].bytes);
    let base = Checkpoint::open(&root().join(MODEL)).unwrap();
    let merged = Checkpoint::open(&run.join("export/merged")).unwrap();
    let embedding = "model.embed_tokens.weight";
    assert!(base.read(embedding).unwrap() != merged.read(embedding).unwrap());
    assert!(merged.info("lm_head.weight").is_none(), "still tied");

    let (adapter, merged) =
        (run.join("adapter").display().to_string(), run.join("export/merged").display().to_string());
    let eval = |args: &[&str]| -> f64 {
        let data = "datasets/shakespeare_chat_eval.parquet";
        let fixed = ["--data", data, "--json", "--set", "eval.limit=16", "--set", "tokens.max_length=512"];
        let out = succeed(&[&["eval"], args, &fixed].concat());
        serde_json::from_str::<Value>(&out).unwrap()["loss"].as_f64().unwrap()
    };
    let (adapted, folded) = (eval(&["--model", MODEL, "--adapter", &adapter]), eval(&["--model", &merged]));
    assert!((adapted - evals[1]).abs() < 1e-4, "adapter {adapted}, in training {}", evals[1]);
    // The merged weights are rounded to the base's bf16.
    assert!((adapted - folded).abs() < 2e-2, "adapter {adapted}, merged {folded}");

    // An adapter to go on from brings its whole tensors.
    let init = format!("lora.init={adapter}");
    succeed(&with(LORA, &[&init, &scratch.dir("again"), "run.steps=1", "export=[]"]));
    let begins = losses(&scratch.path("again"), "eval")[0];
    assert!((begins - adapted).abs() < 1e-4, "goes on at {begins}, was at {adapted}");
}

#[test]
fn what_makes_no_sense_is_refused_with_what_would() {
    let cases: [(&str, &str, &[&str]); 4] = [
        ("compact_no_such_module", LORA, &["lora.modules_to_save=[\"embed_token\", \"*_projj\"]"]),
        ("compact_nothing_adapted", LORA, &["lora.target=[\"q_proj\"]", "lora.modules_to_save=[\"q_proj\"]"]),
        ("compact_narrow_in_f32", FULL, &["full.master=bf16", "model.dtype=f32"]),
        ("compact_unknown_optimizer", FULL, &["optimizer.kind=adamw8bit"]),
    ];
    for (name, recipe, settings) in cases {
        let arguments = ["check", recipe].into_iter().chain(settings.iter().flat_map(|setting| ["--set", setting]));
        let told = fail(&arguments.collect::<Vec<_>>(), 2);
        insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
            insta::assert_snapshot!(name, told);
        });
    }
}
