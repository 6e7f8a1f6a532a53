//! What other programs make of our files. Skipped where they are not installed.
//!
//! | variable | names | filled by |
//! |---|---|---|
//! | `LLAMA_CPP` | llama.cpp v0.5.0 | `scripts/llama/install.sh` |
//!
//! Figures of the last run lie in `target/tmp/clients.tsv`.

mod case;
mod llama;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::DType;
use qwen_tune_data::{Encoder, TokensConfig};
use qwen_tune_model::{Decoder, LoraModule, LoraPlan, Pass, Training};
use qwen_tune_qwen::ModelDir;
use qwen_tune_qwen::gguf::{self, ARCHITECTURES, About, Quant, WriteOptions};
use qwen_tune_weights::Dtype;
use qwen_tune_weights::peft::{Adapter, LoraPair};
use serde_json::json;

use self::case::Case;
use self::llama::Llama;
use crate::cli::command;
use crate::golden::{host, max_abs};

/// What tokenizers get wrong, in composed characters: llama.cpp leaves out the normalisation to NFC with which Qwen's
/// tokenizers begin.
const TEXTS: &[&str] = &[
    "Hello, world! It's 12345 o'clock.",
    "  two  blanks\n\n\nand lines \r\n end ",
    "na\u{ef}ve fa\u{e7}ade \u{2014} \u{201c}quotes\u{201d} \u{2026} \u{5317}\u{4eac}\u{5e02} 2024\u{5e74} \u{3053}\u{3093} \u{1f642}\u{1f469}\u{200d}\u{1f52c}",
    "caf\u{e9} \u{41f}\u{440}\u{438}\u{432}\u{435}\u{442} \u{645}\u{631}\u{62d}\u{628}\u{627} \u{c548}\u{b155}",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "def f(x):\n\treturn x**2  # comment\n",
    "",
    " ",
    "'s't'LL I'VE",
];
/// Tokens that models are compared on.
const TOKENS: usize = 96;

#[test]
fn llama_cpp_answers_as_we_do_to_every_family_type_and_adapter() {
    let Some(llama) = Llama::installed() else { return };
    let mut figures = "case\twhat\tlargest difference\tmean KL\tlimit\n".to_owned();
    let mut wrong = Vec::new();
    for case in case::all() {
        for found in examine(&llama, &case) {
            let Found { what, largest, kl, limit } = &found;
            let line = format!("{}\t{what}\t{largest:.1e}\t{kl:.1e}\t{limit:?}", case.name);
            writeln!(figures, "{line}").unwrap();
            if !found.is_right() {
                wrong.push(line);
            }
        }
    }
    fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients.tsv"), figures).unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_kind_of_model_and_every_type_is_asked_about() {
    let known: BTreeSet<&str> =
        ARCHITECTURES.iter().flat_map(|architecture| architecture.model_types).copied().collect();
    let cases = case::all();
    assert_eq!(known, cases.iter().map(|case| case.name).collect());
    assert!(Quant::all().all(|quant| cases[0].quants.contains(&quant)), "a type is missing in {:?}", cases[0].quants);
}

/// How near two computations have to come.
#[derive(Debug, Clone, Copy)]
enum Limit {
    /// Largest difference of a logit: both compute in f32.
    Largest(f32),
    /// Mean divergence in nats: llama.cpp rounds activations too.
    Kl(f64),
}

impl Limit {
    /// Of two computations in f32. A gated norm divides each head's output by its own size, which may be next to nothing.
    fn exact(model: &ModelDir) -> Self {
        Self::Largest(if is_hybrid(model) { 1e-3 } else { 1e-4 })
    }

    /// Of a file of the type: three times what it showed where llama.cpp rounds activations to the type that it multiplies
    /// weights of that type by. Where rounding makes a router choose another expert, that token outweighs all others.
    fn of(quant: Quant, model: &ModelDir) -> Self {
        let [f16, bf16, eight, k] = match (is_hybrid(model), model.spec.sparse().is_some()) {
            (false, false) => [5e-7, 3e-5, 5e-4, 8e-4],
            (false, true) => [1e-3, 1e-3, 6e-3, 6e-3],
            (true, false) => [1e-5, 7e-4, 1.2e-2, 3e-2],
            (true, true) => [1e-2, 6e-2, 0.25, 0.4],
        };
        match quant {
            Quant::F32 => Self::exact(model),
            Quant::F16 => Self::Kl(f16),
            Quant::BF16 => Self::Kl(bf16),
            // Activations in eight bits, a scale for each 32 of them.
            Quant::Q8_0 | Quant::Q4_0 | Quant::Q4_1 | Quant::Q5_0 | Quant::Q5_1 | Quant::MXFP4_MOE => Self::Kl(eight),
            // A scale for each 256.
            Quant::Q4_K_S | Quant::Q4_K_M | Quant::Q5_K_S | Quant::Q5_K_M | Quant::Q6_K | Quant::IQ4_NL => Self::Kl(k),
        }
    }
}

fn is_hybrid(model: &ModelDir) -> bool {
    model.spec.gated_delta().is_some()
}

struct Found {
    what: String,
    largest: f32,
    kl: f64,
    limit: Limit,
}

impl Found {
    fn new(what: impl Into<String>, ours: &[f32], theirs: &[f32], width: usize, limit: Limit) -> Self {
        let what = what.into();
        assert!(ours.iter().all(|value| value.is_finite()), "{what}");
        Self { what, largest: max_abs(ours, theirs), kl: divergence(ours, theirs, width), limit }
    }

    /// Numbers that are not finite are not right either.
    fn is_right(&self) -> bool {
        match self.limit {
            Limit::Largest(limit) => self.largest <= limit && self.kl.is_finite(),
            Limit::Kl(limit) => self.kl <= limit,
        }
    }
}

fn examine(llama: &Llama, case: &Case) -> Vec<Found> {
    let home = tempfile::tempdir().unwrap();
    let place = |name: &str| home.path().join(name).to_string_lossy().into_owned();
    let model = case.write(&home.path().join("base"));
    let adapter = case::adapter(&model);
    adapter.write(&home.path().join("adapter"), Dtype::F32).unwrap();
    let names: Vec<&str> = case.quants.iter().map(|quant| quant.name()).collect();
    let export = |arguments: &[&str]| {
        let output = command(home.path(), &[&["export", "--model", "base"], arguments].concat()).output().unwrap();
        assert!(output.status.success(), "{}: {}", case.name, String::from_utf8_lossy(&output.stderr));
    };
    export(&["--to", "gguf", "--quant", &names.join(","), "--no-verify", "--out", "m"]);
    export(&["--to", "adapter-gguf", "--adapter", "adapter", "--out", "a"]);
    let file = |quant: Quant| place(&format!("m/{}", gguf::file_name("m", quant)));
    let shards = divided(&model, home.path());

    let encoder =
        Encoder::from_dir(&home.path().join("base"), &TokensConfig::default(), model.spec.vocab_size).unwrap();
    let texts: Vec<Vec<u32>> = TEXTS.iter().map(|text| encoder.encode_text(text).unwrap()).collect();
    let ids: Vec<u32> = texts.concat().into_iter().take(TOKENS).collect();
    assert_eq!(ids.len(), TOKENS);
    let logits = |model: &str, adapters: &[String], out: &str| json!({ "model": model, "adapters": adapters, "ids": ids, "logits": place(out) });
    let mut jobs = vec![
        json!({ "model": file(Quant::F32), "texts": TEXTS }),
        logits(&file(Quant::F32), &[place("a/a-adapter-F32.gguf")], "adapted"),
        logits(&shards.to_string_lossy(), &[], "shards"),
    ];
    for &quant in case.quants {
        // As it is, and with its numbers in a file of f32, with which llama.cpp rounds no activations.
        let plain = place("plain.gguf");
        jobs.push(logits(&file(quant), &[], quant.name()));
        jobs.push(json!({ "model": file(quant), "quantize": plain, "file_type": 0 }));
        jobs.push(logits(&plain, &[], &format!("{quant}-plain")));
    }
    let answers = llama.ask(&jobs);

    for (at, text) in TEXTS.iter().enumerate() {
        assert_eq!(answers[0]["ids"][at], json!(texts[at]), "{}: ids of {text:?}", case.name);
    }
    let ends: Vec<u32> = serde_json::from_value(answers[0]["ends"].clone()).unwrap();
    let stops = [encoder.stop_ids(), model.eos_ids()].concat();
    assert!(stops.iter().all(|id| ends.contains(id)), "{}: {stops:?} end an answer, not only {ends:?}", case.name);

    let width = model.spec.vocab_size;
    let theirs = |out: &str| {
        let bytes = fs::read(home.path().join(out)).unwrap();
        bytes.chunks_exact(4).map(|value| f32::from_le_bytes(value.try_into().unwrap())).collect::<Vec<f32>>()
    };
    let ours = answer(&model, &Training::Nothing, &ids);
    let adapted = answer(&model, &bound(&model, adapter), &ids);
    assert!(divergence(&ours, &adapted, width) > 0.05, "{}: the adapter changes next to nothing", case.name);
    let exact = Limit::exact(&model);
    let mut found = vec![
        Found::new("base", &ours, &theirs("F32"), width, exact),
        Found::new("adapter", &adapted, &theirs("adapted"), width, exact),
        Found::new("shards", &ours, &theirs("shards"), width, exact),
    ];
    for &quant in case.quants {
        let read = ModelDir::open(Path::new(&file(quant))).unwrap();
        let ours = answer(&read, &Training::Nothing, &ids);
        found.push(Found::new(quant.name(), &ours, &theirs(quant.name()), width, Limit::of(quant, &model)));
        let plain = format!("{quant}-plain");
        found.push(Found::new(&plain, &ours, &theirs(&plain), width, exact));
    }
    found
}

/// The first of the files of a model that is divided into several.
fn divided(model: &ModelDir, home: &Path) -> PathBuf {
    let directory = home.join("divided");
    fs::create_dir(&directory).unwrap();
    let options = WriteOptions {
        name: "s".to_owned(),
        quants: vec![Quant::F32],
        about: About { name: "s".to_owned(), ..About::default() },
        shard_bytes: 2 << 20,
    };
    let mut files = gguf::write(model, None, &directory, &options).unwrap().models.remove(0).files;
    assert!(files.len() > 2);
    files.remove(0)
}

/// Our logits, `[ids, vocabulary]`, in f32 on the CPU.
fn answer(model: &ModelDir, training: &Training, ids: &[u32]) -> Vec<f32> {
    let device = qwen_tune_train::device::open("cpu", Default::default()).unwrap().device;
    let (decoder, parameters) = Decoder::load(model, training, &device, DType::F32).unwrap();
    let positions: Vec<u32> = (0..ids.len() as u32).collect();
    let pass = Pass::plain(&parameters);
    let context = decoder.context(&[(0, ids.len())], &positions);
    host(decoder.logits(decoder.hidden(ids, &context, &pass), &pass))
}

fn bound(model: &ModelDir, adapter: Adapter) -> Training {
    let bind = |pair: LoraPair| {
        let module = model.module_of_peft(&pair.module).unwrap().to_owned();
        (module, LoraModule { rank: pair.rank, scale: pair.scale, values: Some((pair.a, pair.b)) })
    };
    Training::Lora(LoraPlan { modules: adapter.pairs.into_iter().map(bind).collect(), ..LoraPlan::default() })
}

/// Mean Kullback-Leibler divergence of the second model's next token from the first one's, in nats.
fn divergence(one: &[f32], other: &[f32], width: usize) -> f64 {
    let log_softmax = |row: &[f32]| -> Vec<f64> {
        let largest = row.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
        let shifted: Vec<f64> = row.iter().map(|&value| f64::from(value - largest)).collect();
        let sum = shifted.iter().map(|value| value.exp()).sum::<f64>().ln();
        shifted.into_iter().map(|value| value - sum).collect()
    };
    let row = |(one, other): (&[f32], &[f32])| -> f64 {
        let (one, other) = (log_softmax(one), log_softmax(other));
        one.iter().zip(&other).map(|(one, other)| one.exp() * (one - other)).sum()
    };
    let rows = one.len() / width;
    one.chunks(width).zip(other.chunks(width)).map(row).sum::<f64>() / rows as f64
}
