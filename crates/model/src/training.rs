//! [`Training`]: what of a model is trained.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::Master;

/// What of the model is trained.
#[derive(Debug, Clone, Default)]
pub enum Training {
    /// Nothing: evaluation and generation of the base.
    #[default]
    Nothing,
    /// Adapters on the listed modules.
    Lora(LoraPlan),
    /// Tensors of the base.
    Full(FullPlan),
}

/// Which tensors of the base are trained, and how they are held.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FullPlan {
    /// By inventory name.
    pub tensors: BTreeSet<String>,
    /// Number format of the trained matrices that take part in products; norms, biases and other vectors are f32.
    pub master: Master,
}

impl From<BTreeSet<String>> for FullPlan {
    fn from(tensors: BTreeSet<String>) -> Self {
        Self { tensors, master: Master::F32 }
    }
}

impl FromIterator<String> for FullPlan {
    fn from_iter<I: IntoIterator<Item = String>>(names: I) -> Self {
        names.into_iter().collect::<BTreeSet<_>>().into()
    }
}

/// Which modules get an adapter or are trained whole beside the adapters, and how they begin.
#[derive(Debug, Clone, Default)]
pub struct LoraPlan {
    /// By module path without the checkpoint's prefix: `layers.0.self_attn.q_proj`.
    pub modules: BTreeMap<String, LoraModule>,
    /// Tensors of the base that are trained themselves, by inventory name: their first values, or the base's own.
    pub whole: BTreeMap<String, Option<Vec<f32>>>,
    /// Probability that an input channel of A is dropped in training.
    pub dropout: f32,
    /// Seed of A where it is drawn.
    pub seed: u64,
}

/// One adapter pair.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraModule {
    /// Rows of A, columns of B.
    pub rank: usize,
    /// Factor on `B A x`.
    pub scale: f32,
    /// Values of A `[rank, in]` and B `[out, rank]`, of experts one after another; drawn and zero when absent.
    pub values: Option<(Vec<f32>, Vec<f32>)>,
}
