//! How a checkpoint holds the matrices of experts: all in one tensor, one tensor an expert, or three.

use qwen_tune_weights::TensorSource;

use crate::TensorSpec;

/// A stored tensor that is a run of another one's elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Index of its first element in the whole tensor.
    pub start: usize,
}

impl Part {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// The parts of `experts.gate_up_proj` `[E, 2I, H]` or `experts.down_proj` `[E, H, I]` whose whole would be called
/// `name`: `experts.N.gate_up_proj.weight`, or gate and up apart, as the first expert shows.
pub(super) fn parts(tensor: &TensorSpec, name: &str, checkpoint: &dyn TensorSource) -> Vec<Part> {
    let [experts, rows, columns] = tensor.shape[..] else {
        unreachable!("invariant: experts are lists of matrices");
    };
    let (before, leaf) = name.rsplit_once('.').unwrap_or(("", name));
    let of = |expert: usize, leaf: &str| format!("{before}.{expert}.{leaf}.weight");
    let leaves: Vec<(&str, usize)> = match leaf {
        "gate_up_proj" if checkpoint.info(&of(0, leaf)).is_none() => {
            vec![("gate_proj", rows / 2), ("up_proj", rows / 2)]
        }
        leaf => vec![(leaf, rows)],
    };
    let mut parts = Vec::with_capacity(experts * leaves.len());
    let mut start = 0;
    for expert in 0..experts {
        for (leaf, rows) in &leaves {
            let part = Part { name: of(expert, leaf), shape: vec![*rows, columns], start };
            start += part.elements();
            parts.push(part);
        }
    }
    parts
}
