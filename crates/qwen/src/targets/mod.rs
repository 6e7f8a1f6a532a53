//! Which linear layers get an adapter: a group by name, or patterns over module paths.
//!
//! A pattern that finds nothing is an error with the names it may have meant. Silence there is how adapters come to be
//! that change nothing.

mod layers;
mod near;
mod pattern;
mod whole;

use std::{collections::BTreeSet, fmt};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};

pub use layers::{LayerError, LayerFilter};
pub use near::nearest;
use pattern::Pattern;
pub use whole::{module_of, whole_modules};

use crate::{Part, Role, TensorSpec};

/// The modules that get adapters: `"all-linear"`, `"attention"`, `"mlp"`, or a list of names and patterns.
///
/// A name without a dot (`q_proj`, `*_proj`) is matched against the last part of a module's path; one with dots
/// (`layers.0.self_attn.q_proj`, `layers.*.mlp.*`, `self_attn.q_proj`) against the path or its end. `*`, `?`, `[ab]`
/// and `{a,b}` are wildcards; `*` also crosses dots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum LoraTargets {
    /// All layers of a kind.
    Group(TargetGroup),
    /// Names and patterns.
    Names(Vec<String>),
}

/// Linear layers that are usually adapted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TargetGroup {
    /// Every linear layer inside the decoder layers.
    AllLinear,
    /// The projections of the token mixer: `q_proj`, `k_proj`, `v_proj`, `o_proj`.
    Attention,
    /// The projections of the feed-forward part: `gate_proj`, `up_proj`, `down_proj`.
    Mlp,
}

impl Default for LoraTargets {
    fn default() -> Self {
        Self::Group(TargetGroup::AllLinear)
    }
}

impl TargetGroup {
    const NAMES: [(&'static str, TargetGroup); 3] =
        [("all-linear", TargetGroup::AllLinear), ("attention", TargetGroup::Attention), ("mlp", TargetGroup::Mlp)];

    fn holds(self, role: Role) -> bool {
        match self {
            TargetGroup::AllLinear => matches!(role, Role::Linear(_)),
            TargetGroup::Attention => role == Role::Linear(Part::Attention),
            TargetGroup::Mlp => role == Role::Linear(Part::Mlp),
        }
    }
}

impl fmt::Display for TargetGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.into_iter().find(|(_, group)| group == self).map_or("", |(name, _)| name);
        f.pad(name)
    }
}

/// Why a target cannot be adapted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// Nothing has this name.
    #[error("target `{pattern}` matches no module of this model{}", did_you_mean(near))]
    NoMatch {
        /// As written.
        pattern: String,
        /// Names that look like it.
        near: Vec<String>,
    },

    /// Something has this name, but takes no adapter.
    #[error("target `{pattern}` means `{module}`, which takes no adapter: {reason}")]
    NotAdaptable {
        /// As written.
        pattern: String,
        /// What it matched.
        module: String,
        /// Why.
        reason: &'static str,
    },

    /// Modules of this name lie only in layers that `layers` leaves out.
    #[error("target `{pattern}` matches {modules} modules, but none in the layers chosen by `layers = {layers}`")]
    OutsideLayers {
        /// As written, or the group's name.
        pattern: String,
        /// How many it matches in all layers.
        modules: usize,
        /// The filter.
        layers: String,
    },

    /// A pattern whose wildcards are malformed.
    #[error("target `{pattern}` is malformed: {reason}")]
    Malformed {
        /// As written.
        pattern: String,
        /// What is wrong.
        reason: String,
    },

    /// No target at all.
    #[error("the list of targets is empty; \"all-linear\" adapts every linear layer")]
    Empty,

    /// A switch for parts that the model does not have.
    #[error("`{key} = true`, but this model has no {what}")]
    NothingToSwitch {
        /// The switch.
        key: &'static str,
        /// What it adapts.
        what: &'static str,
    },

    /// A filter that names layers the model does not have.
    #[error(transparent)]
    Layers(#[from] LayerError),
}

type Switch = (&'static str, &'static str, fn(Role) -> bool);

/// Parts of a mixture of experts that no target names: each has a switch of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Switches {
    /// The routed experts, each with an adapter of its own.
    pub experts: bool,
    /// The routers, and the gates of shared experts.
    pub router: bool,
}

impl Switches {
    /// The switches that are on: key, what it adapts, which tensors those are.
    fn on(self) -> impl Iterator<Item = Switch> {
        let experts: Switch = ("experts", "routed experts", |role| role == Role::Experts);
        let router: Switch = ("router", "routers", |role| matches!(role, Role::Router | Role::SharedGate));
        self.experts.then_some(experts).into_iter().chain(self.router.then_some(router))
    }

    fn any(self) -> bool {
        self != Self::default()
    }
}

impl LoraTargets {
    /// The modules meant, those that are switched on included, in the order of the model and each once. Every target that
    /// cannot be adapted is reported.
    pub fn resolve(
        &self,
        switches: Switches,
        inventory: &[TensorSpec],
        layers: &LayerFilter,
    ) -> Result<Vec<String>, Vec<TargetError>> {
        let count = inventory.iter().filter_map(|tensor| tensor.layer).max().map_or(0, |last| last + 1);
        let chosen = layers.resolve(count).map_err(|error| vec![error.into()])?;
        let inside = |tensor: &TensorSpec| tensor.layer.is_none_or(|layer| chosen.contains(&layer));
        let mut faults = Vec::new();
        let mut picked = BTreeSet::new();
        let mut found = self.matches(switches, inventory, &mut faults);
        for (key, what, holds) in switches.on() {
            let matches: Vec<usize> = (0..inventory.len()).filter(|&index| holds(inventory[index].role)).collect();
            if matches.is_empty() {
                faults.push(TargetError::NothingToSwitch { key, what });
            } else {
                found.push((key.to_owned(), matches));
            }
        }
        for (pattern, matches) in found {
            let before = picked.len();
            picked.extend(matches.iter().copied().filter(|&index| inside(&inventory[index])));
            let none_inside = !matches.iter().any(|&index| inside(&inventory[index]));
            if picked.len() == before && none_inside {
                faults.push(TargetError::OutsideLayers { pattern, modules: matches.len(), layers: layers.to_string() });
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(picked.into_iter().filter_map(|index| inventory[index].module.clone()).collect())
    }

    /// For each target the indices of the adaptable tensors it matches; never empty ones.
    fn matches(
        &self,
        switches: Switches,
        inventory: &[TensorSpec],
        faults: &mut Vec<TargetError>,
    ) -> Vec<(String, Vec<usize>)> {
        let adaptable = |test: &dyn Fn(&TensorSpec) -> bool| -> Vec<usize> {
            let is_meant = |tensor: &TensorSpec| is_target(tensor) && test(tensor);
            inventory.iter().enumerate().filter(|(_, tensor)| is_meant(tensor)).map(|(index, _)| index).collect()
        };
        match self {
            LoraTargets::Group(group) => {
                vec![(group.to_string(), adaptable(&|tensor| group.holds(tensor.role)))]
            }
            LoraTargets::Names(names) => {
                if names.is_empty() && !switches.any() {
                    faults.push(TargetError::Empty);
                }
                let mut found = Vec::new();
                for name in names {
                    let pattern = match Pattern::new(name) {
                        Ok(pattern) => pattern,
                        Err(fault) => {
                            faults.push(fault);
                            continue;
                        }
                    };
                    let matches =
                        adaptable(&|tensor| tensor.module.as_deref().is_some_and(|path| pattern.matches(path)));
                    if matches.is_empty() {
                        faults.push(explain(name, &pattern, inventory));
                    } else {
                        found.push((name.clone(), matches));
                    }
                }
                found
            }
        }
    }
}

/// Whether a target can name it.
fn is_target(tensor: &TensorSpec) -> bool {
    matches!(tensor.role, Role::Linear(_))
}

/// Why a pattern found nothing to adapt.
fn explain(name: &str, pattern: &Pattern, inventory: &[TensorSpec]) -> TargetError {
    for tensor in inventory.iter().filter(|tensor| !is_target(tensor)) {
        let path = tensor.name.strip_suffix(".weight").unwrap_or(&tensor.name);
        if pattern.matches(path) {
            return TargetError::NotAdaptable {
                pattern: name.to_owned(),
                module: path.to_owned(),
                reason: match tensor.role {
                    Role::Head => "an adapter on the head would have to be evaluated for the whole vocabulary",
                    Role::Embedding => "adapters on embeddings are not there yet",
                    Role::Experts => "routed experts are adapted by `experts = true`",
                    Role::Router | Role::SharedGate => "routers are adapted by `router = true`",
                    _ => "it is not a linear layer",
                },
            };
        }
    }
    if name == "lm_head" {
        return TargetError::NotAdaptable {
            pattern: name.to_owned(),
            module: "lm_head".to_owned(),
            reason: "the head of this model is its embedding (tied), and adapters on embeddings are not there yet",
        };
    }
    // Leaf names first: they are what most people write.
    let paths = inventory.iter().filter(|tensor| is_target(tensor)).filter_map(|tensor| tensor.module.as_deref());
    let mut candidates: Vec<&str> = Vec::new();
    for path in paths.clone() {
        let leaf = path.rsplit('.').next().unwrap_or(path);
        if !candidates.contains(&leaf) {
            candidates.push(leaf);
        }
    }
    let wanted = name.strip_prefix("model.").unwrap_or(name);
    if wanted.contains('.') {
        candidates = paths.collect();
    }
    let mut near = nearest(wanted, candidates.iter().copied(), 3);
    if near.is_empty() {
        candidates.truncate(7);
        near = candidates.into_iter().map(str::to_owned).collect();
    }
    TargetError::NoMatch { pattern: name.to_owned(), near }
}

fn did_you_mean(near: &[String]) -> String {
    if near.is_empty() {
        return String::new();
    }
    let names: Vec<String> = near.iter().map(|name| format!("`{name}`")).collect();
    format!("; it has {}", names.join(", "))
}

/// Not an untagged enum: that would only say that nothing matched.
impl<'de> Deserialize<'de> for LoraTargets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> de::Visitor<'de> for Either {
            type Value = LoraTargets;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`\"all-linear\"`, `\"attention\"`, `\"mlp\"` or a list of module names")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<LoraTargets, E> {
                if let Some((_, group)) = TargetGroup::NAMES.into_iter().find(|(name, _)| *name == text) {
                    return Ok(LoraTargets::Group(group));
                }
                let near = nearest(text, TargetGroup::NAMES.into_iter().map(|(name, _)| name), 1);
                let hint = match near.first() {
                    Some(name) => format!("did you mean `\"{name}\"`?"),
                    None => format!("module names go in a list: `[\"{text}\"]`"),
                };
                Err(E::custom(format!(
                    "unknown group `{text}`, expected `\"all-linear\"`, `\"attention\"` or `\"mlp\"`; {hint}"
                )))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, items: A) -> Result<LoraTargets, A::Error> {
                Vec::deserialize(de::value::SeqAccessDeserializer::new(items)).map(LoraTargets::Names)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests;
