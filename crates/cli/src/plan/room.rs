//! How much fits: the micro-batch, and how many blocks run again, from the memory that is there.

use qwen_tune_data::{Dataset, StepSize};
use qwen_tune_model::{Master, Training, weight_dtype};
use qwen_tune_qwen::memory::{self, FlopInput, Flops, Formats, Kept, Learned, MemoryInput, MemoryPlan};
use qwen_tune_qwen::{ModelDir, TensorSpec};
use qwen_tune_train::device::OpenDevice;
use qwen_tune_train::{EVAL_GROUP, OptimizerKind, head_rows, process};

use super::Trained;
use super::worst::{Layout, Lengths};
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
    pub(super) layout: Layout,
    pub(super) lengths: &'a Lengths,
    /// Held-out rows and the lengths of the first, where there are any.
    pub(super) eval: Option<(&'a Dataset, &'a Lengths)>,
}

pub(super) struct Room {
    pub(super) micro_batch: usize,
    pub(super) micro_batch_reason: String,
    pub(super) recompute: usize,
    pub(super) recompute_reason: Option<String>,
    pub(super) cost: Cost,
    /// Where nothing fits, or hardly.
    pub(super) verdict: Diagnostics,
}

/// One way to run.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Way {
    micro_batch: usize,
    recompute: usize,
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
        let layout = Layout { max_length, ..self.layout };
        let eval =
            self.eval.map(|(_, lengths)| lengths.cut(max_length).worst_of_groups(EVAL_GROUP, layout, way.micro_batch));
        let size = self.device.dtype.size() as u64;
        let eval_tokens = eval.map_or(0, |extent| extent.tokens);
        let batch = self.lengths.cut(max_length).worst(layout, way.micro_batch);
        let with_target = (batch.tokens as f64 * (1.0 - self.lengths.without_target)).ceil() as u64;
        memory::plan(&MemoryInput {
            spec,
            inventory: &self.model.inventory,
            learned: &self.learned(),
            formats: self.formats(),
            weights: self.frozen_bytes(),
            activation_bytes: size,
            batch,
            kept: Kept { layers: spec.layers.len() - way.recompute },
            head_tokens: with_target,
            head_rows: head_rows(spec.vocab_size) as u64,
            eval_tokens,
            update_in_place: self.device.updates_in_place(),
        })
    }

    fn frozen_bytes(&self) -> u64 {
        let (model, learned) = (self.model, self.learned());
        let bytes = |tensor: &TensorSpec| {
            let OpenDevice { device, dtype, .. } = self.device;
            tensor.elements() * weight_dtype(model, tensor, device, *dtype).size() as u64
        };
        model.inventory.iter().filter(|tensor| !learned.is_base(tensor)).map(bytes).sum()
    }

    fn total(&self, way: Way, max_length: usize) -> u64 {
        self.plan(way, max_length).total() + self.program()
    }

    /// What is there before the model: on a CPU the program itself, its tokenizer and its window of the data.
    fn program(&self) -> u64 {
        if self.device.on_host { process::memory("VmRSS:").unwrap_or(0) + PROGRAM } else { 0 }
    }

    /// What may be taken, and whether the recipe says so.
    fn budget(&self) -> Option<(u64, bool)> {
        match self.recipe.run.memory.value() {
            Some(size) => Some((size.0, true)),
            None if self.device.on_host => available_memory().map(|there| ((there as f64 * SHARE) as u64, false)),
            None => None,
        }
    }

    /// Ways from the fastest to the smallest: less at a time first, then more that is run again.
    fn ways(&self) -> Vec<Way> {
        let layers = self.model.spec.layers.len();
        let most = (FORWARD_TOKENS / self.layout.max_length).max(1);
        let batches = match self.recipe.run.micro_batch.value() {
            Some(rows) => vec![rows],
            None => std::iter::successors(Some(most), |&n| (n > 1).then_some(n / 2)).collect(),
        };
        let blocks = match self.recipe.run.recompute.blocks(layers) {
            Some(blocks) => vec![blocks],
            None => (0..=layers).collect(),
        };
        let (first, last) = (blocks[0], batches[batches.len() - 1]);
        let narrower = batches.iter().map(|&micro_batch| Way { micro_batch, recompute: first });
        let smaller = blocks.iter().skip(1).map(|&recompute| Way { micro_batch: last, recompute });
        narrower.chain(smaller).collect()
    }

    /// Decides what the recipe leaves open.
    pub(super) fn decide(&self, doc: &RecipeDoc) -> Room {
        let layers = self.model.spec.layers.len();
        let width = self.layout.max_length;
        let budget = self.budget();
        let ways = self.ways();
        let smallest = ways[ways.len() - 1];
        let fits = |way: &Way| budget.is_some_and(|(most, _)| self.total(*way, width) <= most);
        let way = match budget {
            // Nobody knows what is free: the smallest is the safest.
            None => smallest,
            Some(_) => ways.iter().copied().find(fits).unwrap_or(smallest),
        };
        let plan = self.plan(way, width);
        let total = plan.total() + self.program();
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
        Room {
            micro_batch: way.micro_batch,
            micro_batch_reason,
            recompute: way.recompute,
            recompute_reason,
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
            context: self.lengths.context(),
            kept: Kept { layers: self.model.spec.layers.len() - way.recompute },
        });
        let limit = self.recipe.eval.as_ref().and_then(|eval| eval.limit).unwrap_or(usize::MAX) as u64;
        Cost {
            flops,
            memory,
            worst_tokens: self.lengths.worst(self.layout, way.micro_batch).tokens as usize,
            step_tokens: match self.layout.step {
                StepSize::Rows(rows) => rows as f64 * self.lengths.mean(),
                StepSize::Tokens(tokens) => tokens as f64,
            },
            eval_tokens: self.eval.map_or(0.0, |(held, lengths)| held.rows().min(limit) as f64 * lengths.mean()),
            learned,
            formats: self.formats(),
        }
    }

    fn table(&self, plan: &MemoryPlan, total: u64, budget: Option<u64>) -> MemoryTable {
        let rows = vec![
            ("program, tokenizer, data", self.program()),
            ("frozen weights", plan.weights),
            ("trained values and moments", plan.trained),
            ("gradients", plan.gradients),
            ("kept for the backward", plan.kept),
            ("backward of one block", plan.layer),
            ("holes between freed buffers", plan.holes),
            ("head, one chunk of logits", plan.head),
            ("evaluation", plan.eval),
            ("update of the largest tensor", plan.update),
        ];
        MemoryTable { rows: rows.into_iter().filter(|row| row.1 > 0).collect(), total, budget }
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
        let width = self.layout.max_length;
        let smallest = Way { micro_batch: 1, recompute: self.model.spec.layers.len() };
        let mut steps = Vec::new();
        if way.micro_batch > 1 {
            steps.push((Way { micro_batch: 1, ..way }, width, "--set run.micro_batch=1".to_owned()));
        }
        if way.recompute < smallest.recompute {
            let both = Way { micro_batch: 1, ..smallest };
            let keys = if way.micro_batch > 1 {
                "--set run.micro_batch=1 --set run.recompute=all"
            } else {
                "--set run.recompute=all"
            };
            steps.push((both, width, keys.to_owned()));
        }
        let shorter = std::iter::successors(Some(width / 2), |n| Some(n / 2)).take_while(|&n| n >= 128);
        steps.extend(shorter.map(|n| {
            (smallest, n, format!("--set tokens.max_length={n} --set run.micro_batch=1 --set run.recompute=all"))
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
