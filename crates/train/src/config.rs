//! The recipe sections that steer a run: `[run]`, `[objective]`, `[checkpoint]`, `[eval]`, `[report]`.
//!
//! A resumed run has to have the recipe it was started with, except for keys (or whole sections) marked
//! `x-may-change-on-resume`: those that do not decide what is computed, and those that are there to be changed.

use qwen_tune_data::SourceConfig;
use qwen_tune_qwen::memory::Offload;
use qwen_tune_qwen::{Auto, ByteSize};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bad_step::OnBadStep;

/// How long to train, in what portions, where, and on what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// Directory of the run; must not hold a run already. `auto` is `runs/` and the recipe's name.
    #[schemars(extend("x-may-change-on-resume" = true))]
    pub dir: Auto<String>,
    /// Seed of the data order, adapter initialisation and dropout.
    pub seed: u64,
    /// Passes over the data. One of `epochs`, `steps`, `tokens`; without any, one epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-may-change-on-resume" = true))]
    pub epochs: Option<f64>,
    /// Optimizer steps. A resumed run may be given another length (here, or through `epochs` or `tokens`): from its next
    /// step on the learning rate is that of a run of the new length, so a cosine that had come down rises again;
    /// `constant` does not care, `wsd` decays over the new end.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-may-change-on-resume" = true))]
    pub steps: Option<u64>,
    /// Stop after the step in which this many tokens have been seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-may-change-on-resume" = true))]
    pub tokens: Option<u64>,
    /// Rows of data in a step. Default 16 unless `global_tokens` is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub global_batch: Option<usize>,
    /// Tokens in a step: rows are taken until this budget is full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub global_tokens: Option<usize>,
    /// Most laid-out rows in one forward and backward. Never changes the maths.
    #[schemars(extend("x-may-change-on-resume" = true))]
    pub micro_batch: Auto<usize>,
    /// `auto`, `cpu`, `cuda:0`, `wgpu`, `vulkan` or `ndarray`. `cuda:0,1` or `cuda:all` trains on several together: each
    /// holds the model, a step's micro-batches are dealt out among them, and the result is that of one to rounding
    /// (`cpu:0,1` does so with two copies on the CPU, which gains nothing and shows how such a run goes).
    #[schemars(extend("x-may-change-on-resume" = true))]
    pub device: String,
    /// Threads on the CPU; `auto` or 0 takes all cores that the process may use, or `RAYON_NUM_THREADS` of them. Never
    /// changes a result.
    #[schemars(extend("x-may-change-on-resume" = true))]
    pub threads: Auto<usize>,
    /// How many blocks run their forward again in the backward: `auto`, `none`, `all` or a number.
    #[schemars(extend("x-may-change-on-resume" = true))]
    pub recompute: Recompute,
    /// Tokens that go through the feed-forward part of a block together where it runs again in the backward, and in
    /// evaluations: `auto`, `none` (all of a micro-batch) or a number. Changes nothing but the order in which gradients of
    /// that part are added up.
    #[schemars(extend("x-may-change-on-resume" = true))]
    pub ffn_chunk: FfnChunk,
    /// What waits in host memory while the device does other things: `none`, `embedding`, `inputs` (of blocks that run
    /// again in the backward, too) or `weights` (of the blocks, too); `auto` is the least that makes the run fit. Never
    /// changes a result. On a CPU the two memories are one.
    #[schemars(extend("x-may-change-on-resume" = true))]
    pub offload: Auto<Offload>,
    /// Memory the run may take on its device, such as `"8GB"`; `auto` is what is free there. `micro_batch`, `recompute`,
    /// `ffn_chunk` and `offload`, where they are `auto`, are chosen in this order to stay within it.
    pub memory: Auto<ByteSize>,
    /// Take rows in an order drawn from `seed`; `false` takes them as they stand in the files.
    pub shuffle: bool,
    /// After a step whose loss or gradients are no number or a spike: `stop`, or `skip` and count it. The update is never
    /// applied, and the batch is written to `bad-batches` in the run's directory.
    #[schemars(extend("x-may-change-on-resume" = true))]
    pub on_bad_step: OnBadStep,
    /// Steps whose loss or gradient norm lies more than this many standard deviations above the mean of up to 128 steps
    /// before (at least 64) count as bad; 6 is usual. Absent looks only for numbers that are none: a spike can be part of
    /// a healthy run.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-may-change-on-resume" = true))]
    pub spike: Option<f64>,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            dir: Auto::Auto,
            seed: 42,
            epochs: None,
            steps: None,
            tokens: None,
            global_batch: None,
            global_tokens: None,
            micro_batch: Auto::Auto,
            device: "auto".to_owned(),
            threads: Auto::Auto,
            recompute: Recompute::default(),
            ffn_chunk: FfnChunk::default(),
            offload: Auto::Auto,
            memory: Auto::Auto,
            shuffle: true,
            on_bad_step: OnBadStep::Stop,
            spike: None,
        }
    }
}

/// Which blocks keep their activations for the backward and which are run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Recompute {
    /// One of the words.
    Word(RecomputeWord),
    /// This many of the lowest blocks are run again.
    Blocks(usize),
}

impl Default for Recompute {
    fn default() -> Self {
        Self::Word(RecomputeWord::Auto)
    }
}

/// The words `recompute` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RecomputeWord {
    /// By the memory plan.
    Auto,
    /// All activations are kept: fastest.
    None,
    /// Only block inputs are kept: smallest.
    All,
}

impl Recompute {
    /// Number of the lowest blocks, out of `layers`, that run again; `None` leaves it to the memory plan.
    #[must_use]
    pub fn blocks(self, layers: usize) -> Option<usize> {
        match self {
            Self::Word(RecomputeWord::Auto) => None,
            Self::Word(RecomputeWord::None) => Some(0),
            Self::Word(RecomputeWord::All) => Some(layers),
            Self::Blocks(n) => Some(n.min(layers)),
        }
    }
}

/// Tokens that go through a feed-forward part together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum FfnChunk {
    /// One of the words.
    Word(FfnChunkWord),
    /// At most this many.
    Tokens(usize),
}

impl Default for FfnChunk {
    fn default() -> Self {
        Self::Word(FfnChunkWord::Auto)
    }
}

/// The words `ffn_chunk` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FfnChunkWord {
    /// By the memory plan.
    Auto,
    /// All tokens of a micro-batch.
    None,
}

impl FfnChunk {
    /// The user's choice, `None` within it for all tokens; `None` leaves it to the memory plan.
    #[must_use]
    pub fn tokens(self) -> Option<Option<usize>> {
        match self {
            Self::Word(FfnChunkWord::Auto) => None,
            Self::Word(FfnChunkWord::None) => Some(None),
            Self::Tokens(tokens) => Some(Some(tokens)),
        }
    }
}

/// What is maximised.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ObjectiveConfig {
    /// `sft` and `cpt` so far.
    pub kind: ObjectiveKind,
    /// Adds the router's load-balancing loss of mixtures of experts with this factor; 0.001 is usual. It asks routers to
    /// choose all experts equally often, and has an effect only on what is trained: routers (`lora.router`, `[full]`) and
    /// what lies below them. Pooled over the layers and tokens of each micro-batch, as transformers has it. Absent leaves it out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router_aux_loss_coef: Option<f64>,
}

/// Objectives by the names users know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ObjectiveKind {
    /// Supervised fine-tuning: log-likelihood of the assistant's tokens.
    #[default]
    Sft,
    /// Continued pre-training: log-likelihood of every token.
    Cpt,
    /// Direct preference optimisation. Not there yet.
    Dpo,
    /// Identity preference optimisation. Not there yet.
    Ipo,
    /// Odds-ratio preference optimisation. Not there yet.
    Orpo,
    /// Kahneman-Tversky optimisation. Not there yet.
    Kto,
    /// Simple preference optimisation. Not there yet.
    Simpo,
    /// Distillation. Not there yet.
    Distill,
}

/// When the state of the run is written so that it can be resumed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Steps between checkpoints; absent writes one at the end only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<u64>,
    /// How many of the latest stay on disk.
    pub keep: usize,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every: None, keep: 2 }
    }
}

/// Loss on rows that are not trained on.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvalConfig {
    /// Steps between evaluations; there is one before the first step and one after the last in any case.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-may-change-on-resume" = true))]
    pub every: Option<u64>,
    /// Held-out data: a path or glob, several, or tables like `[[data]]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-may-change-on-resume" = true))]
    pub data: Option<EvalData>,
    /// Share of the training rows held out instead, chosen by `run.seed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fraction: Option<f64>,
    /// Most rows evaluated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Stop when this many evaluations in a row have not improved on the best loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-may-change-on-resume" = true))]
    pub early_stop: Option<u64>,
}

/// Where evaluation rows come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum EvalData {
    /// One path or glob.
    Path(String),
    /// Several, or full tables.
    Sources(Vec<EvalSource>),
}

/// One entry of `eval.data`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum EvalSource {
    /// A path or glob whose format is found from its columns.
    Path(String),
    /// A table as under `[[data]]`.
    Table(SourceConfig),
}

/// What is written about the run beside its results.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReportConfig {
    /// `metrics.jsonl`, one object a step.
    pub jsonl: bool,
    /// TensorBoard event files. Not there yet.
    pub tensorboard: bool,
    /// `report.html`. Not there yet.
    pub html: bool,
}

impl Default for ReportConfig {
    fn default() -> Self {
        Self { jsonl: true, tensorboard: false, html: false }
    }
}
