//! Adapters as PEFT directories that fit their base: its module paths, and a configuration that PEFT wraps the same
//! modules by.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use qwen_tune_weights::{
    Dtype,
    peft::{Adapter, AdapterConfig, LoraPair, TargetModules},
};

use super::ExportError;
use crate::{KeyLayout, ModelDir, targets::nearest};

/// The configuration of an adapter on these modules of the inventory.
///
/// `target_modules` are last parts of paths where that names exactly these modules, as most readers expect; whole paths
/// otherwise, in this layout. `base` is what users of the adapter know the base by.
pub fn adapter_config(
    model: &ModelDir,
    layout: KeyLayout,
    base: Option<String>,
    rank: usize,
    alpha: f64,
    modules: &[String],
) -> AdapterConfig {
    AdapterConfig::new(base, rank, alpha, targets(model, layout, modules))
}

fn targets(model: &ModelDir, layout: KeyLayout, modules: &[String]) -> Vec<String> {
    let chosen: BTreeSet<&str> = modules.iter().map(String::as_str).collect();
    let mut by_leaf: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for module in model.inventory.iter().filter_map(|tensor| tensor.module.as_deref()) {
        by_leaf.entry(leaf(module)).or_default().push(module);
    }
    let mut targets: Vec<String> = Vec::new();
    for module in modules {
        let whole = by_leaf.get(leaf(module)).is_some_and(|all| all.iter().all(|one| chosen.contains(one)));
        // A leaf of a passenger, such as a vision tower, would be wrapped by PEFT too.
        let elsewhere = model.passengers.iter().any(|tensor| tensor.ends_with(&format!(".{}.weight", leaf(module))));
        let target = if whole && !elsewhere { leaf(module).to_owned() } else { layout.path(module) };
        if !targets.contains(&target) {
            targets.push(target);
        }
    }
    targets
}

/// Takes the module paths in a configuration to this layout. `modules` are those that are adapted.
pub fn fit_config(model: &ModelDir, layout: KeyLayout, config: &mut AdapterConfig, modules: &[String]) {
    let fit = |path: &mut String| {
        if let Some(module) = model.module_of_peft(path) {
            *path = layout.path(module);
        }
    };
    match &mut config.target_modules {
        Some(TargetModules::List(list)) => list.iter_mut().for_each(fit),
        // An expression over whole paths may hold another class's.
        _ => config.target_modules = Some(TargetModules::List(targets(model, layout, modules))),
    }
    config.rank_pattern.0.iter_mut().for_each(|(path, _)| fit(path));
    config.alpha_pattern.0.iter_mut().for_each(|(path, _)| fit(path));
}

/// The adapter for this base, with module paths in this layout. Modules that do not fit are all reported.
pub fn fit_adapter(model: &ModelDir, layout: KeyLayout, adapter: &Adapter) -> Result<Adapter, Vec<ExportError>> {
    let mut renamed = adapter.clone();
    let mut faults = Vec::new();
    let mut modules = Vec::new();
    for pair in &mut renamed.pairs {
        match check_pair(model, pair) {
            Ok(module) => {
                pair.module = layout.path(&module);
                modules.push(module);
            }
            Err(fault) => faults.push(fault),
        }
    }
    fit_config(model, layout, &mut renamed.config, &modules);
    if faults.is_empty() { Ok(renamed) } else { Err(faults) }
}

/// Writes [`fit_adapter`] as a new directory, which appears when it is whole.
pub fn save_adapter(
    model: &ModelDir,
    layout: KeyLayout,
    adapter: &Adapter,
    out: &Path,
    dtype: Dtype,
) -> Result<(), Vec<ExportError>> {
    fit_adapter(model, layout, adapter)?.write(out, dtype).map_err(|error| vec![error.into()])
}

/// The module of the inventory that a pair adapts, if it fits.
pub(super) fn check_pair(model: &ModelDir, pair: &LoraPair) -> Result<String, ExportError> {
    let Some(module) = model.module_of_peft(&pair.module) else {
        let known = model.inventory.iter().filter_map(|tensor| tensor.module.as_deref());
        let bare = pair.module.strip_prefix("model.").unwrap_or(&pair.module);
        return Err(ExportError::UnknownModule { module: pair.module.clone(), near: nearest(bare, known, 3) });
    };
    let (expected_a, expected_b) = (pair.rank * pair.in_features, pair.out_features * pair.rank);
    if (pair.a.len(), pair.b.len()) != (expected_a, expected_b) {
        return Err(ExportError::WrongModuleData {
            module: pair.module.clone(),
            a: pair.a.len(),
            b: pair.b.len(),
            expected_a,
            expected_b,
        });
    }
    let weight = format!("{module}.weight");
    let base = model.inventory.iter().find(|tensor| tensor.name == weight).map(|tensor| tensor.shape.clone());
    match base {
        Some(base) if base == [pair.out_features, pair.in_features] => Ok(module.to_owned()),
        base => Err(ExportError::WrongModuleShape {
            module: pair.module.clone(),
            adapter: (pair.out_features, pair.in_features),
            base: base.unwrap_or_default(),
        }),
    }
}

fn leaf(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}
