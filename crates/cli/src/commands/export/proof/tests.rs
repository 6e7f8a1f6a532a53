//! What proofs find, and what they say of it.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::Arc;

use qwen_tune_data::TokensConfig;
use qwen_tune_model::{Decoder, Training};
use qwen_tune_qwen::gguf::{About, WriteOptions, write};
use qwen_tune_train::device;

use super::*;

/// A tiny model, what it answers, and a file of it.
struct Scene {
    model: ModelDir,
    witness: Witness,
    home: tempfile::TempDir,
    file: PathBuf,
}

fn scene(quant: Quant) -> Scene {
    let home = tempfile::tempdir().unwrap();
    let model = ModelDir::open(format!("{}/datasets/tiny-qwen3", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let device = device::open("cpu", Default::default()).unwrap();
    let (decoder, parameters) = Decoder::load(&model, &Training::Nothing, &device.device, device.dtype).unwrap();
    let encoder = Encoder::from_dir(model.side_directory(), &TokensConfig::default(), model.spec.vocab_size).unwrap();
    let witness = Witness::of(&decoder, &parameters, false, &Arc::new(encoder), None, device).unwrap();
    let options =
        WriteOptions { name: "tiny".to_owned(), quants: vec![quant], about: About::default(), shard_bytes: u64::MAX };
    let report = write(&model, None, home.path(), &options).unwrap();
    let file = report.models[0].files[0].clone();
    Scene { model, witness, home, file }
}

impl Scene {
    fn examine(&self, quant: Quant) -> Result<(Vec<Diagnostic>, Proof), Diagnostics> {
        let mut proof = Proof::new(&self.witness);
        let said = proof.examine(&self.witness, &self.model, &self.file, Storage::of_quant(quant), 1)?;
        Ok((said, proof))
    }

    /// Changes the bytes of the file.
    fn damage(&self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = std::fs::read(&self.file).unwrap();
        change(&mut bytes);
        std::fs::write(&self.file, bytes).unwrap();
    }
}

fn code(fault: &Diagnostics) -> &'static str {
    fault.iter().next().unwrap().code
}

#[test]
fn what_answers_as_trained_is_found_so() {
    let scene = scene(Quant::F16);
    let (said, proof) = scene.examine(Quant::F16).unwrap();
    assert!(said.is_empty());
    let found = &proof.files[0];
    assert!(found.as_usual && found.fidelity.mean_kl < 1e-5, "{found:?}");
    assert_eq!(found.tokenizer_texts, 2);
    proof.write(scene.home.path()).unwrap();
    assert!(proof.markdown().contains("| tiny-F16.gguf | 1 B |"), "{}", proof.markdown());
}

#[test]
fn other_numbers_fail_exact_files_and_warn_of_quantised_ones() {
    for (quant, fails) in [(Quant::F16, true), (Quant::Q8_0, false)] {
        let scene = scene(quant);
        // The rows of some tokens and layers that lie last in the file, as if they had been written in another order.
        scene.damage(|bytes| {
            let middle = bytes.len() - 200_000;
            let (one, other) = bytes[middle..].split_at_mut(100_000);
            one.swap_with_slice(&mut other[..100_000]);
        });
        match scene.examine(quant) {
            Err(fault) => assert!(fails && code(&fault) == "export-differs", "{quant}"),
            Ok((said, proof)) => {
                assert!(!fails, "{quant}: {:?}", proof.files[0]);
                assert!(said.iter().any(|told| told.code == "quant-far"));
                assert!(!proof.files[0].as_usual);
            }
        }
    }
}

#[test]
fn another_vocabulary_fails() {
    let scene = scene(Quant::F16);
    // Two merge rules change places: the same tokens, found in another order.
    scene.damage(|bytes| {
        let is_merge = |w: &[u8]| w.starts_with(b"\x03\0\0\0\0\0\0\0") && w[8..].is_ascii() && w[9] == b' ';
        let first = bytes.windows(11).position(is_merge).expect("a merge of two letters");
        let last = bytes.windows(11).rposition(is_merge).expect("a merge of two letters");
        (8..11).for_each(|at| bytes.swap(first + at, last + at));
    });
    let fault = scene.examine(Quant::F16).err().unwrap();
    assert_eq!(code(&fault), "export-tokenizer");
}

/// A proof with a base of perplexity 4, and a file of that perplexity whose trained model has 2.
fn told(base: Option<f64>, perplexity: f64) -> Option<Diagnostic> {
    let fidelity = Fidelity {
        tokens: 100,
        mean_kl: 0.1,
        max_kl: 0.2,
        max_logprob_difference: 1.0,
        top1_agreement: 0.9,
        reference_perplexity: 2.0,
        perplexity,
    };
    let proof = Proof {
        program: String::new(),
        rows: String::new(),
        tokens: 100,
        base_perplexity: base,
        trained_perplexity: None,
        trained_on: None,
        files: Vec::new(),
    };
    proof.lost_training("m-Q4_0.gguf", &fidelity)
}

#[test]
fn training_that_is_rounded_away_is_told() {
    // Half of a gain of ln 2 is kept at a perplexity of 2 sqrt 2.
    assert!(told(Some(4.0), 2.82).is_none());
    let said = told(Some(4.0), 2.83).expect("a warning").message;
    assert!(said.contains("keeps 49.9% of what training gained"), "{said}");
    let worse = told(Some(4.0), 5.0).expect("a warning").message;
    assert!(worse.contains("keeps 0.0%"), "{worse}");
    // Nothing to keep, and nothing known of the base.
    assert!(told(Some(2.03), 5.0).is_none());
    assert!(told(Some(1.5), 5.0).is_none());
    assert!(told(None, 5.0).is_none());
}

#[test]
fn a_computation_in_bf16_allows_what_bf16_does() {
    let [bf16, coarse] = [Quant::BF16, Quant::Q4_0].map(|quant| Storage::of_quant(quant).usual);
    assert!((Storage::of_quant(Quant::F32).computed_in_bf16().usual - bf16).abs() < f64::EPSILON);
    assert!((Storage::of_quant(Quant::Q4_0).computed_in_bf16().usual - coarse).abs() < f64::EPSILON);
}
