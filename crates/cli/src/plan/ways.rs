//! Ways to run, from the fastest to the one that takes least, and what to tell someone for whom none is small enough.

use qwen_tune_data::{Packing, StepSize};
use qwen_tune_model::{LoraPlan, Training};
use qwen_tune_qwen::Role;
use qwen_tune_qwen::memory::{Offload, chunk_sizes};
use qwen_tune_train::process;

use super::room::Load;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::recipe::RecipeDoc;
use crate::terminal::bytes;

/// Tokens of one forward that keep products busy; more gains nothing on a CPU.
pub(super) const FORWARD_TOKENS: usize = 4096;

/// One way to run, whose results are those of any other but for the order of sums.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Way {
    /// Most laid-out rows in one forward.
    pub micro_batch: usize,
    /// Lowest blocks that run again in the backward.
    pub recompute: usize,
    /// Tokens that go through a feed-forward part together where nothing of it is kept; `None` for all.
    pub ffn_chunk: Option<usize>,
    /// What waits in host memory.
    pub offload: Offload,
}

impl Load<'_> {
    /// Laid-out rows of a step, as near as can be said beforehand.
    fn step_rows(&self) -> usize {
        let rows = |tokens: f64| (tokens / self.worst.layout.max_length as f64).ceil() as usize;
        match (self.worst.layout.step, self.worst.layout.packing) {
            (StepSize::Rows(documents), Packing::BestFit) => rows(documents as f64 * self.worst.lengths.mean()),
            (StepSize::Rows(documents), _) => documents,
            (StepSize::Tokens(tokens), _) => rows(tokens as f64),
        }
    }

    /// Whether feed-forward parts may take their tokens in chunks: masks of experts' inputs go by the rows of an expert,
    /// which are others in a chunk.
    pub(super) fn splits_ffn(&self) -> bool {
        let adapted = |plan: &LoraPlan| {
            let experts = self.model.inventory.iter().filter(|tensor| tensor.role == Role::Experts);
            experts.filter_map(|tensor| tensor.module.as_ref()).any(|module| plan.modules.contains_key(module))
        };
        !matches!(&self.trained.training, Training::Lora(plan) if plan.dropout > 0.0 && adapted(plan))
    }

    /// Sizes of chunks from the fastest to the smallest, those left out that split no batch of so many rows.
    fn chunks(&self, micro_batch: usize, max_length: usize) -> Vec<Option<usize>> {
        if !self.splits_ffn() {
            return vec![None];
        }
        let largest = self.worst.largest(micro_batch, max_length);
        let tokens = [&largest.micro_batch, &largest.eval].map(|batch| batch.iter().sum::<usize>());
        let sizes = chunk_sizes(tokens[0].max(tokens[1]) as u64).map(|size| Some(size as usize));
        match self.recipe.run.ffn_chunk.tokens() {
            Some(chunk) => vec![chunk],
            None => std::iter::once(None).chain(sizes).collect(),
        }
    }

    /// Ways from the fastest to the smallest: less at a time first, then more that is run again, then that in smaller chunks,
    /// then more that waits in host memory.
    pub(super) fn ways(&self) -> Vec<Way> {
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
        let chunks = self.chunks(batches[batches.len() - 1], self.worst.layout.max_length);
        let mut ways =
            vec![Way { micro_batch: batches[0], recompute: blocks[0], ffn_chunk: chunks[0], offload: places[0] }];
        // One setting after the other, each from where the one before it has ended.
        let mut narrow = |smaller: &dyn Fn(Way) -> Vec<Way>| {
            let last = ways[ways.len() - 1];
            ways.extend(smaller(last).into_iter().skip(1));
        };
        narrow(&|last| batches.iter().map(|&micro_batch| Way { micro_batch, ..last }).collect());
        narrow(&|last| blocks.iter().map(|&recompute| Way { recompute, ..last }).collect());
        narrow(&|last| chunks.iter().map(|&ffn_chunk| Way { ffn_chunk, ..last }).collect());
        narrow(&|last| places.iter().map(|&offload| Way { offload, ..last }).collect());
        ways
    }

    /// Which key to change, to what. Memory that the recipe names is a limit; what is free now may be another amount
    /// when the run needs it, unless the machine has not even that much.
    pub(super) fn too_little(&self, way: Way, total: u64, most: u64, given: bool, doc: &RecipeDoc) -> Diagnostics {
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
        let chunk = |length| chunk_sizes(length).last().filter(|_| self.splits_ffn()).map(|size| size as usize);
        let ffn_chunk = way.ffn_chunk.into_iter().chain(chunk(width as u64)).min();
        let smallest = Way { micro_batch: 1, recompute: layers, ffn_chunk, offload: most_away };
        let smaller = [
            Way { micro_batch: 1, ..way },
            Way { micro_batch: 1, recompute: layers, ..way },
            Way { offload: way.offload, ..smallest },
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
            if let (Some(tokens), true) = (to.ffn_chunk, to.ffn_chunk != way.ffn_chunk) {
                keys.push(format!("--set run.ffn_chunk={tokens}"));
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
