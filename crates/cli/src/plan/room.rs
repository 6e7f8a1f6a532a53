//! How much fits: the micro-batch, and how many blocks run again, from the memory that is there.

use qwen_tune_model::Training;
use qwen_tune_qwen::ModelDir;
use qwen_tune_qwen::memory::{self, Kept, MemoryInput, MemoryPlan};
use qwen_tune_train::device::OpenDevice;

use super::Trained;
use crate::recipe::Recipe;

/// Tokens of one forward that keep products busy; more gains nothing on a CPU.
const FORWARD_TOKENS: usize = 4096;
/// Rows of logits that exist at a time.
const HEAD_ROWS: u64 = 1024;

/// Bytes by purpose.
#[derive(Debug, Clone)]
pub struct MemoryTable {
    /// Purpose and bytes.
    pub rows: Vec<(&'static str, u64)>,
    total: u64,
}

impl MemoryTable {
    /// At the worst moment, which not all rows share.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }
}

pub(super) struct Room {
    pub(super) micro_batch: usize,
    pub(super) micro_batch_reason: String,
    pub(super) recompute: usize,
    pub(super) recompute_reason: Option<String>,
    pub(super) table: MemoryTable,
}

pub(super) fn decide(recipe: &Recipe, model: &ModelDir, trained: &Trained, device: &OpenDevice) -> Room {
    let spec = &model.spec;
    let layers = spec.layers.len();
    let width = recipe.tokens.max_length;
    let fitting = (FORWARD_TOKENS / width).max(1);
    let micro_batch = recipe.run.micro_batch.unwrap_or_else(|| fitting);
    let (modules, rank, trained_base) = match &trained.training {
        Training::Nothing => (Vec::new(), 0, 0),
        Training::Lora(plan) => {
            let rank = plan.modules.values().map(|m| m.rank).max().unwrap_or(0);
            (plan.modules.keys().cloned().collect(), rank, 0)
        }
        Training::Full(names) => {
            let trained = memory::trained_parameters(&model.inventory, |t| names.contains(&t.name));
            (Vec::new(), 0, trained)
        }
    };
    let bytes = device.dtype.size() as u64;
    let plan = |recompute: usize| {
        memory::plan(&MemoryInput {
            spec,
            inventory: &model.inventory,
            weight_bytes: bytes,
            activation_bytes: bytes,
            modules: &modules,
            rank,
            trained_base,
            tokens: (micro_batch * width) as u64,
            kept: Kept { layers: layers - recompute },
            head_rows: HEAD_ROWS,
        })
    };
    let (recompute, recompute_reason) = match recipe.run.recompute.blocks(layers) {
        Some(blocks) => (blocks, None),
        None => automatic(&plan, layers),
    };
    Room {
        micro_batch,
        micro_batch_reason: format!("rows of up to {width} tokens, about {FORWARD_TOKENS} tokens a forward"),
        recompute,
        recompute_reason,
        table: table(&plan(recompute)),
    }
}

fn automatic(plan: &impl Fn(usize) -> MemoryPlan, layers: usize) -> (usize, Option<String>) {
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let needed = plan(0).total();
    match available_memory() {
        Some(there) if needed > there / 10 * 8 => {
            let reason =
                format!("keeping every activation takes {:.1} GiB, {:.1} GiB are free", gib(needed), gib(there));
            (layers, Some(reason))
        }
        Some(there) => {
            let reason = format!("everything fits: {:.1} GiB of {:.1} GiB free", gib(needed), gib(there));
            (0, Some(reason))
        }
        None => (0, Some("free memory is not known here; `all` needs least".to_owned())),
    }
}

fn table(plan: &MemoryPlan) -> MemoryTable {
    let rows = vec![
        ("weights", plan.weights),
        ("trained values, gradients, moments", plan.trained),
        ("kept for the backward", plan.saved),
        ("one block run again", plan.block),
        ("one chunk of the head", plan.head),
    ];
    MemoryTable { rows: rows.into_iter().filter(|row| row.1 > 0).collect(), total: plan.total() }
}

/// Bytes of memory that programs may still take, where the system says so (Linux).
#[must_use]
pub fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb * 1024)
}
