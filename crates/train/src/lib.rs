//! Objective to gradients to updates to checkpoints; events.
//!
//! [`Run::execute`] is the loop. What it needs to go on after a stop is in [`TrainState`], the trained tensors and the
//! moments; what it has to say goes to an event [`Sink`]. Backends are known to [`device`] alone.

mod attempt;
pub mod backward;
mod bad_step;
mod balance;
mod checkpoint;
mod config;
pub mod device;
mod error;
mod eval;
mod event;
mod fidelity;
mod loss;
mod objective;
mod optimizer;
pub mod out_of_memory;
mod packing;
mod probe;
pub mod process;
mod provenance;
mod queue;
mod recent;
mod rehearsal;
mod replicas;
mod run;
mod schedule;
pub mod self_test;
mod sink;
mod state;
mod stop;
pub mod threads;

pub use bad_step::{BadStep, BadSteps, MOST_SKIPPED_IN_A_ROW, OnBadStep};
pub use balance::{Balance, ExpertFigures};
pub use checkpoint::{Artefact, CheckpointError, Checkpoints, Loaded};
pub use config::{
    CheckpointConfig, EvalConfig, EvalData, EvalSource, FfnChunk, FfnChunkWord, ObjectiveConfig, ObjectiveKind,
    Recompute, RecomputeWord, ReportConfig, RunConfig,
};
pub use error::{Failed, TrainError};
pub use eval::{EVAL_GROUP, EvalSet, LossSum, batch_logps};
pub use event::{Ending, Evaluation, Event, Fanout, Outcome, Sink, Step};
pub use fidelity::{Fidelity, Reference};
pub use loss::Loss;
pub use objective::{Likelihood, Objective, objective};
pub use optimizer::{AdamW, OptimizerConfig, OptimizerKind};
pub use packing::{PackingDifference, PackingProof, packing_difference, packing_tolerance};
pub use probe::{Pace, Probe};
pub use provenance::Provenance;
pub use queue::Ahead;
/// Tokens whose logits the head holds at a time.
pub use qwen_tune_kernels::most_chunk_tokens as head_rows;
pub use qwen_tune_kernels::own_memory;
pub use recent::{Fault, Recent};
pub use rehearsal::{Largest, rehearse};
pub use replicas::{Exchange, Replica};
pub use run::Run;
pub use schedule::{ScheduleConfig, ScheduleKind};
pub use sink::Jsonl;
pub use state::{Exact, STATE_FORMAT, TrainState};
pub use stop::StopFlag;
