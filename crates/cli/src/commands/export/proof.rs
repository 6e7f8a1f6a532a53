//! What was found when an export was read back from disk: `verify.json`, and a line on the terminal.
//!
//! Three things are compared with the trained model: the files' structure (every key, and each tensor's name, shape and type),
//! the tokenizer's ids, and the answers of our own forward pass with the numbers in the files. A file of whole numbers that answers differently was not written right,
//! and fails the export. A quantised one answers differently by its nature; beyond what is usual it is a warning.

use std::path::Path;

use qwen_tune_data::Encoder;
use qwen_tune_qwen::gguf::Quant;
use qwen_tune_qwen::{FfnSpec, MixerSpec, ModelDir};
use qwen_tune_train::Fidelity;
use qwen_tune_weights::atomic::write_file;
use qwen_tune_weights::{Dtype, TensorSource, WeightError};
use serde::Serialize;

use super::super::failed;
use super::witness::{Witness, probe_texts};
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::terminal::Table;

/// How numbers are stored, and what that may cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Storage {
    name: &'static str,
    /// Mean divergence from the trained model in nats that is usual, of models of some size; of tiny ones it is more.
    usual: f64,
    /// Whether more than that is a fault.
    is_exact: bool,
}

const fn storage(name: &'static str, usual: f64, is_exact: bool) -> Storage {
    Storage { name, usual, is_exact }
}

impl Storage {
    /// Of a GGUF file. Usual divergences of quantised files are three times what the real 135M model of the tests showed,
    /// which is near what llama.cpp's own comparisons say of larger ones.
    pub(super) fn of_quant(quant: Quant) -> Self {
        match quant {
            Quant::F32 => storage("F32", 1e-6, true),
            Quant::F16 => storage("F16", 1e-4, true),
            Quant::BF16 => storage("BF16", 2e-3, true),
            Quant::Q8_0 => storage("Q8_0", 3e-3, false),
            Quant::Q6_K => storage("Q6_K", 1e-2, false),
            Quant::Q5_K_M => storage("Q5_K_M", 3e-2, false),
            Quant::Q5_K_S => storage("Q5_K_S", 4e-2, false),
            Quant::Q5_1 => storage("Q5_1", 4e-2, false),
            Quant::Q5_0 => storage("Q5_0", 5e-2, false),
            Quant::Q4_K_M => storage("Q4_K_M", 0.1, false),
            Quant::Q4_K_S => storage("Q4_K_S", 0.15, false),
            Quant::Q4_1 => storage("Q4_1", 0.2, false),
            Quant::Q4_0 => storage("Q4_0", 0.25, false),
        }
    }

    /// Of a checkpoint: its coarsest type of matrices.
    pub(super) fn of_checkpoint(model: &ModelDir) -> Self {
        let has = |dtype| model.checkpoint.tensors().iter().any(|info| info.dtype == dtype && info.shape.len() > 1);
        match () {
            () if has(Dtype::BF16) => Self::of_quant(Quant::BF16),
            () if has(Dtype::F16) => Self::of_quant(Quant::F16),
            () => Self::of_quant(Quant::F32),
        }
    }

    /// The limit for this model. Routers choose other experts and gated norms amplify at the smallest rounding.
    fn limit(&self, model: &ModelDir) -> f64 {
        let is_sensitive =
            model.spec.layers.iter().any(|layer| {
                matches!(layer.mixer, MixerSpec::GatedDelta(_)) || matches!(layer.ffn, FfnSpec::Sparse(_))
            });
        if is_sensitive { 10.0 * self.usual } else { self.usual }
    }
}

/// What was found of one model that was written.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Finding {
    /// Its first file or its directory.
    pub(super) file: String,
    /// How its weights are stored.
    pub(super) storage: &'static str,
    /// Bytes of its files.
    pub(super) bytes: u64,
    /// Texts on which its tokenizer was compared, ids and stop ids being equal.
    tokenizer_texts: usize,
    #[serde(flatten)]
    pub(super) fidelity: Fidelity,
    /// The mean divergence that is usual for this storage.
    usual_kl: f64,
    /// Whether the divergence is at most that.
    as_usual: bool,
}

/// Everything that was found of an export.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Proof {
    program: String,
    /// What the models were compared on.
    rows: String,
    tokens: usize,
    /// Of the base, where it was at hand.
    #[serde(skip_serializing_if = "Option::is_none")]
    base_perplexity: Option<f64>,
    /// Of the trained model.
    trained_perplexity: Option<f64>,
    pub(super) files: Vec<Finding>,
}

impl Proof {
    pub(super) fn new(witness: &Witness) -> Self {
        Self {
            program: format!("qwen-tune {}", env!("CARGO_PKG_VERSION")),
            rows: witness.rows.clone(),
            tokens: witness.tokens(),
            base_perplexity: witness.base_perplexity,
            trained_perplexity: None,
            files: Vec::new(),
        }
    }

    /// Reads a model back and compares it; a warning where it is not as usual.
    ///
    /// # Errors
    /// If it cannot be read, has another tokenizer, or answers differently where its numbers allow no difference.
    pub(super) fn examine(
        &mut self,
        witness: &Witness,
        trained: &ModelDir,
        path: &Path,
        storage: Storage,
        bytes: u64,
    ) -> Result<Option<Diagnostic>, Diagnostics> {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let written = ModelDir::open(path)
            .map_err(|errors| errors.iter().map(|e| Diagnostic::failure_from("verify", e)).collect::<Diagnostics>())?;
        let texts = same_tokenizer(&witness.encoder, trained, &written, &file)?;
        let fidelity = witness.compare(&written)?;
        let limit = storage.limit(trained);
        self.trained_perplexity = Some(fidelity.reference_perplexity);
        let as_usual = fidelity.mean_kl <= limit;
        let said = format!(
            "`{file}` answers differently from the trained model: a mean divergence of {:.2e} nats over {} tokens",
            fidelity.mean_kl, fidelity.tokens
        );
        let expected = format!("at most {limit:.0e}, as {} allows", storage.name);
        self.files.push(Finding {
            file,
            storage: storage.name,
            bytes,
            tokenizer_texts: texts,
            fidelity,
            usual_kl: limit,
            as_usual,
        });
        match (as_usual, storage.is_exact) {
            (true, _) => Ok(None),
            (false, true) => Err(Diagnostic::failure("export-differs", said)
                .expected(expected)
                .hint("nothing was written; `verify = false` writes it all the same")
                .into()),
            (false, false) => Ok(Some(
                Diagnostic::warning("quant-far", said)
                    .expected(expected)
                    .hint("tiny models suffer more from coarse numbers; a finer quantisation is nearer"),
            )),
        }
    }

    /// The table for people.
    pub(super) fn table(&self) -> Table {
        let mut table = Table::new(["file", ">size", ">mean KL", ">max difference", ">same top token", ">perplexity"]);
        for (what, perplexity) in [("base", self.base_perplexity), ("trained", self.trained_perplexity)] {
            if let Some(perplexity) = perplexity {
                table.row([what, "", "", "", "", &format!("{perplexity:.4}")]);
            }
        }
        for found in &self.files {
            table.row(cells(found));
        }
        table
    }

    /// The same in Markdown, with what was compared.
    pub(super) fn markdown(&self) -> String {
        let mut out = format!(
            "Read back from disk and compared with the trained model on {} ({} tokens):\n\n\
             | file | size | mean KL, nats | largest difference of a log-probability | same top token | perplexity |\n\
             |---|---|---|---|---|---|\n",
            self.rows, self.tokens
        );
        for (what, perplexity) in [("base", self.base_perplexity), ("trained", self.trained_perplexity)] {
            if let Some(perplexity) = perplexity {
                out.push_str(&format!("| {what} | | | | | {perplexity:.4} |\n"));
            }
        }
        for found in &self.files {
            out.push_str(&format!("| {} |\n", cells(found).join(" | ")));
        }
        out
    }

    /// Writes `verify.json`.
    pub(super) fn write(&self, directory: &Path) -> Result<(), Diagnostics> {
        let text = serde_json::to_vec_pretty(self).map_err(|e| failed("verify", &e))?;
        let path = directory.join("verify.json");
        write_file(&path, |file| std::io::Write::write_all(file, &text).map_err(WeightError::io("write", &path)))
            .map_err(|e| failed("verify", &e))
    }
}

fn cells(found: &Finding) -> [String; 6] {
    let fidelity = &found.fidelity;
    [
        found.file.clone(),
        crate::terminal::bytes(found.bytes),
        format!("{:.2e}", fidelity.mean_kl),
        format!("{:.2e}", fidelity.max_logprob_difference),
        format!("{:.1}%", 100.0 * fidelity.top1_agreement),
        format!("{:.4}", fidelity.perplexity),
    ]
}

/// Holds the tokenizer that was written against the one that was trained with; the number of texts compared.
fn same_tokenizer(encoder: &Encoder, trained: &ModelDir, written: &ModelDir, file: &str) -> Result<usize, Diagnostics> {
    let mut config = encoder.config().clone();
    // Whatever the recipe renders with: what counts is what the files hold.
    config.template = None;
    let open = |model: &ModelDir| {
        Encoder::from_dir(model.side_directory(), &config, model.spec.vocab_size).map_err(|e| failed("verify", &e))
    };
    let (before, after) = (open(trained)?, open(written)?);
    let differs = |what: String| {
        Diagnostics::from(
            Diagnostic::failure("export-tokenizer", format!("`{file}` tokenises differently from the trained model"))
                .found(what),
        )
    };
    let texts = probe_texts(&before);
    if texts != probe_texts(&after) {
        return Err(differs("its chat template renders a conversation differently".to_owned()));
    }
    for text in &texts {
        let ids = |encoder: &Encoder| encoder.encode_text(text).map_err(|e| failed("verify", &e));
        let (one, other) = (ids(&before)?, ids(&after)?);
        if one != other {
            let at = one.iter().zip(&other).take_while(|(one, other)| one == other).count();
            return Err(differs(format!("the ids of a probe text differ from token {at} on")));
        }
    }
    let stops = |encoder: &Encoder, model: &ModelDir| {
        let mut ids = encoder.stop_ids();
        ids.extend(model.eos_ids());
        ids.sort_unstable();
        ids.dedup();
        ids
    };
    // GGUF files name one end of text; the others are known by their texts.
    let (one, other) = (stops(&before, trained), stops(&after, written));
    match one.iter().find(|id| !other.contains(id) && !encoder.is_added(**id)) {
        Some(lost) => Err(differs(format!("token {lost} no longer ends an answer"))),
        None => Ok(texts.len()),
    }
}

#[cfg(test)]
mod tests {
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
        let encoder =
            Encoder::from_dir(model.side_directory(), &TokensConfig::default(), model.spec.vocab_size).unwrap();
        let witness = Witness::of(&decoder, &parameters, false, &Arc::new(encoder), None, device).unwrap();
        let options = WriteOptions {
            name: "tiny".to_owned(),
            quants: vec![quant],
            about: About::default(),
            shard_bytes: u64::MAX,
        };
        let report = write(&model, None, home.path(), &options).unwrap();
        let file = report.models[0].files[0].clone();
        Scene { model, witness, home, file }
    }

    impl Scene {
        fn examine(&self, quant: Quant) -> Result<(Option<Diagnostic>, Proof), Diagnostics> {
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
        assert!(said.is_none());
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
                    assert_eq!(said.unwrap().code, "quant-far");
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
}
