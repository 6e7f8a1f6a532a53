//! How much fits: the micro-batch, how many blocks run again and in what chunks, from the memory that is there.

use qwen_tune_data::{Dataset, StepSize};
use qwen_tune_model::{Master, Storage, Training};
use qwen_tune_qwen::memory::{
    self, Extent, FlopInput, Flops, Formats, Kept, Learned, MemoryInput, MemoryPlan, Offload, WeightBytes,
};
use qwen_tune_qwen::{ModelDir, TensorSpec};
use qwen_tune_train::device::OpenDevice;
use qwen_tune_train::{OptimizerKind, head_rows, own_memory, process};

use super::Trained;
use super::ways::{FORWARD_TOKENS, Way};
use super::worst::Worst;
use crate::diagnostic::Diagnostics;
use crate::recipe::{Recipe, RecipeDoc};
use crate::terminal::bytes;

/// Share of the free memory that a run plans to take, unless the recipe names an amount.
const SHARE: f64 = 0.9;
/// Code that is read from disk once training begins, buffers of products, and what an allocator cannot give to anyone.
const PROGRAM: u64 = 9 << 20;

/// Bytes by purpose.
#[derive(Debug, Clone)]
pub struct MemoryTable {
    /// Purpose and bytes.
    pub rows: Vec<(&'static str, u64)>,
    total: u64,
    /// What may be taken, where that is known.
    pub budget: Option<u64>,
    /// What waits in host memory, which is no part of the total.
    pub host: u64,
}

impl MemoryTable {
    /// At the worst moment, which not all rows share.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }
}

/// What a run takes.
#[derive(Debug, Clone)]
pub struct Cost {
    /// What is trained, as counts of memory and operations see it.
    pub learned: Learned,
    /// How that is held.
    pub formats: Formats,
    /// Operations for each token.
    pub flops: Flops,
    /// What is held at the peak.
    pub memory: MemoryTable,
    /// Tokens of the largest micro-batch.
    pub worst_tokens: usize,
    /// Tokens of an average step.
    pub step_tokens: f64,
    /// Tokens of an evaluation; 0 without one.
    pub eval_tokens: f64,
}

/// What memory depends on beside the model.
pub(super) struct Load<'a> {
    pub(super) recipe: &'a Recipe,
    pub(super) model: &'a ModelDir,
    pub(super) trained: &'a Trained,
    pub(super) device: &'a OpenDevice,
    pub(super) worst: &'a Worst,
    /// Held-out rows, where there are any.
    pub(super) held: Option<&'a Dataset>,
}

pub(super) struct Room {
    pub(super) micro_batch: usize,
    pub(super) micro_batch_reason: String,
    pub(super) recompute: usize,
    pub(super) recompute_reason: Option<String>,
    pub(super) ffn_chunk: Option<usize>,
    /// Where the recipe leaves it open.
    pub(super) ffn_chunk_reason: Option<String>,
    pub(super) offload: Offload,
    /// Where the recipe leaves it open and there are two memories.
    pub(super) offload_reason: Option<String>,
    /// Ways that take less, the fastest first.
    pub(super) smaller: Vec<Way>,
    pub(super) cost: Cost,
    /// Where nothing fits, or hardly.
    pub(super) verdict: Diagnostics,
}

impl Load<'_> {
    fn learned(&self) -> Learned {
        learned(&self.trained.training)
    }

    fn formats(&self) -> Formats {
        Formats {
            coded_moments: self.recipe.optimizer.kind == OptimizerKind::AdamW8bit,
            narrow_values: matches!(&self.trained.training, Training::Full(plan) if plan.master == Master::Bf16),
        }
    }

    fn plan(&self, way: Way, max_length: usize) -> MemoryPlan {
        let spec = &self.model.spec;
        let largest = self.worst.largest(way.micro_batch, max_length);
        let size = self.device.dtype.size() as u64;
        let batch = Extent::of(largest.micro_batch);
        let with_target = (batch.tokens as f64 * (1.0 - self.worst.lengths.without_target)).ceil() as u64;
        memory::plan(&MemoryInput {
            spec,
            inventory: &self.model.inventory,
            learned: &self.learned(),
            formats: self.formats(),
            weights: &self.frozen_bytes(way.offload),
            activation_bytes: size,
            batch,
            accumulates: largest.accumulates,
            kept: Kept { layers: spec.layers.len() - way.recompute },
            ffn_chunk: way.ffn_chunk.map(|chunk| chunk as u64),
            head_tokens: with_target,
            head_rows: head_rows(spec.vocab_size, own_memory(&self.device.device)) as u64,
            forms: self.device.forms(),
            eval: Extent::of(largest.eval),
            update_in_place: self.device.updates_in_place(),
            offload: self.device.moved(way.offload),
        })
    }

    fn frozen_bytes(&self, offload: Offload) -> WeightBytes {
        let held = self.bytes_in(self.device.storage(self.recipe.model.quantize, Offload::None));
        if self.device.on_host && offload >= Offload::Weights { held.given_back(&self.in_files()) } else { held }
    }

    /// Bytes of each layer's frozen weights that lie in mapped files.
    pub(super) fn in_files(&self) -> Vec<u64> {
        let storage = self.device.storage(self.recipe.model.quantize, Offload::None);
        let bytes = |tensor: &TensorSpec| -> u64 {
            let pages = storage.pages_of(self.model, tensor, &self.device.device);
            pages.iter().map(|page| page.as_ref().len() as u64).sum()
        };
        WeightBytes::of(&self.model.inventory, &self.learned(), bytes).layers
    }

    /// Bytes of the frozen weights, held in some way.
    fn bytes_in(&self, storage: Storage) -> WeightBytes {
        WeightBytes::of(&self.model.inventory, &self.learned(), |tensor| {
            storage.bytes_of(self.model, tensor, &self.device.device)
        })
    }

    /// What holding the weights in blocks saves, where they are.
    pub(super) fn quantize_reason(&self) -> Option<String> {
        let held = self.frozen_bytes(Offload::None).total();
        let mut types: Vec<String> = Vec::new();
        for blocks in self.model.inventory.iter().filter_map(|tensor| self.model.blocks(tensor)) {
            let name = blocks.ty().name().to_lowercase();
            if !types.contains(&name) {
                types.push(name);
            }
        }
        if self.recipe.model.quantize.is_quantised() {
            let whole = self.bytes_in(self.device.dtype.into()).total();
            Some(format!("as the recipe says: {} of frozen weights instead of {}", bytes(held), bytes(whole)))
        } else if !types.is_empty() && self.device.decodes_blocks() {
            Some(format!("the file's own blocks are trained in place, {}: {}", types.join(", "), bytes(held)))
        } else {
            None
        }
    }

    pub(super) fn total(&self, way: Way, max_length: usize) -> u64 {
        self.sum(&self.plan(way, max_length))
    }

    /// On each device. Copies on the CPU share its memory, and the frozen weights in it.
    fn sum(&self, plan: &MemoryPlan) -> u64 {
        self.program() + plan.weights + self.copies() * (plan.total() - plan.weights)
    }

    /// How many times a device holds what is a replica's own.
    fn copies(&self) -> u64 {
        if self.device.on_host { self.device.count() as u64 } else { 1 }
    }

    /// What is there before the model: on a CPU the program itself, its tokenizer and its window of the data.
    fn program(&self) -> u64 {
        if self.device.on_host { process::memory("VmRSS:").unwrap_or(0) + PROGRAM } else { 0 }
    }

    /// What may be taken, and whether the recipe says so.
    fn budget(&self) -> Option<(u64, bool)> {
        match self.recipe.run.memory.value() {
            Some(size) => Some((size.0, true)),
            None => {
                let there = if self.device.on_host { available_memory() } else { self.device.free_memory() };
                there.map(|there| ((there as f64 * SHARE) as u64, false))
            }
        }
    }

    /// Decides what the recipe leaves open.
    pub(super) fn decide(&self, doc: &RecipeDoc) -> Room {
        let layers = self.model.spec.layers.len();
        let width = self.worst.layout.max_length;
        let budget = self.budget();
        let ways = self.ways();
        let smallest = ways[ways.len() - 1];
        let fits = |way: &Way| budget.is_some_and(|(most, _)| self.total(*way, width) <= most);
        let way = match budget {
            // Nobody knows what is free: the smallest is the safest.
            None => smallest,
            Some(_) => ways.iter().copied().find(fits).unwrap_or(smallest),
        };
        let smaller = ways.iter().copied().skip_while(|other| *other != way).skip(1).collect();
        let plan = self.plan(way, width);
        let total = self.sum(&plan);
        let verdict = match budget {
            Some((most, given)) if total > most => self.too_little(way, total, most, given, doc),
            _ => Diagnostics::new(),
        };
        let of = budget.map_or(String::new(), |(most, _)| format!(" of {}", bytes(most)));
        let micro_batch_reason = if way.micro_batch < ways[0].micro_batch {
            format!("more at a time does not fit: {}{of}", bytes(total))
        } else {
            format!("rows of up to {width} tokens, about {FORWARD_TOKENS} tokens a forward")
        };
        let recompute_reason =
            self.recipe.run.recompute.blocks(layers).is_none().then(|| match (budget, way.recompute) {
                (None, _) => "free memory is not known here; `all` needs least".to_owned(),
                (Some(_), 0) => format!("every activation fits: {}{of}", bytes(total)),
                (Some(_), _) => {
                    let kept = self.total(Way { recompute: 0, ..way }, width);
                    format!("keeping every activation takes {}{of}", bytes(kept))
                }
            });
        let chunk_open = self.recipe.run.ffn_chunk.tokens().is_none();
        let ffn_chunk_reason = chunk_open.then(|| match (budget, way.ffn_chunk) {
            (_, None) if !self.splits_ffn() => "masks of experts' inputs go by the rows of all tokens".to_owned(),
            (None, _) => "free memory is not known here; this needs least".to_owned(),
            (Some(_), None) => "all tokens at a time fit".to_owned(),
            (Some(_), Some(_)) => {
                let whole = self.total(Way { ffn_chunk: None, ..way }, width);
                format!("all tokens at a time take {}{of}", bytes(whole))
            }
        });
        let offload_open = self.recipe.run.offload.is_auto() && (!self.device.on_host || way.offload != Offload::None);
        let offload_reason = offload_open.then(|| match (budget, way.offload) {
            (None, _) => "the device's memory is not known here".to_owned(),
            (Some(_), Offload::None) => format!("everything fits: {}{of}", bytes(total)),
            (Some(_), _) => {
                let here = self.total(Way { offload: Offload::None, ..way }, width);
                format!("without it the run takes {}{of}", bytes(here))
            }
        });
        Room {
            micro_batch: way.micro_batch,
            micro_batch_reason,
            recompute: way.recompute,
            recompute_reason,
            ffn_chunk: way.ffn_chunk,
            ffn_chunk_reason,
            offload: way.offload,
            offload_reason,
            smaller,
            cost: self.cost(way, self.table(&plan, total, budget.map(|(most, _)| most))),
            verdict,
        }
    }

    fn cost(&self, way: Way, memory: MemoryTable) -> Cost {
        let learned = self.learned();
        let flops = memory::flops(&FlopInput {
            spec: &self.model.spec,
            inventory: &self.model.inventory,
            learned: &learned,
            context: self.worst.lengths.context(),
            kept: Kept { layers: self.model.spec.layers.len() - way.recompute },
        });
        let limit = self.recipe.eval.as_ref().and_then(|eval| eval.limit).unwrap_or(usize::MAX) as u64;
        Cost {
            flops,
            memory,
            worst_tokens: self.worst.largest(way.micro_batch, self.worst.layout.max_length).micro_batch.iter().sum(),
            step_tokens: match self.worst.layout.step {
                StepSize::Rows(rows) => rows as f64 * self.worst.lengths.mean(),
                StepSize::Tokens(tokens) => tokens as f64,
            },
            eval_tokens: self
                .held
                .zip(self.worst.eval.as_ref())
                .map_or(0.0, |(held, lengths)| held.rows().min(limit) as f64 * lengths.mean()),
            learned,
            formats: self.formats(),
        }
    }

    fn table(&self, plan: &MemoryPlan, total: u64, budget: Option<u64>) -> MemoryTable {
        let of_each = |bytes: u64| self.copies() * bytes;
        let rows = vec![
            ("program, tokenizer, data", self.program()),
            ("frozen weights", plan.weights),
            ("trained values and moments", of_each(plan.trained)),
            ("gradients", of_each(plan.gradients)),
            ("kept for the backward", of_each(plan.kept)),
            ("backward of one block", of_each(plan.layer)),
            ("holes between freed buffers", of_each(plan.holes)),
            ("head, one chunk of logits", of_each(plan.head)),
            ("evaluation", plan.eval),
            ("update of the largest tensor", of_each(plan.update)),
        ];
        MemoryTable { rows: rows.into_iter().filter(|row| row.1 > 0).collect(), total, budget, host: plan.host }
    }
}

/// What of the model learns, as memory sees it.
pub(super) fn learned(training: &Training) -> Learned {
    match training {
        Training::Nothing => Learned::nothing(),
        Training::Lora(plan) => {
            let ranks = plan.modules.iter().map(|(module, lora)| (module.clone(), lora.rank)).collect();
            Learned::Adapters { ranks, whole: plan.whole.keys().cloned().collect() }
        }
        Training::Full(plan) => Learned::Base(plan.tensors.clone()),
    }
}

/// Bytes of memory that programs may still take, where the system says so.
#[must_use]
pub fn available_memory() -> Option<u64> {
    process::machine_memory("MemAvailable:")
}
