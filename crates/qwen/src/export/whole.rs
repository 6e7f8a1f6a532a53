//! Tensors that an adapter holds whole, PEFT's `modules_to_save`: what they are called there, and which tensors of the base
//! they are.
//!
//! Where the base's head is its embedding, PEFT has two modules with one tensor, and each named in `modules_to_save` becomes a
//! copy of its own. An adapter of ours trains the one tensor and is written with both modules, so that PEFT computes the same;
//! one that holds the two with different values, or one of them alone, has cut them apart, and no tied model can hold it.

use std::collections::BTreeMap;

use qwen_tune_weights::peft::{Adapter, FullTensor};

use super::ExportError;
use crate::targets::{module_of, nearest};
use crate::{HeadSpec, KeyLayout, ModelDir, Role, TensorSpec, module_name};

const HEAD: &str = "lm_head.weight";

/// The names that a trained tensor of the inventory has in an adapter.
pub fn saved_names(model: &ModelDir, layout: KeyLayout, tensor: &TensorSpec) -> Vec<String> {
    let own = if tensor.role == Role::Head { tensor.name.clone() } else { layout.path(&tensor.name) };
    let is_tied = model.spec.head == HeadSpec::Tied && tensor.role == Role::Embedding;
    std::iter::once(own).chain(is_tied.then(|| HEAD.to_owned())).collect()
}

/// What `modules_to_save` says of these tensors. PEFT takes every module whose path ends in an entry: embedding and head go by
/// the short names that every reader knows, all others by their whole path.
pub fn modules_to_save<'a>(
    model: &ModelDir,
    layout: KeyLayout,
    tensors: impl IntoIterator<Item = &'a TensorSpec>,
) -> Vec<String> {
    let mut entries: Vec<String> = Vec::new();
    for tensor in tensors {
        for name in saved_names(model, layout, tensor) {
            let module = module_of(&name);
            let is_known = matches!(tensor.role, Role::Embedding | Role::Head);
            let entry = if is_known { module.rsplit('.').next().unwrap_or(module) } else { module };
            if !entries.iter().any(|known| known == entry) {
                entries.push(entry.to_owned());
            }
        }
    }
    entries
}

/// The whole tensors of an adapter, each with the base's tensor that it replaces.
///
/// # Errors
/// With every one that is none of the base's, has another shape, or cuts a tied head from its embedding.
pub fn whole_tensors<'m, 'a>(
    model: &'m ModelDir,
    adapter: &'a Adapter,
) -> Result<Vec<(&'m TensorSpec, &'a FullTensor)>, Vec<ExportError>> {
    let mut faults = Vec::new();
    let mut found: BTreeMap<&str, (&TensorSpec, &FullTensor)> = BTreeMap::new();
    let mut tied_head = None;
    let is_tied = model.spec.head == HeadSpec::Tied;
    for other in &adapter.others {
        let name = module_name(&other.info.name);
        if is_tied && name == HEAD {
            tied_head = Some(other);
            continue;
        }
        let Some(tensor) = model.inventory.iter().find(|tensor| tensor.name == name) else {
            let near = nearest(name, model.inventory.iter().map(|tensor| tensor.name.as_str()), 3);
            faults.push(ExportError::UnknownTensor { tensor: other.info.name.clone(), near });
            continue;
        };
        if tensor.shape != other.info.shape {
            faults.push(ExportError::WrongTensorShape {
                tensor: other.info.name.clone(),
                found: other.info.shape.clone(),
                base: tensor.shape.clone(),
            });
        }
        if found.insert(&tensor.name, (tensor, other)).is_some() {
            faults.push(ExportError::ChangedTwice { tensor: tensor.name.clone() });
        }
    }
    let embedding = found.values().find(|(tensor, _)| tensor.role == Role::Embedding).map(|(_, other)| *other);
    match (embedding, tied_head) {
        (Some(embedding), Some(head)) if embedding.bytes != head.bytes => {
            faults.push(ExportError::Untied { alone: None });
        }
        (Some(_), None) if is_tied => faults.push(ExportError::Untied { alone: Some("embed_tokens") }),
        (None, Some(_)) => faults.push(ExportError::Untied { alone: Some("lm_head") }),
        _ => {}
    }
    if faults.is_empty() { Ok(found.into_values().collect()) } else { Err(faults) }
}
