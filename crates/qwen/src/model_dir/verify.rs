//! The checkpoint held against the inventory: every tensor of one accounted for in the other.

use std::collections::{HashMap, HashSet};

use qwen_tune_weights::{TensorInfo, TensorSource};

use super::ModelError;
use super::stored::{self, Part};
use crate::{DecoderSpec, HeadSpec, Role, TensorSpec, inventory};

/// The head's name in the inventory.
pub(super) const HEAD: &str = "lm_head.weight";
pub(super) const HEAD_MODULE: &str = "lm_head";
const EMBEDDING: &str = "embed_tokens.weight";
/// What checkpoints put before the names of a decoder's tensors, longest first; the last is a decoder saved bare.
pub(super) const PREFIXES: [&str; 4] = ["model.language_model.", "language_model.model.", "model.", ""];
/// Where the head lies; never below the decoder's prefix.
const HEADS: [&str; 2] = ["lm_head.weight", "language_model.lm_head.weight"];

/// Bytes of two tensors that are compared at a time.
const PIECE: usize = 1 << 24;

/// What holding the two against each other yields.
pub(super) struct Verified {
    pub(super) spec: DecoderSpec,
    pub(super) inventory: Vec<TensorSpec>,
    pub(super) prefix: String,
    pub(super) pieces: HashMap<String, Vec<Part>>,
    pub(super) passengers: Vec<String>,
    pub(super) head_copy: Option<String>,
    pub(super) head_name: String,
}

pub(super) fn verify(mut spec: DecoderSpec, checkpoint: &dyn TensorSource) -> Result<Verified, Vec<ModelError>> {
    let prefix = prefix(checkpoint).map_err(|error| vec![error])?;
    let stored_head = HEADS.into_iter().find(|name| checkpoint.info(name).is_some());
    let head_name = stored_head.unwrap_or(HEAD).to_owned();
    let mut head_copy = None;
    if spec.head == HeadSpec::Tied
        && let Some(head) = stored_head
    {
        let embedding = format!("{prefix}{EMBEDDING}");
        if is_same(checkpoint, head, &embedding).map_err(|error| vec![error])? {
            head_copy = Some(head.to_owned());
        } else {
            // The weights decide, as in transformers: a head that differs is a head of its own.
            spec.head = HeadSpec::Own;
        }
    }

    let inventory = inventory(&spec);
    let mut faults = Vec::new();
    let mut known = HashSet::new();
    let mut pieces = HashMap::new();
    for tensor in &inventory {
        let name = if tensor.name == HEAD { head_name.clone() } else { format!("{prefix}{}", tensor.name) };
        if tensor.role == Role::Experts && checkpoint.info(&name).is_none() {
            // A configuration may ask for any number of experts; no more names are made up than there are tensors.
            if tensor.shape[0] > checkpoint.tensors().len() {
                faults.push(ModelError::Missing { tensor: name, expected: tensor.shape.clone() });
                continue;
            }
            let parts = stored::parts(tensor, &name, checkpoint);
            for part in &parts {
                match checkpoint.info(&part.name) {
                    Some(info) => check(&part.name, &part.shape, info, &mut faults),
                    None => {
                        faults.push(ModelError::Missing { tensor: part.name.clone(), expected: part.shape.clone() });
                    }
                }
                known.insert(part.name.clone());
            }
            pieces.insert(tensor.name.clone(), parts);
            continue;
        }
        match checkpoint.info(&name) {
            Some(info) => check(&name, &tensor.shape, info, &mut faults),
            None if tensor.name == HEAD => faults.push(ModelError::NoHead { tensor: name.clone() }),
            None => faults.push(ModelError::Missing { tensor: name.clone(), expected: tensor.shape.clone() }),
        }
        known.insert(name);
    }

    let mut passengers = Vec::new();
    for info in checkpoint.tensors().iter().filter(|info| !known.contains(&info.name)) {
        if head_copy.as_deref() != Some(&info.name) && belongs(&info.name, &prefix) {
            faults.push(ModelError::Unexpected { tensor: info.name.clone(), found: info.shape.clone() });
        } else {
            passengers.push(info.name.clone());
        }
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    Ok(Verified { spec, inventory, prefix, pieces, passengers, head_copy, head_name })
}

/// What lies before `embed_tokens.weight`.
fn prefix(checkpoint: &dyn TensorSource) -> Result<String, ModelError> {
    let has = |prefix: &&str| checkpoint.info(&format!("{prefix}{EMBEDDING}")).is_some();
    let found: Vec<&str> = PREFIXES.into_iter().filter(has).collect();
    match found.as_slice() {
        [only] => Ok((*only).to_owned()),
        [] => Err(ModelError::NoEmbedding {
            prefixes: PREFIXES.into_iter().filter(|prefix| !prefix.is_empty()).map(str::to_owned).collect(),
            found: checkpoint
                .tensors()
                .iter()
                .filter(|info| info.name.contains("embed") || info.name.contains("wte"))
                .take(3)
                .map(|info| info.name.clone())
                .collect(),
        }),
        several => Err(ModelError::SeveralEmbeddings {
            found: several.iter().map(|prefix| format!("{prefix}{EMBEDDING}")).collect(),
        }),
    }
}

fn is_same(checkpoint: &dyn TensorSource, one: &str, other: &str) -> Result<bool, ModelError> {
    if checkpoint.info(one).map(|info| (info.dtype, &info.shape))
        != checkpoint.info(other).map(|info| (info.dtype, &info.shape))
    {
        return Ok(false);
    }
    let (first, second) = (checkpoint.read(one)?, checkpoint.read(other)?);
    // In pieces, so that no more of the two than that is in memory.
    Ok(first.chunks(PIECE).zip(second.chunks(PIECE)).all(|(first, second)| {
        let same = first == second;
        checkpoint.release(one);
        checkpoint.release(other);
        same
    }))
}

fn check(name: &str, shape: &[usize], info: &TensorInfo, faults: &mut Vec<ModelError>) {
    if info.shape != shape {
        faults.push(ModelError::WrongShape {
            tensor: name.to_owned(),
            found: info.shape.clone(),
            expected: shape.to_vec(),
        });
    }
    if !info.dtype.converts_to_f32() {
        faults.push(ModelError::WrongDtype { tensor: name.to_owned(), found: info.dtype });
    }
}

/// Whether a tensor outside the inventory lies where the decoder's own lie, so that leaving it out would change results.
/// Tables of rotary frequencies, which old exports carry, are computed from the configuration instead.
fn belongs(name: &str, prefix: &str) -> bool {
    if name.ends_with("rotary_emb.inv_freq") {
        return false;
    }
    let inside = |name: &str| ["layers.", "embed_tokens.", "norm."].iter().any(|part| name.starts_with(part));
    name.strip_prefix(prefix).is_some_and(inside)
        || HEADS.iter().any(|head| name.starts_with(head.trim_end_matches("weight")))
}
