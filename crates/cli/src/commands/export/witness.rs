//! [`Witness`]: what a trained model answers on a few rows, kept to hold every exported file against.

use std::sync::Arc;

use qwen_tune_data::{Dataset, Encoder, Message, Origin, Packing, Sample, pack};
use qwen_tune_model::{Decoder, LoraPlan, Parameters, Pass, Training};
use qwen_tune_qwen::ModelDir;
use qwen_tune_train::device::OpenDevice;
use qwen_tune_train::{Fidelity, LossSum, Reference};
use serde::Serialize;
use serde_json::Map;

use super::super::failed;
use crate::diagnostic::Diagnostics;

/// Most rows that are compared.
const ROWS: usize = 32;
/// Most tokens that are compared: enough for a mean, and some seconds of a model that was trained on the same machine.
const TOKENS: usize = 2048;

/// A text of many kinds: what a tokenizer may get wrong, and what a model is compared on where there are no rows.
pub(super) const PROBE: &str = "The quick brown fox jumps over 13 lazy dogs, doesn't it?  Two  spaces,\ta tab\n\n\
    and 1234567890.5 things that cost $3.99 (or 3,99 \u{20ac}).\nfn half(x: f64) -> f64 { x * 0.5 } // x != y, \"quoted\"\n\
    \u{4f60}\u{597d}\u{ff0c}\u{4e16}\u{754c}\u{ff01}\u{4eca}\u{5929}\u{5929}\u{6c14}\u{5f88}\u{597d}\u{3002} \u{3053}\u{3093}\u{306b}\u{3061}\u{306f} \u{c548}\u{b155}\u{d558}\u{c138}\u{c694} \
    \u{41f}\u{440}\u{438}\u{432}\u{435}\u{442} \u{3b3}\u{3b5}\u{3b9}\u{3ac} \u{645}\u{631}\u{62d}\u{628}\u{627} na\u{ef}ve fa\u{e7}ade \u{1f600}\u{1f469}\u{200d}\u{1f52c}\r\n  indented   end ";

/// A trained model's answers.
pub(in crate::commands) struct Witness {
    reference: Reference,
    /// What the rows are, for people.
    pub(super) rows: String,
    /// Perplexity of the base on the same targets, where the base is at hand.
    pub(super) base_perplexity: Option<f64>,
    pub(super) encoder: Arc<Encoder>,
    device: OpenDevice,
    /// Where training saw another base than exports are made of.
    pub(super) quantised: Option<Quantised>,
}

/// What quantising the base for training changed: the model as it was trained against the same adapter on the base as it is
/// stored.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Quantised {
    /// What the base was quantised to.
    pub(super) quantize: &'static str,
    #[serde(flatten)]
    pub(super) fidelity: Fidelity,
}

impl Witness {
    /// Asks the model. `data` are rows it was not trained on, where there are some; without its adapters it is the base if
    /// `base_is_there`, which it is not where tensors of the base were trained themselves.
    pub(in crate::commands) fn of(
        decoder: &Decoder,
        parameters: &Parameters,
        base_is_there: bool,
        encoder: &Arc<Encoder>,
        data: Option<(&Dataset, &str)>,
        device: OpenDevice,
    ) -> Result<Self, Diagnostics> {
        let (samples, rows) = match data {
            Some((data, what)) => (rows_of(data)?, what.to_owned()),
            None => (Vec::new(), String::new()),
        };
        let (samples, rows) = match samples.len() {
            0 => (vec![probe(encoder)?], "a probe text".to_owned()),
            count => (samples, format!("{count} {rows}")),
        };
        let batches = pack::lay_out(&samples, Packing::Auto, encoder.config().max_length.max(TOKENS), 1);
        let pass = Pass::plain(parameters);
        let mut base = LossSum::default();
        if base_is_there {
            let without = Pass::plain(parameters).without_adapters();
            batches.iter().for_each(|batch| base.add(decoder, &without, batch));
        }
        Ok(Self {
            reference: Reference::of(decoder, &pass, batches),
            rows,
            base_perplexity: base_is_there.then(|| base.evaluation(0).perplexity),
            encoder: encoder.clone(),
            device,
            quantised: None,
        })
    }

    /// The same of an adapter on the base as it is stored, from what was asked of it on a quantised one. Exports are made of the
    /// stored base, so that is what they are held against; how far training's own model is from it is noted beside.
    pub(in crate::commands) fn of_stored_base(
        self,
        model: &ModelDir,
        adapter: LoraPlan,
        quantize: &'static str,
    ) -> Result<Self, Diagnostics> {
        let training = Training::Lora(adapter);
        let (decoder, parameters) = Decoder::load(model, &training, &self.device.device, self.device.dtype)
            .map_err(|e| failed("verify", &e))?;
        let pass = Pass::plain(&parameters);
        let fidelity = self.reference.compare(&decoder, &pass);
        let batches = self.reference.into_batches();
        let mut base = LossSum::default();
        let without = Pass::plain(&parameters).without_adapters();
        batches.iter().for_each(|batch| base.add(&decoder, &without, batch));
        Ok(Self {
            reference: Reference::of(&decoder, &pass, batches),
            base_perplexity: self.base_perplexity.map(|_| base.evaluation(0).perplexity),
            quantised: Some(Quantised { quantize, fidelity }),
            ..self
        })
    }

    /// How near a model that was written comes.
    pub(super) fn compare(&self, written: &ModelDir) -> Result<Fidelity, Diagnostics> {
        let (decoder, parameters) = Decoder::load(written, &Training::Nothing, &self.device.device, self.device.dtype)
            .map_err(|e| failed("verify", &e))?;
        Ok(self.reference.compare(&decoder, &Pass::plain(&parameters)))
    }

    /// Whether the models are computed in bf16.
    pub(super) fn is_in_bf16(&self) -> bool {
        self.device.is_in_bf16()
    }

    /// Targets compared.
    pub(super) fn tokens(&self) -> usize {
        self.reference.tokens()
    }
}

/// The first rows with a target, cut to the number of tokens that are compared.
fn rows_of(data: &Dataset) -> Result<Vec<Sample>, Diagnostics> {
    let (mut samples, mut tokens) = (Vec::new(), 0);
    for row in data.samples().take(4 * ROWS) {
        let (_, encoded) = row.map_err(|e| failed("data", &e))?;
        for mut sample in encoded.samples.into_iter().filter(|sample| sample.num_trained() > 0) {
            let room = TOKENS - tokens;
            if sample.ids.len() > room {
                sample.ids.truncate(room);
                sample.trained.truncate(room);
            }
            if sample.num_trained() > 0 {
                tokens += sample.ids.len();
                samples.push(sample);
            }
        }
        if samples.len() >= ROWS || tokens >= TOKENS {
            break;
        }
    }
    samples.truncate(ROWS);
    Ok(samples)
}

fn probe(encoder: &Encoder) -> Result<Sample, Diagnostics> {
    let ids = encoder.encode_text(PROBE).map_err(|e| failed("tokenizer", &e))?;
    let trained = (0..ids.len()).map(|at| at > 0).collect();
    Ok(Sample { ids, trained, origin: Origin { source: 0, file: 0, row: 0 } })
}

/// Texts on which two tokenizers have to agree: the probe, and a conversation in the template's form where there is one.
pub(super) fn probe_texts(encoder: &Encoder) -> Vec<String> {
    let messages = [Message::new("system", "Be brief."), Message::new("user", PROBE)];
    let chat = encoder.template().and_then(|_| encoder.render_chat(&messages, None, true, &Map::new()).ok());
    std::iter::once(PROBE.to_owned()).chain(chat).collect()
}
