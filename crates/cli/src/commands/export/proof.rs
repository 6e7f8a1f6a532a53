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
use super::witness::{Quantised, Witness, probe_texts};
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::terminal::Table;

/// Gains of less than this, in nats, are within what rows of another sort would show.
const WORTH_KEEPING: f64 = 0.02;

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
    /// Of a GGUF file. Usual divergences of quantised files are three times what a real model of 135M parameters showed,
    /// SmolLM2-135M-Instruct tuned on GSM8K, on 1,051 tokens it was not trained on. Its rows are no multiples of 256, so
    /// that half of its K types are the next finer plain ones; larger models bear the coarser ones better. What was
    /// published of it is Q4_1, the grid of which was smoothed away with noise of less than half a step: on the grid,
    /// Q5_1 shows 1.7 times as much, and Q4_1 rounds the training away. F32 showed 1e-11, F16 2e-6, BF16 2e-4.
    pub(super) fn of_quant(quant: Quant) -> Self {
        match quant {
            Quant::F32 => storage("F32", 1e-6, true),
            Quant::F16 => storage("F16", 1e-4, true),
            Quant::BF16 => storage("BF16", 2e-3, true),
            Quant::Q8_0 => storage("Q8_0", 4e-3, false),
            Quant::Q6_K => storage("Q6_K", 1e-2, false),
            Quant::Q5_K_M => storage("Q5_K_M", 0.1, false),
            Quant::Q5_K_S => storage("Q5_K_S", 0.1, false),
            Quant::Q5_1 => storage("Q5_1", 0.1, false),
            Quant::Q5_0 => storage("Q5_0", 0.2, false),
            Quant::Q4_K_M => storage("Q4_K_M", 0.2, false),
            Quant::Q4_K_S => storage("Q4_K_S", 0.3, false),
            Quant::Q4_1 => storage("Q4_1", 0.6, false),
            Quant::Q4_0 => storage("Q4_0", 0.8, false),
            // Not measured on that model: as the plain type of as many bits.
            Quant::IQ4_NL => storage("IQ4_NL", 0.6, false),
            Quant::MXFP4_MOE => storage("MXFP4_MOE", 0.8, false),
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

    /// The same where both models are computed in bf16: results are rounded as coarsely as weights in bf16, and a merged
    /// weight rounds otherwise than base and adapter apart.
    fn computed_in_bf16(self) -> Self {
        Self { usual: self.usual.max(Self::of_quant(Quant::BF16).usual), ..self }
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
    /// Of the model as it was trained, on a quantised base: the trained model above is the adapter on the base as it is stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    trained_on: Option<Quantised>,
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
            trained_on: witness.quantised.clone(),
            files: Vec::new(),
        }
    }

    /// Reads a model back and compares it; warnings where it is not as usual, or where most of the training is lost.
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
    ) -> Result<Vec<Diagnostic>, Diagnostics> {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let written = ModelDir::open(path)
            .map_err(|errors| errors.iter().map(|e| Diagnostic::failure_from("verify", e)).collect::<Diagnostics>())?;
        let texts = same_tokenizer(&witness.encoder, trained, &written, &file)?;
        let fidelity = witness.compare(&written)?;
        let storage = if witness.is_in_bf16() { storage.computed_in_bf16() } else { storage };
        let limit = storage.limit(trained);
        self.trained_perplexity = Some(fidelity.reference_perplexity);
        let as_usual = fidelity.mean_kl <= limit;
        let said = format!(
            "`{file}` answers differently from the trained model: a mean divergence of {:.2e} nats over {} tokens",
            fidelity.mean_kl, fidelity.tokens
        );
        let expected = format!("at most {limit:.0e}, as {} allows", storage.name);
        let mut warnings: Vec<Diagnostic> = self.lost_training(&file, &fidelity).into_iter().collect();
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
            (true, _) => Ok(warnings),
            (false, true) => Err(Diagnostic::failure("export-differs", said)
                .expected(expected)
                .hint("nothing was written; `verify = false` writes it all the same")
                .into()),
            (false, false) => {
                let far = Diagnostic::warning("quant-far", said).expected(expected);
                warnings.push(far.hint("tiny models suffer more from coarse numbers; a finer quantisation is nearer"));
                Ok(warnings)
            }
        }
    }

    /// Coarse numbers can round away what training changed, however usual their divergence: above all where the base's
    /// own numbers lie on the same grid.
    fn lost_training(&self, file: &str, fidelity: &Fidelity) -> Option<Diagnostic> {
        let loss = |perplexity: f64| perplexity.ln();
        let (base, trained, written) =
            (loss(self.base_perplexity?), loss(fidelity.reference_perplexity), loss(fidelity.perplexity));
        let (gained, lost) = (base - trained, written - trained);
        if gained < WORTH_KEEPING || lost <= gained / 2.0 {
            return None;
        }
        let kept = crate::terminal::percent((1.0 - lost / gained).max(0.0));
        Some(
            Diagnostic::warning("training-lost", format!("`{file}` keeps {kept} of what training gained"))
                .found(format!("a loss of {written:.4}; the base has {base:.4}, the trained model {trained:.4}"))
                .hint("a finer quantisation keeps more, such as `q8_0`"),
        )
    }

    /// The table for people.
    pub(super) fn table(&self) -> Table {
        let mut table = Table::new(["file", ">size", ">mean KL", ">max difference", ">same top token", ">perplexity"]);
        for (what, perplexity) in [("base", self.base_perplexity), ("trained", self.trained_perplexity)] {
            if let Some(perplexity) = perplexity {
                table.row([what, "", "", "", "", &format!("{perplexity:.4}")]);
            }
        }
        if let Some(trained) = &self.trained_on {
            table.row(as_trained(trained));
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
        if let Some(trained) = &self.trained_on {
            out.push_str(&format!("| {} |\n", as_trained(trained).join(" | ")));
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
    let [kl, difference, same, perplexity] = distances(&found.fidelity, found.fidelity.perplexity);
    [found.file.clone(), crate::terminal::bytes(found.bytes), kl, difference, same, perplexity]
}

/// The model that training saw, held against the same adapter on the stored base.
fn as_trained(trained: &Quantised) -> [String; 6] {
    let [kl, difference, same, perplexity] = distances(&trained.fidelity, trained.fidelity.reference_perplexity);
    [format!("trained, base in {}", trained.quantize), String::new(), kl, difference, same, perplexity]
}

fn distances(fidelity: &Fidelity, perplexity: f64) -> [String; 4] {
    [
        format!("{:.2e}", fidelity.mean_kl),
        match fidelity.max_logprob_difference {
            small if small < 0.01 => format!("{small:.2e}"),
            large => format!("{large:.3}"),
        },
        format!("{:.1}%", 100.0 * fidelity.top1_agreement),
        format!("{perplexity:.4}"),
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
mod tests;
