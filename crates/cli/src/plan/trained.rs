//! From `[lora]` or `[full]` to what is trained and what training will leave behind.

use std::collections::BTreeSet;

use globset::Glob;
use qwen_tune_model::{FullConfig, FullPlan, LoraConfig, LoraModule, LoraPlan, Master, Training};
use qwen_tune_qwen::export::{self, ExportError};
use qwen_tune_qwen::targets::whole_modules;
use qwen_tune_qwen::{FfnSpec, KeyLayout, ModelDir, Switches, TargetError, TensorSpec};
use qwen_tune_train::Artefact;
use qwen_tune_train::device::OpenDevice;
use qwen_tune_weights::encoding;
use qwen_tune_weights::peft::{Adapter, FullTensor, LoraPair};

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

/// Activations in f32 beside weights in bf16 would be rounded nowhere but in what is learnt.
pub(super) fn narrow_master_in_f32(recipe: &Recipe, doc: &RecipeDoc, device: &OpenDevice) -> Option<Diagnostic> {
    const KEY: &str = "full.master";
    let is_narrow = recipe.full.as_ref().is_some_and(|full| full.master == Master::Bf16);
    (is_narrow && !device.is_in_bf16()).then(|| {
        Diagnostic::mistake("bf16-master", format!("`{KEY} = \"bf16\"` is for a model that is computed in bf16"))
            .at(doc.span_of(KEY))
            .found(format!("`{}`, {}", device.dtype.name(), device.dtype_reason))
            .hint("set `model.dtype = \"bf16\"`, or leave `full.master` out")
    })
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
    let (mut plan, mut config) = if lora.init == "default" {
        let switches = Switches { experts: lora.experts, router: lora.router };
        let resolved = lora.target.resolve(switches, list, &lora.layers);
        let modules = resolved.map_err(|errors| {
            let at = |key: &str| doc.span_of(key);
            errors.iter().map(|e| target_mistake(e, at)).collect::<Diagnostics>()
        })?;
        let (whole, modules) = whole_beside(lora, modules, doc, model)?;
        let scale = lora.scale() as f32;
        let base = Some(recipe.model.base.clone());
        let mut config = export::adapter_config(model, layout, base, lora.rank, lora.alpha, &modules);
        config.use_rslora = lora.rslora;
        let module = LoraModule { rank: lora.rank, scale, values: None };
        let modules = modules.into_iter().map(|name| (name, module.clone())).collect();
        let whole = whole.into_iter().map(|name| (name, None)).collect();
        (LoraPlan { modules, whole, ..LoraPlan::default() }, config)
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
        (bound(adapter, model).map_err(at)?, config)
    };
    // PEFT does not load parameters of experts beside a dropout, which nobody needs after training.
    config.lora_dropout = if config.target_parameters.is_some() { 0.0 } else { lora.dropout };
    if let Some(revision) = &recipe.model.revision {
        config.other.insert("revision".to_owned(), revision.clone().into());
    }
    let scales = plan.modules.iter().map(|(name, module)| (name.clone(), module.scale)).collect();
    let whole: Vec<&TensorSpec> = list.iter().filter(|tensor| plan.whole.contains_key(&tensor.name)).collect();
    if !whole.is_empty() {
        config.modules_to_save = Some(export::modules_to_save(model, layout, whole.iter().copied()));
    }
    let saved = |tensor: &TensorSpec| (tensor.name.clone(), export::saved_names(model, layout, tensor));
    let whole = whole.into_iter().map(saved).collect();
    let artefact = Artefact::Adapter { config: Box::new(config), layout, scales, whole };
    plan.dropout = lora.dropout as f32;
    plan.seed = recipe.run.seed;
    Ok(Trained { training: Training::Lora(plan), artefact, dropout: lora.dropout > 0.0 })
}

/// The tensors that `lora.modules_to_save` names, and the modules that keep an adapter: those it does not name.
fn whole_beside(
    lora: &LoraConfig,
    mut modules: Vec<String>,
    doc: &RecipeDoc,
    model: &ModelDir,
) -> Result<(BTreeSet<String>, Vec<String>), Diagnostics> {
    const KEY: &str = "lora.modules_to_save";
    let whole = whole_modules(&lora.modules_to_save, &model.inventory, model.spec.head).map_err(|errors| {
        errors.iter().map(|e| Diagnostic::mistake_from("bad-target", e).at(doc.span_of(KEY))).collect::<Diagnostics>()
    })?;
    let is_whole = |module: &String| {
        let of_module = model.inventory.iter().filter(|tensor| tensor.module.as_ref() == Some(module));
        of_module.into_iter().any(|tensor| whole.contains(&tensor.name))
    };
    modules.retain(|module| !is_whole(module));
    if modules.is_empty() {
        let message = format!("`{KEY}` names every module that would get an adapter");
        return Err(Diagnostic::mistake("nothing-adapted", message)
            .at(doc.span_of(KEY))
            .hint("use `[full]` with `train = [globs]` to train tensors themselves")
            .into());
    }
    Ok((whole, modules))
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

/// Holds an adapter against the model: every pair must bind to matrices of its shape, every whole tensor to one of its.
///
/// # Errors
/// With everything that does not.
pub fn bind_adapter(adapter: &Adapter, model: &ModelDir) -> Result<LoraPlan, Diagnostics> {
    bound(fit(model, model.key_layout, adapter)?, model)
}

/// What an adapter that fits holds.
fn bound(adapter: Adapter, model: &ModelDir) -> Result<LoraPlan, Diagnostics> {
    let whole = export::whole_tensors(model, &adapter).map_err(|faults| {
        faults.iter().map(|fault| Diagnostic::mistake_from("bad-adapter", fault)).collect::<Diagnostics>()
    })?;
    let values = |(tensor, saved): (&TensorSpec, &FullTensor)| {
        let values = encoding::decode(&saved.info, &saved.bytes);
        let values = values.map_err(|error| Diagnostics::from(Diagnostic::mistake_from("bad-adapter", &error)))?;
        Ok((tensor.name.clone(), Some(values)))
    };
    let whole = whole.into_iter().map(values).collect::<Result<_, Diagnostics>>()?;
    let module = |path: &str| model.module_of_peft(path).unwrap_or(path).to_owned();
    let bind = |pair: LoraPair| {
        let LoraPair { rank, scale, a, b, .. } = pair;
        (module(&pair.module), LoraModule { rank, scale, values: Some((a, b)) })
    };
    let modules = adapter.pairs.into_iter().map(bind).collect();
    Ok(LoraPlan { modules, whole, ..LoraPlan::default() })
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
    let plan = FullPlan { tensors: names, master: full.master };
    Ok(Trained { training: Training::Full(plan), artefact: Artefact::Full, dropout: false })
}
