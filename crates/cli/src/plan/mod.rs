//! From what the recipe says to what will happen: files opened, every `auto` decided with its reason, lengths turned
//! into steps. Nothing is allocated on a device and nothing is written.

mod audit;
mod fault;
mod inputs;
mod length;
mod pace;
mod packing;
mod room;
mod trained;
mod ways;
mod worst;

use std::path::{Path, PathBuf};

use qwen_tune_data::{Audit, AuditLimits, BatchPlan, DataError, Dataset, Packing, StepSize};
use qwen_tune_model::{ComputeDtype, Storage};
use qwen_tune_qwen::memory::Offload;
use qwen_tune_qwen::{Auto, ModelDir};
use qwen_tune_train::device::OpenDevice;
use qwen_tune_train::{Artefact, EvalSet, Largest, Recompute, TrainState};

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::recipe::{Choice, Purpose, Recipe, RecipeDoc, Setting};
use inputs::Inputs;
use room::Load;
use worst::{Layout, Lengths, Worst};

pub use audit::{Part, audit_report};
pub use fault::{data_fault, data_faults, model_faults};
pub use inputs::{Opened, device_fault, held_out, open_model, roots, training_rows};
pub use length::step_size;
pub use pace::Estimate;
pub use packing::PackingCheck;
pub use room::{Cost, MemoryTable, available_memory};
pub use trained::{Trained, bind_adapter, key_layout, trained};
pub use ways::Way;

/// A run with nothing left to decide.
pub struct Plan {
    /// The recipe, with every choice filled in.
    pub recipe: Recipe,
    /// The base model's directory.
    pub model: ModelDir,
    /// Training rows.
    pub data: Dataset,
    /// Held-out rows.
    pub eval: Option<EvalSet>,
    /// What the first rows of every source look like.
    pub audit: Audit,
    /// The same of rows that are only evaluated on, where they are not a part of the training rows.
    pub eval_audit: Option<Audit>,
    /// What is trained.
    pub trained: Trained,
    /// Where.
    pub device: OpenDevice,
    /// Run directory.
    pub directory: PathBuf,
    /// Portion of data in a step.
    pub step_size: StepSize,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Most laid-out rows in one forward.
    pub micro_batch: usize,
    /// Lowest blocks that run again in the backward.
    pub recompute: usize,
    /// Tokens that go through a feed-forward part together where nothing of it is kept; `None` for all.
    pub ffn_chunk: Option<usize>,
    /// What waits in host memory.
    pub offload: Offload,
    /// Ways to run that take less, the fastest first.
    smaller: Vec<Way>,
    worst: Worst,
    /// What the run takes.
    pub cost: Cost,
    /// What a user should know and that stops nothing.
    pub warnings: Diagnostics,
    /// What was decided, and why.
    pub choices: Vec<Choice>,
}

/// A recipe and what will happen.
pub struct Prepared {
    /// Where each value was written.
    pub doc: RecipeDoc,
    /// The run.
    pub plan: Plan,
}

/// Reads a recipe with settings over it and decides everything.
///
/// # Errors
/// With every mistake of the recipe and, as far as it can be read, of the files it names: all at once.
pub fn prepare(path: Option<&Path>, settings: &[Setting], purpose: Purpose) -> Result<Prepared, Diagnostics> {
    let doc = match path {
        Some(path) => RecipeDoc::read(path, settings)?,
        None => RecipeDoc::from_settings(settings),
    };
    let (recipe, mut said) = Recipe::examine(&doc, purpose);
    let Some(recipe) = recipe.filter(|recipe| !recipe.model.base.is_empty()) else { return Err(said) };
    match Plan::make(&recipe, &doc, purpose) {
        Ok(mut plan) => {
            said.extend(std::mem::take(&mut plan.warnings));
            plan.warnings = said.stop_on_errors()?;
            Ok(Prepared { doc, plan })
        }
        Err(more) => {
            let told: Vec<_> = said.iter().filter_map(|d| d.span.clone()).collect();
            said.extend(more.into_iter().filter(|d| d.span.as_ref().is_none_or(|span| !told.contains(span))));
            said.sort_by_place();
            Err(said)
        }
    }
}

impl Plan {
    /// How the run lays out its data.
    #[must_use]
    pub fn batches(&self) -> BatchPlan {
        batches(&self.recipe, self.step_size, self.micro_batch)
    }

    /// How it runs.
    #[must_use]
    pub fn way(&self) -> Way {
        let Self { micro_batch, recompute, ffn_chunk, offload, .. } = *self;
        Way { micro_batch, recompute, ffn_chunk, offload }
    }

    /// Takes the next way that needs less; where sums must stay in the order they have, what it changes beside micro-batch
    /// and chunks. False if there is none.
    pub fn take_smaller(&mut self, same_sums: bool) -> bool {
        let helps = |way: &Way| !same_sums || way.recompute > self.recompute || way.offload > self.offload;
        let Some(at) = self.smaller.iter().position(helps) else { return false };
        let way = self.smaller.drain(..=at).next_back().expect("invariant: it was found");
        (self.recompute, self.offload) = (way.recompute, way.offload);
        self.recipe.run.recompute = Recompute::Blocks(way.recompute);
        self.recipe.run.offload = way.offload.into();
        if !same_sums {
            self.set_micro_batch(way.micro_batch);
            self.ffn_chunk = way.ffn_chunk;
        }
        true
    }

    /// The largest batches of the run.
    #[must_use]
    pub fn largest(&self) -> Largest {
        self.worst.largest(self.micro_batch, self.worst.layout.max_length)
    }

    /// How the run holds its model.
    #[must_use]
    pub fn storage(&self) -> Storage {
        self.device.storage(self.recipe.model.quantize, self.offload)
    }

    /// Goes on with the micro-batch and the chunks that a run began with, unless the recipe names them: what is free now
    /// may be other than it was then, and sums in another order round otherwise.
    pub fn keep_sums(&mut self, began_with: &TrainState) {
        if self.recipe.run.micro_batch.is_auto() {
            self.set_micro_batch(began_with.micro_batch);
        }
        if self.recipe.run.ffn_chunk.tokens().is_none() {
            self.ffn_chunk = began_with.ffn_chunk;
        }
    }

    fn set_micro_batch(&mut self, micro_batch: usize) {
        self.micro_batch = micro_batch;
        if let Some(eval) = &mut self.eval {
            eval.micro_batch = micro_batch;
        }
    }

    /// Decides everything.
    ///
    /// # Errors
    /// With every fault of recipe, checkpoint and data that can be seen without running.
    pub fn make(recipe: &Recipe, doc: &RecipeDoc, purpose: Purpose) -> Result<Self, Diagnostics> {
        let Inputs { model, device, threads, trained, data, held, audit, eval_audit, warnings: mut faults } =
            Inputs::open(recipe, doc, purpose)?;
        let eval = recipe.eval.clone().unwrap_or_default();

        let mut choices = Vec::new();
        let mut resolved = recipe.clone();
        let mut choose = |key: &str, value: toml::Value, reason: &str| choices.push(Choice::new(key, value, reason));
        if recipe.run.device == "auto" {
            choose("run.device", device.name.as_str().into(), &device.reason);
        }
        if recipe.model.dtype != ComputeDtype::F32 {
            choose("model.dtype", device.dtype.name().into(), &device.dtype_reason);
        }
        if matches!(recipe.run.threads, Auto::Auto | Auto::Value(0)) {
            choose("run.threads", (threads.count as i64).into(), &threads.reason);
        }
        // Where there is one class only, there is nothing to decide.
        if let (Artefact::Adapter { layout, .. }, [_, _, ..]) = (&trained.artefact, model.key_layouts)
            && recipe.adapter().is_some_and(|lora| lora.key_layout.is_auto())
        {
            let reason = "the paths of the class that the base's configuration names";
            choose("lora.key_layout", layout.name().into(), reason);
        }
        let packing = match recipe.tokens.packing {
            Packing::Auto => {
                choose(
                    "tokens.packing",
                    "best_fit".into(),
                    "documents never see each other, so it has no side effects",
                );
                Packing::BestFit
            }
            packing => packing,
        };
        resolved.tokens.packing = packing;
        // The resolved recipe lies in the run directory, where a path relative to the recipe's own would lead nowhere.
        resolved.model.base = model.path.to_string_lossy().into_owned();
        let directory = match recipe.run.dir.as_ref() {
            Some(dir) => PathBuf::from(dir),
            None => {
                let name = doc.path.as_deref().and_then(Path::file_stem).map_or("run".into(), |s| s.to_string_lossy());
                let dir = Path::new("runs").join(&*name);
                choose("run.dir", dir.to_string_lossy().into_owned().into(), "the recipe's name below `runs`");
                dir
            }
        };
        let lengths = Lengths::of_first(audit.sources.iter().flat_map(|s| s.lengths.iter().copied()).collect());
        let length = length::resolve(&recipe.run, &data, lengths.mean());
        for choice in &length.choices {
            choose(&choice.key, choice.value.clone(), &choice.reason);
        }
        let held_lengths = held.as_ref().map(|held| first_lengths(held, eval.limit)).transpose();
        let held_lengths = held_lengths.map_err(|e| Diagnostics::from(data_fault(&e)))?;
        let lengths = lengths
            .with_steps(&data, batches(&resolved, length.step_size, usize::MAX), length.total_steps)
            .map_err(|e| Diagnostics::from(data_fault(&e)))?;
        let layout =
            Layout { step: length.step_size, steps: length.total_steps, packing, max_length: recipe.tokens.max_length };
        let worst = Worst { layout, lengths, eval: held_lengths };
        let load =
            Load { recipe, model: &model, trained: &trained, device: &device, worst: &worst, held: held.as_ref() };
        let room = load.decide(doc);
        if let Some(reason) = load.quantize_reason() {
            choose("model.quantize", recipe.model.quantize.name().into(), &reason);
        }
        if purpose != Purpose::Check {
            faults.extend(room.verdict);
        }
        if device.on_host && recipe.run.offload.value().is_some_and(|offload| offload != Offload::None) {
            faults.push(
                Diagnostic::warning("offload-on-host", format!("`{}` computes in host memory itself", device.name))
                    .at(doc.span_of("run.offload"))
                    .label("is left out: there is no other memory to move things to")
                    .hint("`recompute = \"all\"` and a smaller `micro_batch` need less"),
            );
        }
        if recipe.run.ffn_chunk.tokens().flatten().is_some() && !load.splits_ffn() {
            faults.push(
                Diagnostic::warning(
                    "chunks-of-dropped-experts",
                    "masks of experts' inputs go by the rows of all tokens",
                )
                .at(doc.span_of("run.ffn_chunk"))
                .label("is left out: other rows would be dropped in chunks")
                .hint("`lora.dropout = 0` allows chunks"),
            );
        }
        let faults = faults.stop_on_errors()?;
        if recipe.run.micro_batch.is_auto() {
            choose("run.micro_batch", (room.micro_batch as i64).into(), &room.micro_batch_reason);
        }
        if let Some(reason) = &room.recompute_reason {
            choose("run.recompute", (room.recompute as i64).into(), reason);
        }
        if let Some(reason) = &room.ffn_chunk_reason {
            let value = room.ffn_chunk.map_or("none".into(), |tokens| (tokens as i64).into());
            choose("run.ffn_chunk", value, reason);
        }
        if let Some(reason) = &room.offload_reason {
            choose("run.offload", room.offload.name().into(), reason);
        }
        resolved.run.recompute = Recompute::Blocks(room.recompute);
        resolved.run.offload = room.offload.into();
        let eval = held.map(|dataset| EvalSet {
            dataset,
            limit: eval.limit.unwrap_or(usize::MAX),
            micro_batch: room.micro_batch,
            packing,
        });
        Ok(Self {
            recipe: resolved,
            model,
            data,
            eval,
            audit,
            eval_audit,
            device,
            directory,
            step_size: length.step_size,
            total_steps: length.total_steps,
            micro_batch: room.micro_batch,
            recompute: room.recompute,
            ffn_chunk: room.ffn_chunk,
            offload: room.offload,
            smaller: room.smaller,
            worst,
            cost: room.cost,
            warnings: faults,
            choices,
            trained,
        })
    }
}

/// How a recipe whose packing is decided lays out its data.
fn batches(recipe: &Recipe, step: StepSize, micro_batch: usize) -> BatchPlan {
    BatchPlan {
        step,
        micro_batch,
        seed: recipe.run.seed,
        shuffle: recipe.run.shuffle,
        packing: recipe.tokens.packing,
        max_length: recipe.tokens.max_length,
    }
}

/// Lengths of the first held-out rows.
fn first_lengths(held: &Dataset, limit: Option<usize>) -> Result<Lengths, DataError> {
    let mut lengths = Vec::new();
    for row in held.samples().take(limit.unwrap_or(usize::MAX).min(AuditLimits::START.rows as usize)) {
        let (_, encoded) = row?;
        lengths.extend(encoded.samples.iter().filter(|s| s.num_trained() > 0).map(|s| s.ids.len()));
    }
    Ok(Lengths::of_first(lengths))
}
