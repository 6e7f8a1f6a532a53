//! Loss of held-out rows, without tapes.

use burn::tensor::Tensor;
use qwen_tune_data::{Batch, DataError, Dataset, Packing, Sample, pack};
use qwen_tune_kernels as kernels;
use qwen_tune_model::{Decoder, Pass};

use crate::event::Evaluation;
use crate::stop::StopFlag;

/// Log-probabilities of a batch's targets on the host; 0 where a token has no target.
#[must_use]
pub fn batch_logps(decoder: &Decoder, pass: &Pass<'_>, batch: &Batch, targets: &[i32]) -> Vec<f32> {
    kernels::on_pool(|| {
        let sequences: Vec<(usize, usize)> = batch.sequences.iter().map(|s| (s.start, s.len)).collect();
        let context = decoder.context(&sequences, &batch.positions);
        let hidden = decoder.hidden(&batch.ids, &context, pass);
        let logp: Tensor<1> = kernels::token_logp(hidden, pass.matrix(decoder.head()), targets);
        logp.into_data().convert::<f32>().try_to_vec().expect("invariant: converted to f32")
    })
}

/// Documents of an evaluation that are laid out together.
pub const EVAL_GROUP: usize = 64;

/// Rows held out, and how they are laid out.
#[derive(Clone)]
pub struct EvalSet {
    /// The rows.
    pub dataset: Dataset,
    /// Most rows evaluated.
    pub limit: usize,
    /// Most laid-out rows in one forward.
    pub micro_batch: usize,
    /// How documents share laid-out rows.
    pub packing: Packing,
}

impl EvalSet {
    /// Loss of the model as `pass` sees it; `None` if `stop` was raised before all rows were seen.
    ///
    /// # Errors
    /// If a row cannot be read.
    pub fn loss(&self, decoder: &Decoder, pass: &Pass<'_>, stop: &StopFlag) -> Result<Option<LossSum>, DataError> {
        let mut sum = LossSum::default();
        let mut group: Vec<Sample> = Vec::new();
        let mut add = |group: &mut Vec<Sample>| {
            let width = self.dataset.encoder().config().max_length;
            for batch in pack::lay_out(group, self.packing, width, self.micro_batch) {
                if stop.raised() {
                    break;
                }
                sum.add(decoder, pass, &batch);
            }
            group.clear();
        };
        let mut rows = 0;
        for row in self.dataset.samples() {
            if stop.raised() {
                break;
            }
            let (_, encoded) = row?;
            let before = group.len();
            group.extend(encoded.samples.into_iter().filter(|s| s.num_trained() > 0));
            rows += usize::from(group.len() > before);
            if group.len() >= EVAL_GROUP {
                add(&mut group);
            }
            if rows == self.limit {
                break;
            }
        }
        add(&mut group);
        sum.rows = rows;
        Ok((!stop.raised()).then_some(sum))
    }
}

/// Sums over batches.
#[derive(Debug, Clone, Copy, Default)]
pub struct LossSum {
    /// Negative log-likelihood in nats.
    pub nats: f64,
    /// Targets.
    pub tokens: usize,
    /// Rows of data.
    pub rows: usize,
}

impl LossSum {
    /// Adds a batch.
    pub fn add(&mut self, decoder: &Decoder, pass: &Pass<'_>, batch: &Batch) {
        let logps = batch_logps(decoder, pass, batch, &batch.targets);
        self.nats -= logps.iter().map(|&l| f64::from(l)).sum::<f64>();
        self.tokens += batch.trained;
    }

    /// The result after `step` updates.
    #[must_use]
    pub fn evaluation(&self, step: u64) -> Evaluation {
        let loss = self.nats / self.tokens.max(1) as f64;
        Evaluation { step, loss, perplexity: loss.exp(), tokens: self.tokens, rows: self.rows }
    }
}
