//! Adapters as PEFT directories that fit their base: its module paths, and a configuration that PEFT wraps the same
//! modules by.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use qwen_tune_weights::{
    Dtype, TensorInfo,
    peft::{Adapter, AdapterConfig, FullTensor, LoraPair, TargetModules},
};

use super::{ExportError, modules_to_save, saved_names, whole_tensors};
use crate::{KeyLayout, Matrices, ModelDir, Part, Role, TensorSpec, targets::nearest};

/// The configuration of an adapter on these modules of the inventory, with module paths in this layout. `base` is what
/// users of the adapter know the base by.
pub fn adapter_config(
    model: &ModelDir,
    layout: KeyLayout,
    base: Option<String>,
    rank: usize,
    alpha: f64,
    modules: &[String],
) -> AdapterConfig {
    let mut config = AdapterConfig::new(base, rank, alpha, Vec::new());
    name_targets(&mut config, model, layout, modules);
    config
}

/// Writes down which modules of the inventory PEFT has to wrap.
///
/// Linear layers are `target_modules`: last parts of paths where those name exactly these modules, as most readers expect,
/// and whole paths otherwise. What a mixture of experts is made of is `target_parameters`: the experts' matrices lie in
/// tensors of their own, and names such as `gate_proj` in `target_modules` mean routed experts to PEFT in some families,
/// wherever they stand.
fn name_targets(config: &mut AdapterConfig, model: &ModelDir, layout: KeyLayout, modules: &[String]) {
    let chosen: BTreeSet<&str> = modules.iter().map(String::as_str).collect();
    let is_sparse = model.spec.sparse().is_some();
    let target = |tensor: &TensorSpec, module: &str| -> (bool, String, String) {
        match tensor.role {
            Role::Linear(Part::Mlp) if is_sparse => {
                (true, format!("{}.weight", in_layer(module)), format!("{module}.weight"))
            }
            Role::Router | Role::SharedGate => {
                (true, format!("{}.weight", in_layer(module)), format!("{module}.weight"))
            }
            Role::Experts => (true, in_layer(module).to_owned(), module.to_owned()),
            _ => (false, leaf(module).to_owned(), module.to_owned()),
        }
    };
    let mut by_name: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for tensor in &model.inventory {
        if let Some(module) = tensor.module.as_deref() {
            by_name.entry(target(tensor, module).1).or_default().push(module);
        }
    }
    let (mut layers, mut parameters): (Vec<String>, Vec<String>) = Default::default();
    for (tensor, module) in model.inventory.iter().filter_map(|tensor| Some((tensor, tensor.module.as_deref()?))) {
        if !chosen.contains(module) {
            continue;
        }
        let (is_parameter, name, whole) = target(tensor, module);
        let all = by_name.get(&name).is_some_and(|all| all.iter().all(|one| chosen.contains(one)));
        // A namesake among the passengers, such as a vision tower's, would be wrapped by PEFT too.
        let stored = if is_parameter { format!(".{name}") } else { format!(".{name}.weight") };
        let elsewhere = model.passengers.iter().any(|tensor| tensor.ends_with(&stored));
        let target = if all && !elsewhere { name } else { layout.path(&whole) };
        let list = if is_parameter { &mut parameters } else { &mut layers };
        if !list.contains(&target) {
            list.push(target);
        }
    }
    config.target_modules = Some(TargetModules::List(layers));
    config.target_parameters = (!parameters.is_empty()).then_some(parameters);
}

/// Takes the module paths in a configuration to this layout. `modules` are those that are adapted.
fn fit_config(config: &mut AdapterConfig, model: &ModelDir, layout: KeyLayout, modules: &[String]) {
    let fit = |path: &mut String| {
        if let Some(module) = model.module_of_peft(path) {
            *path = layout.path(module);
        }
    };
    match &mut config.target_modules {
        // Adapters of single experts were joined when they were read; the configuration speaks of them as they were.
        Some(TargetModules::List(list)) if model.spec.sparse().is_none() => list.iter_mut().for_each(fit),
        // An expression over whole paths may hold another class's.
        _ => name_targets(config, model, layout, modules),
    }
    config.rank_pattern.0.iter_mut().for_each(|(path, _)| fit(path));
    config.alpha_pattern.0.iter_mut().for_each(|(path, _)| fit(path));
}

/// The adapter for this base, with module paths in this layout. Modules that do not fit are all reported.
pub fn fit_adapter(model: &ModelDir, layout: KeyLayout, adapter: &Adapter) -> Result<Adapter, Vec<ExportError>> {
    let mut fitted = adapter.clone();
    let mut faults = Vec::new();
    let mut modules = Vec::new();
    for pair in &mut fitted.pairs {
        match check_pair(model, pair) {
            Ok(tensor) => {
                let module = tensor.module.as_deref().unwrap_or_default();
                pair.module = layout.path(module);
                modules.push(module.to_owned());
            }
            Err(fault) => faults.push(fault),
        }
    }
    match whole_tensors(model, adapter) {
        Ok(tensors) => {
            fitted.config.modules_to_save = match tensors.is_empty() {
                true => adapter.config.modules_to_save.clone(),
                false => Some(modules_to_save(model, layout, tensors.iter().map(|(tensor, _)| *tensor))),
            };
            let renamed = |(tensor, other): &(&TensorSpec, &FullTensor)| -> Vec<FullTensor> {
                let names = saved_names(model, layout, tensor).into_iter();
                names
                    .map(|name| FullTensor {
                        info: TensorInfo { name, ..other.info.clone() },
                        bytes: other.bytes.clone(),
                    })
                    .collect()
            };
            fitted.others = tensors.iter().flat_map(renamed).collect();
        }
        Err(more) => faults.extend(more),
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    fit_config(&mut fitted.config, model, layout, &modules);
    fitted.state_ranks().map_err(|error| vec![error.into()])?;
    Ok(fitted)
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

/// The tensor of the inventory that a pair adapts, if it fits.
pub fn check_pair<'a>(model: &'a ModelDir, pair: &LoraPair) -> Result<&'a TensorSpec, ExportError> {
    let name = model.module_of_peft(&pair.module);
    let known = || model.inventory.iter().filter(|tensor| tensor.matrices().is_some());
    let Some(tensor) = known().find(|tensor| tensor.module.as_deref() == name && name.is_some()) else {
        let bare = pair.module.strip_prefix("model.").unwrap_or(&pair.module);
        let near = nearest(bare, known().filter_map(|tensor| tensor.module.as_deref()), 3);
        return Err(ExportError::UnknownModule { module: pair.module.clone(), near });
    };
    let (expected_a, expected_b) =
        (pair.experts * pair.rank * pair.in_features, pair.experts * pair.out_features * pair.rank);
    if (pair.a.len(), pair.b.len()) != (expected_a, expected_b) {
        return Err(ExportError::WrongModuleData {
            module: pair.module.clone(),
            a: pair.a.len(),
            b: pair.b.len(),
            expected_a,
            expected_b,
        });
    }
    let found = Matrices { count: pair.experts, rows: pair.out_features, columns: pair.in_features };
    match tensor.matrices() {
        Some(base) if base == found => Ok(tensor),
        base => Err(ExportError::WrongModuleShape {
            module: pair.module.clone(),
            adapter: found,
            base: base.unwrap_or(Matrices { count: 0, rows: 0, columns: 0 }),
        }),
    }
}

fn leaf(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}

/// The path inside its layer: `layers.3.mlp.gate` to `mlp.gate`.
fn in_layer(module: &str) -> &str {
    module.splitn(3, '.').nth(2).unwrap_or(module)
}
