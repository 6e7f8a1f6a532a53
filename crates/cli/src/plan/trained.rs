//! From `[lora]` or `[full]` to what is trained and what training will leave behind.

use std::collections::{BTreeMap, BTreeSet};

use globset::Glob;
use qwen_tune_model::{FullConfig, LoraConfig, LoraModule, LoraPlan, Training};
use qwen_tune_qwen::export::{self, ExportError};
use qwen_tune_qwen::{FfnSpec, KeyLayout, ModelDir, Switches, TargetError};
use qwen_tune_train::Artefact;
use qwen_tune_weights::peft::{Adapter, LoraPair};

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
    let chosen = match (recipe.adapter(), &recipe.full) {
        (Some(lora), _) => adapters(&lora, recipe, doc, model),
        (None, full) => full_fine_tuning(full.as_ref().unwrap_or(&FullConfig::default()), doc, model),
    };
    match (chosen, balance_without_experts(recipe, doc, model)) {
        (chosen, None) => chosen,
        (Ok(_), Some(mistake)) => Err(mistake.into()),
        (Err(mut mistakes), Some(mistake)) => {
            mistakes.push(mistake);
            Err(mistakes)
        }
    }
}

fn balance_without_experts(recipe: &Recipe, doc: &RecipeDoc, model: &ModelDir) -> Option<Diagnostic> {
    const KEY: &str = "objective.router_aux_loss_coef";
    let is_asked = recipe.objective.router_aux_loss_coef.is_some_and(|coefficient| coefficient > 0.0);
    let is_sparse = model.spec.layers.iter().any(|layer| matches!(layer.ffn, FfnSpec::Sparse(_)));
    (is_asked && !is_sparse).then(|| {
        Diagnostic::mistake("no-experts", format!("`{KEY}` is set, but this model has no experts to balance"))
            .at(doc.span_of(KEY))
            .hint("leave it out")
    })
}

fn adapters(lora: &LoraConfig, recipe: &Recipe, doc: &RecipeDoc, model: &ModelDir) -> Result<Trained, Diagnostics> {
    let list = &model.inventory;
    let layout = key_layout(lora, doc, model)?;
    let (modules, mut config) = if lora.init == "default" {
        let switches = Switches { experts: lora.experts, router: lora.router };
        let resolved = lora.target.resolve(switches, list, &lora.layers);
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
        let at = |mistakes: Diagnostics| -> Diagnostics {
            mistakes.into_iter().map(|d| d.at(doc.span_of("lora.init"))).collect()
        };
        let adapter = fit(model, layout, &adapter).map_err(at)?;
        let mut config = adapter.config.clone();
        config.base_model_name_or_path = Some(recipe.model.base.clone());
        (bound(adapter, model), config)
    };
    // PEFT does not load parameters of experts beside a dropout, which nobody needs after training.
    config.lora_dropout = if config.target_parameters.is_some() { 0.0 } else { lora.dropout };
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

/// Holds an adapter against the model: every pair must bind to matrices of its shape.
///
/// # Errors
/// With every pair that does not.
pub fn bind_adapter(adapter: &Adapter, model: &ModelDir) -> Result<BTreeMap<String, LoraModule>, Diagnostics> {
    Ok(bound(fit(model, model.key_layout, adapter)?, model))
}

/// The modules of an adapter that fits.
fn bound(adapter: Adapter, model: &ModelDir) -> BTreeMap<String, LoraModule> {
    let module = |path: &str| model.module_of_peft(path).unwrap_or(path).to_owned();
    let bind = |pair: LoraPair| {
        let LoraPair { rank, scale, a, b, .. } = pair;
        (module(&pair.module), LoraModule { rank, scale, values: Some((a, b)) })
    };
    adapter.pairs.into_iter().map(bind).collect()
}

fn fit(model: &ModelDir, layout: KeyLayout, adapter: &Adapter) -> Result<Adapter, Diagnostics> {
    let tell = |fault: ExportError| match fault {
        ExportError::WrongModuleShape { module, adapter, base } => {
            Diagnostic::mistake("adapter-shape", format!("the adapter of `{module}` does not fit"))
                .found(adapter.to_string())
                .expected(format!("{base}, as the model has it"))
        }
        ExportError::UnknownModule { module, near } => {
            let mistake =
                Diagnostic::mistake("adapter-unbound", format!("the adapter's module `{module}` is not in the model"));
            match near.first() {
                Some(near) => mistake.hint(format!("the nearest module is `{near}`")),
                None => mistake,
            }
        }
        other => Diagnostic::mistake_from("bad-adapter", &other),
    };
    export::fit_adapter(model, layout, adapter).map_err(|faults| faults.into_iter().map(tell).collect())
}

fn target_mistake(error: &TargetError, at: impl Fn(&str) -> Option<crate::diagnostic::Span>) -> Diagnostic {
    let span = match error {
        TargetError::NothingToSwitch { key, .. } => at(&format!("lora.{key}")),
        _ => at("lora.target").or_else(|| at("lora.layers")),
    };
    Diagnostic::mistake_from("bad-target", error).at(span)
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
