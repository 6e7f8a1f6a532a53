//! [`whole_modules`]: modules that are trained themselves beside adapters, PEFT's `modules_to_save`.

use std::collections::BTreeSet;

use super::pattern::Pattern;
use super::{TargetError, nearest};
use crate::{HeadSpec, TensorSpec};

/// Name of the head's module.
const HEAD: &str = "lm_head";
/// Name of the embedding's module, which is the head too where they are tied.
const EMBEDDING: &str = "embed_tokens";

/// The tensors of the modules that are meant, by inventory name. Names and patterns are read as those of adapter targets; a
/// module is whatever holds tensors itself, norms and embeddings included. Where the head is the embedding, either name means
/// that one tensor.
///
/// # Errors
/// With every name that matches no module.
pub fn whole_modules(
    names: &[String],
    inventory: &[TensorSpec],
    head: HeadSpec,
) -> Result<BTreeSet<String>, Vec<TargetError>> {
    let mut picked = BTreeSet::new();
    let mut faults = Vec::new();
    for name in names {
        let pattern = match Pattern::new(name) {
            Ok(pattern) => pattern,
            Err(fault) => {
                faults.push(fault);
                continue;
            }
        };
        let is_meant = |module: &str| {
            pattern.matches(module) || head == HeadSpec::Tied && module == EMBEDDING && pattern.matches(HEAD)
        };
        let matches = inventory.iter().filter(|tensor| is_meant(module_of(&tensor.name)));
        let before = picked.len();
        let mut found = false;
        for tensor in matches {
            found = true;
            picked.insert(tensor.name.clone());
        }
        if picked.len() == before && !found {
            faults.push(no_match(name, inventory));
        }
    }
    if faults.is_empty() { Ok(picked) } else { Err(faults) }
}

/// The module that holds a tensor.
pub fn module_of(tensor: &str) -> &str {
    tensor.rsplit_once('.').map_or(tensor, |(module, _)| module)
}

fn no_match(name: &str, inventory: &[TensorSpec]) -> TargetError {
    let wanted = name.strip_prefix("model.").unwrap_or(name);
    let mut candidates: Vec<&str> = Vec::new();
    for tensor in inventory {
        let module = module_of(&tensor.name);
        let candidate = if wanted.contains('.') { module } else { module.rsplit('.').next().unwrap_or(module) };
        if !candidates.contains(&candidate) {
            candidates.push(candidate);
        }
    }
    let mut near = nearest(wanted, candidates.iter().copied(), 3);
    if near.is_empty() {
        candidates.truncate(7);
        near = candidates.into_iter().map(str::to_owned).collect();
    }
    TargetError::NoMatch { pattern: name.to_owned(), near }
}
