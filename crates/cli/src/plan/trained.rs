//! From `[lora]` or `[full]` to what is trained and what training will leave behind.

use std::collections::{BTreeMap, BTreeSet};

use globset::Glob;
use qwen_tune_model::{FullConfig, LoraConfig, LoraModule, LoraPlan, Training};
use qwen_tune_qwen::{KeyLayout, ModelDir, TensorSpec, export};
use qwen_tune_train::Artefact;
use qwen_tune_weights::peft::Adapter;

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::recipe::{Recipe, RecipeDoc, nearest};

/// What is trained and how it is saved.
#[derive(Debug, Clone)]
pub struct Trained {
    /// For building the model.
    pub training: Training,
    /// For checkpoints.
    pub artefact: Artefact,
    /// Whether adapters drop inputs while training.
    pub dropout: bool,
}

/// Reads the recipe's choice.
///
/// # Errors
/// With every target, glob or adapter tensor that does not fit the model.
pub fn trained(recipe: &Recipe, doc: &RecipeDoc, model: &ModelDir) -> Result<Trained, Diagnostics> {
    match (recipe.adapter(), &recipe.full) {
        (Some(lora), _) => adapters(&lora, recipe, doc, model),
        (None, full) => full_fine_tuning(full.as_ref().unwrap_or(&FullConfig::default()), doc, model),
    }
}

fn adapters(lora: &LoraConfig, recipe: &Recipe, doc: &RecipeDoc, model: &ModelDir) -> Result<Trained, Diagnostics> {
    let list = &model.inventory;
    let layout = key_layout(lora, doc, model)?;
    let (modules, mut config) = if lora.init == "default" {
        let resolved = lora.target.resolve(list, &lora.layers);
        let modules = resolved.map_err(|errors| {
            let at = |key: &str| doc.span_of(key);
            errors.iter().map(|e| target_mistake(e, at)).collect::<Diagnostics>()
        })?;
        let scale = lora.scale() as f32;
        let base = Some(recipe.model.base.clone());
        let mut config = export::adapter_config(model, layout, base, lora.rank, lora.alpha, &modules);
        config.use_rslora = lora.rslora;
        let module = LoraModule { rank: lora.rank, scale, values: None };
        (modules.into_iter().map(|name| (name, module.clone())).collect(), config)
    } else {
        let path = doc.resolve_path(lora.init.as_ref());
        let adapter = Adapter::read(&path).map_err(|errors| {
            let tell = |e| Diagnostic::mistake_from("bad-adapter", e).at(doc.span_of("lora.init"));
            errors.iter().map(|e| tell(e as &dyn std::error::Error)).collect::<Diagnostics>()
        })?;
        let mut config = adapter.config.clone();
        config.base_model_name_or_path = Some(recipe.model.base.clone());
        let bound = bind_adapter(adapter, model).map_err(|mistakes| {
            mistakes.into_iter().map(|d| d.at(doc.span_of("lora.init"))).collect::<Diagnostics>()
        })?;
        let names: Vec<String> = bound.keys().cloned().collect();
        export::fit_config(model, layout, &mut config, &names);
        (bound, config)
    };
    config.lora_dropout = lora.dropout;
    if let Some(revision) = &recipe.model.revision {
        config.other.insert("revision".to_owned(), revision.clone().into());
    }
    let scales = modules.iter().map(|(name, module): (&String, &LoraModule)| (name.clone(), module.scale)).collect();
    let artefact = Artefact::Adapter { config: Box::new(config), layout, scales };
    let plan = LoraPlan { modules, dropout: lora.dropout as f32, seed: recipe.run.seed };
    Ok(Trained { training: Training::Lora(plan), artefact, dropout: lora.dropout > 0.0 })
}

/// Whose module paths adapters of this base are written in.
///
/// # Errors
/// If the base has no class with the paths that the recipe asks for.
pub fn key_layout(lora: &LoraConfig, doc: &RecipeDoc, model: &ModelDir) -> Result<KeyLayout, Diagnostics> {
    let layout = lora.key_layout.unwrap_or_else(|| model.key_layout);
    if model.key_layouts.contains(&layout) {
        return Ok(layout);
    }
    let message = format!("`lora.key_layout` cannot be `{}` with this base", layout.name());
    Err(Diagnostic::mistake("no-such-class", message)
        .at(doc.span_of("lora.key_layout"))
        .found(format!(
            "a configuration of `{}` without `text_config`, which only the text class loads",
            model.spec.model_type
        ))
        .expected("`\"auto\"` or `\"text\"`")
        .into())
}

/// Holds an adapter against the model: every pair must bind to a linear layer of its shape.
///
/// # Errors
/// With every pair that does not.
pub fn bind_adapter(adapter: Adapter, model: &ModelDir) -> Result<BTreeMap<String, LoraModule>, Diagnostics> {
    let list = &model.inventory;
    let linear: BTreeMap<&str, &TensorSpec> =
        list.iter().filter(|t| t.adaptable).filter_map(|t| Some((t.module.as_deref()?, t))).collect();
    let mut mistakes = Diagnostics::new();
    let mut bound = BTreeMap::new();
    for pair in adapter.pairs {
        let name = model.module_of_peft(&pair.module).unwrap_or(&pair.module).to_owned();
        match linear.get(name.as_str()) {
            Some(tensor) if tensor.shape == [pair.out_features, pair.in_features] => {
                let values = Some((pair.a, pair.b));
                bound.insert(name, LoraModule { rank: pair.rank, scale: pair.scale, values });
            }
            Some(tensor) => mistakes.push(
                Diagnostic::mistake("adapter-shape", format!("the adapter of `{}` does not fit", pair.module))
                    .found(format!("{} x {}", pair.out_features, pair.in_features))
                    .expected(format!("{} x {}, as the model has it", tensor.shape[0], tensor.shape[1])),
            ),
            None => {
                let mut mistake = Diagnostic::mistake(
                    "adapter-unbound",
                    format!("the adapter's module `{}` is not in the model", pair.module),
                );
                if let Some(near) = nearest(&name, linear.keys().copied()) {
                    mistake = mistake.hint(format!("the nearest module is `{near}`"));
                }
                mistakes.push(mistake);
            }
        }
    }
    if mistakes.is_empty() { Ok(bound) } else { Err(mistakes) }
}

fn target_mistake(
    error: &qwen_tune_qwen::TargetError,
    at: impl Fn(&str) -> Option<crate::diagnostic::Span>,
) -> Diagnostic {
    Diagnostic::mistake_from("bad-target", error).at(at("lora.target").or_else(|| at("lora.layers")))
}

fn full_fine_tuning(full: &FullConfig, doc: &RecipeDoc, model: &ModelDir) -> Result<Trained, Diagnostics> {
    let list = &model.inventory;
    let mut mistakes = Diagnostics::new();
    let mut matched = |key: &str, globs: &[String]| -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for (index, written) in globs.iter().enumerate() {
            let span = doc.span_of(&format!("{key}[{index}]")).or_else(|| doc.span_of(key));
            let glob = match Glob::new(written) {
                Ok(glob) => glob.compile_matcher(),
                Err(error) => {
                    mistakes.push(Diagnostic::mistake_from("bad-glob", &error).at(span));
                    continue;
                }
            };
            let before = names.len();
            names.extend(list.iter().filter(|t| glob.is_match(&t.name)).map(|t| t.name.clone()));
            if names.len() == before {
                let mut mistake = Diagnostic::mistake("no-match", format!("`{written}` matches no tensor")).at(span);
                if let Some(near) = nearest(written, list.iter().map(|t| t.name.as_str())) {
                    mistake = mistake.hint(format!("the nearest tensor is `{near}`"));
                }
                mistakes.push(mistake);
            }
        }
        names
    };
    let wanted = matched("full.train", &full.train);
    let frozen = matched("full.freeze", &full.freeze);
    let names: BTreeSet<String> = list
        .iter()
        .map(|t| t.name.clone())
        .filter(|name| (full.train.is_empty() || wanted.contains(name)) && !frozen.contains(name))
        .collect();
    if names.is_empty() && mistakes.is_empty() {
        let message = "nothing is left to train: `full.freeze` covers all that `full.train` names";
        mistakes.push(Diagnostic::mistake("nothing-trained", message).at(doc.span_of("full.freeze")));
    }
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    Ok(Trained { training: Training::Full(names), artefact: Artefact::Full, dropout: false })
}
