//! [`Quant`]: the kinds of file by how weights are stored, and which type each tensor of one gets.
//!
//! The rules are those of `src/llama-quant.cpp` of llama.cpp, so that a file of a name is what people know by that name.

use std::{fmt, str::FromStr};

use qwen_tune_weights::gguf::{GgufTensor, TensorType};

use super::GgufError;
use super::names::{OUTPUT, TOKEN_EMBEDDING};
use crate::targets::nearest;

/// How the weights of a file are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, missing_docs, reason = "each variant is its name")]
pub enum Quant {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q4_K_S,
    Q4_K_M,
    Q5_K_S,
    Q5_K_M,
    Q6_K,
    IQ4_NL,
    MXFP4_MOE,
}

/// What a file of a kind is made of.
struct Kind {
    quant: Quant,
    name: &'static str,
    /// `general.file_type`.
    id: u32,
    /// What weights get that no rule speaks of.
    base: TensorType,
    rule: Rule,
}

/// Which tensors get more bits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// None.
    Same,
    /// The output.
    Output,
    /// The output, and a few values and down projections: those of the first layers.
    Small,
    /// The output, and half of all values and down projections.
    Medium,
    /// The output, the down projections of the first layers, and the values where four queries or more share them.
    NonLinear,
    /// Everything but routed experts, in eight bits.
    Experts,
}

const KINDS: &[Kind] = &[
    kind(Quant::F32, "F32", 0, TensorType::F32, Rule::Same),
    kind(Quant::F16, "F16", 1, TensorType::F16, Rule::Same),
    kind(Quant::BF16, "BF16", 32, TensorType::BF16, Rule::Same),
    kind(Quant::Q8_0, "Q8_0", 7, TensorType::Q8_0, Rule::Same),
    kind(Quant::Q4_0, "Q4_0", 2, TensorType::Q4_0, Rule::Output),
    kind(Quant::Q4_1, "Q4_1", 3, TensorType::Q4_1, Rule::Output),
    kind(Quant::Q5_0, "Q5_0", 8, TensorType::Q5_0, Rule::Output),
    kind(Quant::Q5_1, "Q5_1", 9, TensorType::Q5_1, Rule::Output),
    kind(Quant::Q4_K_S, "Q4_K_S", 14, TensorType::Q4_K, Rule::Small),
    kind(Quant::Q4_K_M, "Q4_K_M", 15, TensorType::Q4_K, Rule::Medium),
    kind(Quant::Q5_K_S, "Q5_K_S", 16, TensorType::Q5_K, Rule::Output),
    kind(Quant::Q5_K_M, "Q5_K_M", 17, TensorType::Q5_K, Rule::Medium),
    kind(Quant::Q6_K, "Q6_K", 18, TensorType::Q6_K, Rule::Output),
    kind(Quant::IQ4_NL, "IQ4_NL", 25, TensorType::IQ4_NL, Rule::NonLinear),
    kind(Quant::MXFP4_MOE, "MXFP4_MOE", 38, TensorType::MXFP4, Rule::Experts),
];

impl Kind {
    /// Whether eight experts leave bits for the output of attention: with few bits a weight.
    fn spares_attention(&self) -> bool {
        matches!(self.base, TensorType::Q4_K | TensorType::IQ4_NL)
    }
}

const fn kind(quant: Quant, name: &'static str, id: u32, base: TensorType, rule: Rule) -> Kind {
    Kind { quant, name, id, base, rule }
}

impl Quant {
    /// Every kind.
    pub fn all() -> impl Iterator<Item = Self> {
        KINDS.iter().map(|kind| kind.quant)
    }

    fn kind(self) -> &'static Kind {
        KINDS.iter().find(|kind| kind.quant == self).expect("invariant: every quantisation has an entry")
    }

    /// Its name in file names, such as `Q4_K_M`.
    pub fn name(self) -> &'static str {
        self.kind().name
    }

    /// The kind that a value of `general.file_type` stands for; llama.cpp knows more kinds than are written here.
    pub fn of_file_type(id: u32) -> Option<Self> {
        KINDS.iter().find(|kind| kind.id == id).map(|kind| kind.quant)
    }

    /// The value of `general.file_type`.
    pub(super) fn file_type(self) -> u32 {
        self.kind().id
    }
}

impl fmt::Display for Quant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Quant {
    type Err = GgufError;

    /// Reads a name in either case.
    fn from_str(text: &str) -> Result<Self, GgufError> {
        let found = KINDS.iter().find(|kind| kind.name.eq_ignore_ascii_case(text));
        found.map(|kind| kind.quant).ok_or_else(|| {
            let known: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
            let near = nearest(&text.to_uppercase(), known.iter().copied(), 1);
            GgufError::UnknownQuant { found: text.to_owned(), near, known }
        })
    }
}

/// What the choice of types depends on besides names and shapes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    pub(super) layers: usize,
    /// 0 for a dense model.
    pub(super) experts: usize,
    /// Query heads that share a key and value head.
    pub(super) sharing: usize,
    /// Whether the model is the one of 70 billion parameters for whose values llama.cpp keeps more bits.
    pub(super) seventy_billion: bool,
}

/// The type of each tensor in a file of this kind. `tensors` are names and shapes in any order.
pub(super) fn choose(quant: Quant, facts: Facts, tensors: &[(String, Vec<usize>)]) -> Vec<GgufTensor> {
    let kind = quant.kind();
    let tied = tensors.iter().all(|(name, _)| name != OUTPUT);
    let values = tensors.iter().filter(|(name, _)| Category::of(name) == Category::Values).count();
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_cached_key(|&index| (layer(&tensors[index].0), tensors[index].0.clone()));
    let mut types = vec![TensorType::F32; tensors.len()];
    let (mut value, mut down) = (0, 0);
    for index in order {
        let (name, shape) = &tensors[index];
        if !is_quantised(name, shape) {
            continue;
        }
        let row = shape.last().copied().unwrap_or(1);
        let mut category = Category::of(name);
        if tied && name == TOKEN_EMBEDDING {
            category = Category::Output;
        }
        let mut ty = kind.base;
        if kind.rule == Rule::Experts {
            ty = fitting(if shape.len() == 3 { kind.base } else { TensorType::Q8_0 }, row);
        } else if kind.rule != Rule::Same {
            ty = match category {
                Category::Output if row.is_multiple_of(kind.base.block()) => TensorType::Q6_K,
                Category::Output => TensorType::Q8_0,
                Category::Values => value_type(kind, facts, value, values),
                Category::Keys if facts.experts == 8 => TensorType::Q8_0,
                Category::AttentionOutput if facts.experts == 8 && kind.spares_attention() => TensorType::Q5_K,
                Category::Down => {
                    let place = if facts.experts > 1 { layer(name).unwrap_or(0) } else { down };
                    down_type(kind, place, facts.layers)
                }
                _ => kind.base,
            };
            ty = fitting(ty, row);
        } else if !row.is_multiple_of(ty.block()) {
            ty = TensorType::F16;
        }
        value += usize::from(category == Category::Values);
        down += usize::from(category == Category::Down);
        types[index] = ty;
    }
    tensors.iter().zip(types).map(|((name, shape), ty)| GgufTensor::new(name, shape.clone(), ty)).collect()
}

/// Whether a tensor is ever anything but F32.
fn is_quantised(name: &str, shape: &[usize]) -> bool {
    let kept = ["ffn_gate_inp.weight", "ssm_conv1d.weight", "_norm.weight"];
    // A matrix of one row counts as a list of numbers.
    let is_matrix = shape.split_last().is_some_and(|(_, outer)| outer.iter().any(|&extent| extent > 1));
    is_matrix && name.ends_with(".weight") && !kept.iter().any(|end| name.ends_with(end))
}

/// What the rules tell apart.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Category {
    Output,
    Values,
    Keys,
    AttentionOutput,
    Down,
    Other,
}

impl Category {
    fn of(name: &str) -> Self {
        if name == OUTPUT {
            Category::Output
        } else if name.ends_with("attn_v.weight") || name.ends_with("attn_qkv.weight") {
            Category::Values
        } else if name.ends_with("attn_k.weight") {
            Category::Keys
        } else if name.ends_with("attn_output.weight") {
            Category::AttentionOutput
        } else if name.contains("ffn_down") {
            Category::Down
        } else {
            Category::Other
        }
    }
}

fn value_type(kind: &Kind, facts: Facts, index: usize, count: usize) -> TensorType {
    if facts.experts == 8 {
        return TensorType::Q8_0;
    }
    match kind.rule {
        Rule::Medium if gets_more(index, count) => TensorType::Q6_K,
        Rule::Small if index < 4 => TensorType::Q5_K,
        Rule::NonLinear if facts.sharing >= 4 => TensorType::Q5_K,
        _ if facts.seventy_billion && kind.base == TensorType::Q4_K => TensorType::Q5_K,
        _ => kind.base,
    }
}

fn down_type(kind: &Kind, index: usize, layers: usize) -> TensorType {
    match kind.rule {
        Rule::Medium if gets_more(index, layers) => TensorType::Q6_K,
        Rule::Small | Rule::NonLinear if index < layers / 8 => TensorType::Q5_K,
        _ => kind.base,
    }
}

/// The first eighth, the last eighth, and every third between.
fn gets_more(index: usize, count: usize) -> bool {
    let eighth = count / 8;
    index < eighth || index >= 7 * count / 8 || (index - eighth) % 3 == 2
}

/// The type, or the nearest one whose blocks divide a row.
fn fitting(ty: TensorType, row: usize) -> TensorType {
    if row.is_multiple_of(ty.block()) {
        return ty;
    }
    let smaller = match ty {
        TensorType::Q4_K => TensorType::Q5_0,
        TensorType::Q5_K => TensorType::Q5_1,
        TensorType::Q6_K => TensorType::Q8_0,
        _ => TensorType::F16,
    };
    if row.is_multiple_of(smaller.block()) { smaller } else { TensorType::F16 }
}

fn layer(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}
