//! Steps whose numbers went wrong: what the recipe wants done, and the batch on disk for a person to look at.

use std::io::Write;
use std::path::PathBuf;

use qwen_tune_data::{Batch, Dataset, Origin, Sequence, Step as DataStep};
use qwen_tune_model::{Decoder, Parameters, Pass};
use qwen_tune_weights::WeightError;
use qwen_tune_weights::atomic::write_file;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::eval::batch_logps;
use crate::recent::Fault;

/// Steps in a row that may be skipped; one more ends the run whatever the recipe says, for then it is not the rows.
pub const MOST_SKIPPED_IN_A_ROW: u64 = 5;

/// What happens after a step whose loss or gradients cannot be trusted. Its update is not applied in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnBadStep {
    /// The run saves what it had before that step and ends with exit code 1.
    #[default]
    Stop,
    /// The run goes on with the next rows; after five such steps in a row it stops all the same.
    Skip,
}

/// How a run meets bad steps.
pub struct BadSteps {
    /// Stop or go on.
    pub policy: OnBadStep,
    /// Standard deviations above the mean at which a step counts as bad; `None` looks only for what is no number.
    pub spike: Option<f64>,
    /// Where the batches are written: `bad-batches` of the run.
    pub directory: PathBuf,
    /// Where the rows came from.
    pub dataset: Dataset,
}

/// A step that was not applied.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BadStep {
    /// Its number, from 1.
    pub step: u64,
    /// What is wrong with it.
    pub reason: Fault,
    /// Its loss; JSON has no NaN and shows `null`.
    pub loss: f64,
    /// The norm of its gradients.
    pub grad_norm: f64,
    /// What the run does about it.
    pub action: OnBadStep,
    /// Its rows, tokens and losses.
    pub file: PathBuf,
    /// File and row of the sequence whose loss is not a number, or else the highest.
    #[serde(skip)]
    pub worst: Option<(PathBuf, u64)>,
}

/// The file of one bad step.
#[derive(Serialize)]
struct Record<'a> {
    step: u64,
    reason: Fault,
    loss: f64,
    grad_norm: f64,
    rows: Vec<RowRecord<'a>>,
}

#[derive(Serialize)]
struct RowRecord<'a> {
    source: usize,
    file: PathBuf,
    row: u64,
    tokens: usize,
    trained_tokens: usize,
    /// Mean over the trained tokens in nats, without dropout; `null` where it is no number.
    loss: f64,
    text: String,
    token_ids: &'a [u32],
    /// 0 or 1 for each token.
    trained: Vec<u8>,
}

impl BadSteps {
    /// Writes `step-NNNNNN.json` with every row of the step and the loss of each as the model now sees it.
    pub(crate) fn record(
        &self,
        decoder: &Decoder,
        parameters: &Parameters,
        data: &DataStep,
        mut bad: BadStep,
    ) -> Result<BadStep, WeightError> {
        let mut rows = Vec::new();
        for batch in &data.micro_batches {
            let logps = batch_logps(decoder, &Pass::plain(parameters), batch, &batch.targets);
            rows.extend(batch.sequences.iter().map(|sequence| self.row(batch, *sequence, &logps)));
        }
        let rank = |loss: f64| if loss.is_finite() { loss } else { f64::INFINITY };
        bad.worst = rows
            .iter()
            .reduce(|worst, row| if rank(row.loss) > rank(worst.loss) { row } else { worst })
            .map(|row| (row.file.clone(), row.row));
        bad.file = self.directory.join(format!("step-{:06}.json", bad.step));
        let record = Record { step: bad.step, reason: bad.reason, loss: bad.loss, grad_norm: bad.grad_norm, rows };
        let text = serde_json::to_vec_pretty(&record).expect("invariant: a record has only plain fields");
        if !self.directory.is_dir() {
            std::fs::create_dir(&self.directory).map_err(WeightError::io("create", &self.directory))?;
        }
        write_file(&bad.file, |file| file.write_all(&text).map_err(WeightError::io("write", &bad.file)))?;
        Ok(bad)
    }

    fn row<'a>(&self, batch: &'a Batch, sequence: Sequence, logps: &[f32]) -> RowRecord<'a> {
        let Sequence { start, len, origin, .. } = sequence;
        let span = start..start + len;
        let targets = &batch.targets[span.clone()];
        // A target stands at the token before it.
        let trained: Vec<u8> = std::iter::once(0).chain(targets[..len - 1].iter().map(|&t| u8::from(t >= 0))).collect();
        let trained_tokens = trained.iter().map(|&t| usize::from(t)).sum();
        let nats = -logps[span.clone()].iter().map(|&l| f64::from(l)).sum::<f64>();
        let Origin { source, row, .. } = origin;
        let token_ids = &batch.ids[span];
        RowRecord {
            source,
            file: self.dataset.file(origin).to_owned(),
            row,
            tokens: len,
            trained_tokens,
            loss: nats / trained_tokens.max(1) as f64,
            text: self.dataset.encoder().decode(token_ids, false).unwrap_or_default(),
            token_ids,
            trained,
        }
    }
}
