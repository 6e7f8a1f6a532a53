//! The recipe: what the user asks for, read so that every mistake is found at once and each points at its line.
//!
//! The sections' structs and their manual live beside the code that uses them; here they are only put together. The
//! order is: text to spanned table ([`doc`]), table against schema ([`walk`]), table to structs (serde), structs against
//! meaning ([`rules`]).

mod binding;
mod doc;
mod near;
mod renamed;
mod resolved;
mod rules;
mod schema;
mod setting;
mod tree;
mod walk;
mod wording;

use std::path::Path;

use qwen_tune_data::{SourceConfig, TokensConfig};
use qwen_tune_model::{FullConfig, LoraConfig, ModelConfig, Sampling};
use qwen_tune_qwen::export::ExportConfig;
use qwen_tune_train::{
    CheckpointConfig, EvalConfig, ObjectiveConfig, OptimizerConfig, ReportConfig, RunConfig, ScheduleConfig,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::Spanned;

pub use self::binding::{Changed, binding_keys, changed_keys};
pub use self::doc::RecipeDoc;
pub use self::near::nearest;
pub use self::resolved::{Choice, to_resolved_toml};
pub use self::schema::Schema;
pub use self::setting::Setting;

use crate::diagnostic::{Diagnostic, Diagnostics, Severity};

/// A qwen-tune recipe: which model, on which data, trained how, and what to make of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The checkpoint to start from.
    pub model: ModelConfig,
    /// Train an adapter. Without `[lora]` and `[full]` this section's defaults apply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// Train the model's own weights instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full: Option<FullConfig>,
    /// Where training rows come from; several entries are mixed by weight.
    #[serde(default)]
    pub data: Vec<SourceConfig>,
    /// How rows become tokens, and which of them carry loss.
    #[serde(default)]
    pub tokens: TokensConfig,
    /// What is optimised.
    #[serde(default)]
    pub objective: ObjectiveConfig,
    /// How gradients become updates.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// How the learning rate moves over the run.
    #[serde(default)]
    pub schedule: ScheduleConfig,
    /// How long, in what portions, where.
    #[serde(default)]
    pub run: RunConfig,
    /// When state is written for `--resume`.
    #[serde(default)]
    #[schemars(extend("x-may-change-on-resume" = true))]
    pub checkpoint: CheckpointConfig,
    /// Loss on held-out rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval: Option<EvalConfig>,
    /// What is made of the result when training is done.
    #[serde(default)]
    #[schemars(extend("x-may-change-on-resume" = true))]
    pub export: Vec<ExportConfig>,
    /// What is written about the run.
    #[serde(default)]
    #[schemars(extend("x-may-change-on-resume" = true))]
    pub report: ReportConfig,
    /// How `generate` and `chat` choose tokens.
    #[serde(default)]
    #[schemars(extend("x-may-change-on-resume" = true))]
    pub generate: Sampling,
}

/// What a recipe is read for, which decides what has to be in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Training data has to be named.
    Train,
    /// As for training, on whatever machine: its device may be another's.
    Check,
    /// Only the model has to be named: evaluation, generation, export.
    Use,
}

/// A recipe that can be acted on.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// The values.
    pub recipe: Recipe,
    /// Where each was written.
    pub doc: RecipeDoc,
    /// What the user should know.
    pub warnings: Diagnostics,
}

impl Recipe {
    /// Reads a recipe file, if there is one, with settings laid over it.
    ///
    /// # Errors
    /// With every mistake that can be seen in the recipe alone, in the order of its lines, warnings among them.
    pub fn load(path: Option<&Path>, settings: &[Setting], purpose: Purpose) -> Result<Parsed, Diagnostics> {
        let doc = match path {
            Some(path) => RecipeDoc::read(path, settings)?,
            None => RecipeDoc::from_settings(settings),
        };
        Self::from_doc(doc, purpose)
    }

    /// Reads a document.
    ///
    /// # Errors
    /// As [`Recipe::load`].
    pub fn from_doc(doc: RecipeDoc, purpose: Purpose) -> Result<Parsed, Diagnostics> {
        let (recipe, said) = Self::examine(&doc, purpose);
        let warnings = said.stop_on_errors()?;
        let recipe = recipe.expect("invariant: a document without mistakes was read");
        Ok(Parsed { recipe, doc, warnings })
    }

    /// Reads as much of a document as can be read, with all there is to say about it: what is wrong has its default, so
    /// that `check` can go on to files while the recipe still has mistakes.
    pub fn examine(doc: &RecipeDoc, purpose: Purpose) -> (Option<Self>, Diagnostics) {
        let mut said = doc.syntax_mistakes().clone();
        let schema = Schema::of_recipe();
        let (table, shape) = walk::walk(doc, &schema);
        said.extend(without_echoes(shape, doc.syntax_mistakes()));

        let read = Recipe::deserialize(toml::de::Deserializer::from(Spanned::new(0..0, tree::lend_table(&table))));
        let recipe = match read {
            Ok(recipe) => {
                said.extend(rules::check(&rules::Context { recipe: &recipe, doc, purpose }));
                Some(recipe)
            }
            Err(error) => {
                // What was taken out may be what is missing now: only a clean walk makes this news.
                if !said.has_errors() {
                    let span = error.span().filter(|range| !range.is_empty()).map(|range| doc.span(range));
                    said.push(Diagnostic::mistake("bad-value", error.message().to_owned()).at(span));
                }
                None
            }
        };
        said.sort_by_place();
        (recipe, said)
    }

    /// The adapter's settings when one is trained: those written, or the defaults when neither section is there.
    pub fn adapter(&self) -> Option<LoraConfig> {
        match (&self.lora, &self.full) {
            (Some(lora), _) => Some(lora.clone()),
            (None, None) => Some(LoraConfig::default()),
            (None, Some(_)) => None,
        }
    }
}

/// Drops complaints about the shape of what TOML could not read: a line is complained about once.
fn without_echoes(shape: Diagnostics, syntax: &Diagnostics) -> impl Iterator<Item = Diagnostic> {
    let line = |d: &Diagnostic| d.span.as_ref().map(|span| (span.source.order, span.source.locate(span.range.start).0));
    let broken: Vec<_> = syntax.iter().filter(|d| d.severity == Severity::Mistake).filter_map(line).collect();
    shape.into_iter().filter(move |d| {
        broken.is_empty() || (d.code != "missing-key" && line(d).is_none_or(|line| !broken.contains(&line)))
    })
}

#[cfg(test)]
mod tests;
