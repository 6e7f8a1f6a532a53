//! What the passengers of a checkpoint are for, by their names.

use qwen_tune_weights::TensorSource;
use serde::Serialize;

use super::ModelDir;

/// Passengers of one purpose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PassengerGroup {
    /// The purpose: `vision`, `mtp` (predictors of further tokens), `head` (a copy of a tied embedding), `rope` (tables of
    /// frequencies), else `other`.
    pub purpose: &'static str,
    /// How many tensors.
    pub tensors: usize,
    /// Numbers in them.
    pub parameters: u64,
    /// Bytes of them, as stored.
    pub bytes: u64,
}

/// Parts of dotted names that tell a purpose.
const PURPOSES: [(&str, &[&str]); 4] = [
    ("vision", &["visual", "vision_tower", "vision_model"]),
    ("mtp", &["mtp"]),
    ("head", &["lm_head"]),
    ("rope", &["rotary_emb"]),
];

fn purpose(name: &str) -> &'static str {
    let has = |marks: &[&str]| name.split('.').any(|part| marks.contains(&part));
    PURPOSES.into_iter().find(|(_, marks)| has(marks)).map_or("other", |(purpose, _)| purpose)
}

impl ModelDir {
    /// The passengers by purpose, in the order in which the checkpoint first has them.
    pub fn passenger_groups(&self) -> Vec<PassengerGroup> {
        let mut groups: Vec<PassengerGroup> = Vec::new();
        for info in self.passengers.iter().filter_map(|name| self.checkpoint.info(name)) {
            let purpose = purpose(&info.name);
            let at = groups.iter().position(|group| group.purpose == purpose).unwrap_or_else(|| {
                groups.push(PassengerGroup { purpose, tensors: 0, parameters: 0, bytes: 0 });
                groups.len() - 1
            });
            groups[at].tensors += 1;
            groups[at].parameters += info.elements() as u64;
            groups[at].bytes += info.bytes() as u64;
        }
        groups
    }
}
