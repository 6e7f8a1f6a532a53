//! How much fits: the micro-batch, and how many blocks run again, from the memory that is there.

use qwen_tune_data::{Dataset, Packing, StepSize};
use qwen_tune_model::{Master, Storage, Training};
use qwen_tune_qwen::ModelDir;
use qwen_tune_qwen::memory::{
    self, Extent, FlopInput, Flops, Formats, Kept, Learned, MemoryInput, MemoryPlan, Offload, WeightBytes,
};
use qwen_tune_train::device::OpenDevice;
use qwen_tune_train::{OptimizerKind, head_rows, own_memory, process};

use super::Trained;
use super::worst::Worst;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::recipe::{Recipe, RecipeDoc};
use crate::terminal::bytes;

/// Tokens of one forward that keep products busy; more gains nothing on a CPU.
const FORWARD_TOKENS: usize = 4096;
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
    pub(super) offload: Offload,
    /// Where the recipe leaves it open and there are two memories.
    pub(super) offload_reason: Option<String>,
    /// Ways that take less, the fastest first.
    pub(super) smaller: Vec<Way>,
    pub(super) cost: Cost,
    /// Where nothing fits, or hardly.
    pub(super) verdict: Diagnostics,
}

/// One way to run, whose results are those of any other but for the order of sums.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Way {
    /// Most laid-out rows in one forward.
    pub micro_batch: usize,
    /// Lowest blocks that run again in the backward.
    pub recompute: usize,
    /// What waits in host memory.
    pub offload: Offload,
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
            weights: &self.frozen_bytes(),
            activation_bytes: size,
            batch,
            kept: Kept { layers: spec.layers.len() - way.recompute },
            head_tokens: with_target,
            head_rows: head_rows(spec.vocab_size, own_memory(&self.device.device)) as u64,
            eval_tokens: largest.eval.iter().sum::<usize>() as u64,
            update_in_place: self.device.updates_in_place(),
            offload: way.offload,
        })
    }

    fn frozen_bytes(&self) -> WeightBytes {
        self.bytes_in(self.device.storage(self.recipe.model.quantize, Offload::None))
    }

    /// Bytes of the frozen weights, held in some way.
    fn bytes_in(&self, storage: Storage) -> WeightBytes {
        WeightBytes::of(&self.model.inventory, &self.learned(), |tensor| {
            storage.bytes_of(self.model, tensor, &self.device.device)
        })
    }

    /// What holding the weights in blocks saves, where they are.
    pub(super) fn quantize_reason(&self) -> Option<String> {
        let held = self.frozen_bytes().total();
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

    fn total(&self, way: Way, max_length: usize) -> u64 {
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

    /// Laid-out rows of a step, as near as can be said beforehand.
    fn step_rows(&self) -> usize {
        let rows = |tokens: f64| (tokens / self.worst.layout.max_length as f64).ceil() as usize;
        match (self.worst.layout.step, self.worst.layout.packing) {
            (StepSize::Rows(documents), Packing::BestFit) => rows(documents as f64 * self.worst.lengths.mean()),
            (StepSize::Rows(documents), _) => documents,
            (StepSize::Tokens(tokens), _) => rows(tokens as f64),
        }
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

    /// Ways from the fastest to the smallest: less at a time first, then more that is run again, then more that waits in
    /// host memory.
    fn ways(&self) -> Vec<Way> {
        let layers = self.model.spec.layers.len();
        // Of each step something for every device.
        let dealt = self.step_rows() / self.device.count();
        let most = (FORWARD_TOKENS / self.worst.layout.max_length)
            .min(if self.device.count() > 1 { dealt } else { usize::MAX })
            .max(1);
        let batches = match self.recipe.run.micro_batch.value() {
            Some(rows) => vec![rows],
            None => std::iter::successors(Some(most), |&n| (n > 1).then_some(n / 2)).collect(),
        };
        let blocks = match self.recipe.run.recompute.blocks(layers) {
            Some(blocks) => vec![blocks],
            None => (0..=layers).collect(),
        };
        let places = match self.recipe.run.offload.value() {
            // Host memory is the device's own: nothing is gained by moving things about in it.
            _ if self.device.on_host => vec![Offload::None],
            Some(offload) => vec![offload],
            None => Offload::ALL.to_vec(),
        };
        let (first, last) = (blocks[0], batches[batches.len() - 1]);
        let (offload, most_again) = (places[0], blocks[blocks.len() - 1]);
        let narrower = batches.iter().map(|&micro_batch| Way { micro_batch, recompute: first, offload });
        let smaller = blocks.iter().skip(1).map(|&recompute| Way { micro_batch: last, recompute, offload });
        let away = places.iter().skip(1).map(|&offload| Way { micro_batch: last, recompute: most_again, offload });
        narrower.chain(smaller).chain(away).collect()
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
        let offload_open = self.recipe.run.offload.is_auto() && !self.device.on_host;
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

    /// Which key to change, to what. Memory that the recipe names is a limit; what is free now may be another amount
    /// when the run needs it, unless the machine has not even that much.
    fn too_little(&self, way: Way, total: u64, most: u64, given: bool, doc: &RecipeDoc) -> Diagnostics {
        let never = given || process::machine_memory("MemTotal:").is_some_and(|all| total > all);
        let make = if never { Diagnostic::mistake } else { Diagnostic::warning };
        let limit = match self.recipe.run.memory.as_ref() {
            Some(size) => format!("`run.memory` allows {size}"),
            None => format!("{} can be taken here now", bytes(most)),
        };
        let at = if given { "run.memory" } else { "model.base" };
        let message = format!("the run needs about {}, {limit}", bytes(total));
        let mut told = make("too-little-memory", message).at(doc.span_of(at));
        let width = self.worst.layout.max_length;
        let layers = self.model.spec.layers.len();
        let most_away = if self.device.on_host { way.offload } else { Offload::Weights };
        let smallest = Way { micro_batch: 1, recompute: layers, offload: most_away };
        let smaller = [
            Way { micro_batch: 1, ..way },
            Way { micro_batch: 1, recompute: layers, ..way },
            Way { offload: way.offload.max(Offload::Embedding.min(most_away)), ..smallest },
            Way { offload: way.offload.max(Offload::Inputs.min(most_away)), ..smallest },
            smallest,
        ];
        let keys = |to: Way| {
            let mut keys = Vec::new();
            if to.micro_batch < way.micro_batch {
                keys.push("--set run.micro_batch=1".to_owned());
            }
            if to.recompute > way.recompute {
                keys.push("--set run.recompute=all".to_owned());
            }
            if to.offload > way.offload {
                keys.push(format!("--set run.offload={}", to.offload.name()));
            }
            keys
        };
        let mut steps: Vec<_> =
            smaller.into_iter().filter(|to| *to != way).map(|to| (to, width, keys(to).join(" "))).collect();
        let shorter = std::iter::successors(Some(width / 2), |n| Some(n / 2)).take_while(|&n| n >= 128);
        steps.extend(shorter.map(|n| {
            let all = [vec![format!("--set tokens.max_length={n}")], keys(smallest)].concat();
            (smallest, n, all.join(" "))
        }));
        let enough = steps.iter().find(|(way, length, _)| self.total(*way, *length) <= most);
        told = match enough {
            Some((way, length, keys)) => told.hint(format!("{} with `{keys}`", bytes(self.total(*way, *length)))),
            None if matches!(self.trained.training, Training::Full(_)) => {
                told.hint("train an adapter instead of all weights: `[lora]` in place of `[full]`")
            }
            None => told.hint("no setting makes it fit: take a smaller model or a machine with more memory"),
        };
        told.into()
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
