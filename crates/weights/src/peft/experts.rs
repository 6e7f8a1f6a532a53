//! Adapters of routed experts, as PEFT names and lays them out.
//!
//! A mixture holds the matrices of all its experts in two tensors, `experts.gate_up_proj` and `experts.down_proj`. PEFT
//! adapts such a tensor (`target_parameters`) by a wrapper around the module that holds it, so the keys do not say which
//! of the two is meant: the first wrapper is around `down_proj` where both are adapted, and the other one, around
//! `gate_up_proj`, lies inside it as its `base_layer`. The files hold `lora_A` `[experts · r, in]` with the rows of an
//! expert together, and `lora_B` `[out, r · experts]` with the columns of a rank together.
//!
//! Adapters made with older libraries have a pair for each linear layer of each expert instead. [`join`] makes the same
//! adapter of the fused tensors of them.

use std::collections::{BTreeMap, BTreeSet};

use super::{AdapterConfig, AdapterError, LoraPair};

/// The module that holds the fused tensors.
const HOLDER: &str = ".experts";
/// The wrapper inside a wrapper.
const INNER: &str = ".experts.base_layer";
const GATE_UP: &str = ".experts.gate_up_proj";
const DOWN: &str = ".experts.down_proj";

/// The path in keys of a module whose siblings are `modules`.
pub(super) fn stored_path(module: &str, modules: &BTreeSet<&str>) -> String {
    if let Some(layer) = module.strip_suffix(DOWN) {
        return format!("{layer}{HOLDER}");
    }
    match module.strip_suffix(GATE_UP) {
        Some(layer) if modules.contains(format!("{layer}{DOWN}").as_str()) => format!("{layer}{INNER}"),
        Some(layer) => format!("{layer}{HOLDER}"),
        None => module.to_owned(),
    }
}

/// The module that a path in keys means; `None` for a wrapper of which nothing says what it wraps.
pub(super) fn module_of(path: &str, paths: &BTreeSet<String>, config: &AdapterConfig) -> Option<String> {
    if let Some(layer) = path.strip_suffix(INNER) {
        return Some(format!("{layer}{GATE_UP}"));
    }
    let Some(layer) = path.strip_suffix(HOLDER) else { return Some(path.to_owned()) };
    let [gate_up, down] = [GATE_UP, DOWN].map(|leaf| format!("{layer}{leaf}"));
    if paths.contains(&format!("{layer}{INNER}")) {
        return Some(down);
    }
    let targets = config.target_parameters.as_deref().unwrap_or_default();
    let is_target = |module: &str| {
        let ends = |target: &String| module == target || module.ends_with(&format!(".{target}"));
        targets.iter().any(ends)
    };
    match (is_target(&gate_up), is_target(&down)) {
        (true, false) => Some(gate_up),
        (false, true) => Some(down),
        _ => None,
    }
}

/// Whether a module is the fused tensor of many experts.
pub(super) fn is_fused(module: &str) -> bool {
    module.ends_with(GATE_UP) || module.ends_with(DOWN)
}

/// `[experts, out, r]` to `[out, r · experts]`.
pub(super) fn rank_major(pair: &LoraPair) -> Vec<f32> {
    let LoraPair { experts, out_features, rank, .. } = *pair;
    let mut stored = vec![0.0; pair.b.len()];
    for (expert, rows) in pair.b.chunks_exact((out_features * rank).max(1)).enumerate() {
        for (row, values) in rows.chunks_exact(rank).enumerate() {
            for (column, value) in values.iter().enumerate() {
                stored[(row * rank + column) * experts + expert] = *value;
            }
        }
    }
    stored
}

/// `[out, r · experts]` to `[experts, out, r]`.
pub(super) fn expert_major(stored: &[f32], experts: usize, out_features: usize, rank: usize) -> Vec<f32> {
    let mut b = vec![0.0; stored.len()];
    for (index, values) in stored.chunks_exact(experts).enumerate() {
        for (expert, value) in values.iter().enumerate() {
            b[expert * out_features * rank + index] = *value;
        }
    }
    b
}

/// An expert's linear layer: its layer's path, its number, the leaf.
fn single(module: &str) -> Option<(&str, usize, &str)> {
    let (path, leaf) = module.rsplit_once('.')?;
    let (holder, number) = path.rsplit_once('.')?;
    let layer = holder.strip_suffix(HOLDER)?;
    Some((layer, number.parse().ok()?, leaf))
}

/// Pairs of single experts' linear layers to pairs of the fused tensors; others stay as they are. The joined ones stand
/// where the first of theirs stood.
pub(super) fn join(pairs: Vec<LoraPair>) -> Result<Vec<LoraPair>, Vec<AdapterError>> {
    let mut groups: BTreeMap<String, BTreeMap<usize, BTreeMap<String, LoraPair>>> = BTreeMap::new();
    let mut order = Vec::new();
    for pair in pairs {
        let Some((layer, expert, leaf)) = single(&pair.module) else {
            order.push(Ok(pair));
            continue;
        };
        let (fused, leaf) = match leaf {
            "gate_proj" | "up_proj" | "gate_up_proj" => (format!("{layer}{GATE_UP}"), leaf.to_owned()),
            "down_proj" => (format!("{layer}{DOWN}"), leaf.to_owned()),
            _ => {
                order.push(Ok(pair));
                continue;
            }
        };
        if !groups.contains_key(&fused) {
            order.push(Err(fused.clone()));
        }
        groups.entry(fused).or_default().entry(expert).or_default().insert(leaf, pair);
    }
    let mut faults = Vec::new();
    let mut joined = Vec::new();
    for entry in order {
        match entry {
            Ok(pair) => joined.push(pair),
            Err(fused) => match fuse(&fused, &groups[&fused]) {
                Ok(pair) => joined.push(pair),
                Err(fault) => faults.push(fault),
            },
        }
    }
    if faults.is_empty() { Ok(joined) } else { Err(faults) }
}

/// One pair of all experts. Gate and up, adapted apart with ranks r and s, become one adapter of rank r + s whose B is
/// block-diagonal; scales are folded into B where they differ.
fn fuse(module: &str, experts: &BTreeMap<usize, BTreeMap<String, LoraPair>>) -> Result<LoraPair, AdapterError> {
    let unlike = |expert: usize| AdapterError::Experts {
        module: module.to_owned(),
        reason: format!("expert {expert} is not adapted like expert 0"),
    };
    let Some(first) = experts.get(&0) else { return Err(unlike(0)) };
    let count = experts.len();
    if let Some(gap) = (0..count).find(|expert| !experts.contains_key(expert)) {
        return Err(unlike(gap));
    }
    let form = |leaves: &BTreeMap<String, LoraPair>| -> Vec<(String, usize, usize, usize)> {
        leaves.iter().map(|(leaf, pair)| (leaf.clone(), pair.rank, pair.in_features, pair.out_features)).collect()
    };
    let shape = form(first);
    if let Some((&expert, _)) = experts.iter().find(|(_, leaves)| form(leaves) != shape) {
        return Err(unlike(expert));
    }
    let (in_features, out_of_one) = (shape[0].2, shape[0].3);
    let is_odd = |(leaf, _, inputs, outputs): &(String, usize, usize, usize)| {
        (*inputs, *outputs) != (in_features, out_of_one) || (leaf == "gate_up_proj" && shape.len() > 1)
    };
    if shape.iter().any(is_odd) {
        let reason = "gate_proj and up_proj of an expert do not go together".to_owned();
        return Err(AdapterError::Experts { module: module.to_owned(), reason });
    }
    // One of gate and up alone leaves the other half of the rows as they are.
    let halves = shape.iter().any(|(leaf, ..)| leaf == "gate_proj" || leaf == "up_proj");
    let out_features = if halves { 2 * out_of_one } else { out_of_one };
    let rank: usize = shape.iter().map(|(_, rank, ..)| rank).sum();
    let scale = first.values().next().map_or(1.0, |pair| pair.scale);
    let mut a = Vec::with_capacity(count * rank * in_features);
    let mut b = vec![0.0; count * out_features * rank];
    for (leaves, b) in experts.values().zip(b.chunks_exact_mut(out_features * rank)) {
        let mut column = 0;
        for (leaf, pair) in leaves {
            a.extend_from_slice(&pair.a);
            let first_row = if leaf == "up_proj" { out_features / 2 } else { 0 };
            let factor = if pair.scale == scale { 1.0 } else { pair.scale / scale };
            for (row, values) in pair.b.chunks_exact(pair.rank).enumerate() {
                let to = &mut b[(first_row + row) * rank + column..][..pair.rank];
                to.iter_mut().zip(values).for_each(|(to, value)| *to = value * factor);
            }
            column += pair.rank;
        }
    }
    Ok(LoraPair { module: module.to_owned(), a, b, rank, in_features, out_features, experts: count, scale })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn pair(module: &str, rank: usize, [out_features, in_features]: [usize; 2], first: f32) -> LoraPair {
        let run = |count: usize, start: f32| (0..count).map(|index| start + index as f32).collect();
        LoraPair {
            module: module.to_owned(),
            a: run(rank * in_features, first),
            b: run(out_features * rank, -first),
            rank,
            in_features,
            out_features,
            experts: 1,
            scale: 2.0,
        }
    }

    /// `B · A`, `[out, in]`.
    fn product(a: &[f32], b: &[f32], rank: usize, inputs: usize) -> Vec<f32> {
        b.chunks_exact(rank)
            .flat_map(|row| (0..inputs).map(move |i| (0..rank).map(|j| row[j] * a[j * inputs + i]).sum::<f32>()))
            .collect()
    }

    #[test]
    fn gate_and_up_of_each_expert_become_one_block_diagonal_adapter() {
        let mut pairs = vec![pair("l.self_attn.q_proj", 1, [2, 3], 9.0)];
        for expert in 0..3 {
            pairs.push(pair(&format!("l.mlp.experts.{expert}.up_proj"), 2, [4, 3], 1.0 + expert as f32));
            pairs.push(pair(&format!("l.mlp.experts.{expert}.gate_proj"), 1, [4, 3], 5.0 + expert as f32));
        }
        pairs[1].scale = 1.0;
        pairs[3].scale = 1.0;
        pairs[5].scale = 1.0;
        let apart = pairs.clone();
        let joined = join(pairs).unwrap();
        assert_eq!(
            joined.iter().map(|p| p.module.as_str()).collect::<Vec<_>>(),
            ["l.self_attn.q_proj", "l.mlp.experts.gate_up_proj"]
        );
        let all = &joined[1];
        assert_eq!((all.rank, all.experts, all.out_features, all.in_features), (3, 3, 8, 3));
        for expert in 0..3 {
            let a = &all.a[expert * 9..][..9];
            let b = &all.b[expert * 24..][..24];
            let fused: Vec<f32> = product(a, b, 3, 3).iter().map(|v| v * all.scale).collect();
            let [up, gate] = [&apart[1 + 2 * expert], &apart[2 + 2 * expert]];
            let scaled = |p: &LoraPair| product(&p.a, &p.b, p.rank, 3).iter().map(|v| v * p.scale).collect::<Vec<_>>();
            assert_eq!(fused, [scaled(gate), scaled(up)].concat());
        }
    }

    #[test]
    fn up_alone_leaves_the_gates_rows() {
        let joined = join(vec![pair("l.mlp.experts.0.up_proj", 1, [2, 2], 1.0)]).unwrap();
        assert_eq!(joined[0].b, [0.0, 0.0, -1.0, 0.0]);
        assert_eq!(joined[0].out_features, 4);
    }

    #[test]
    fn experts_that_differ_are_named() {
        let texts = |pairs| join(pairs).unwrap_err().iter().map(ToString::to_string).collect::<Vec<_>>();
        let some = |expert: usize, rank| pair(&format!("l.mlp.experts.{expert}.down_proj"), rank, [2, 2], 1.0);
        assert_eq!(
            texts(vec![some(0, 1), some(2, 1)]),
            ["the adapter of `l.mlp.experts.down_proj` is incomplete: expert 1 is not adapted like expert 0"]
        );
        let part = |leaf: &str, rows| pair(&format!("l.mlp.experts.0.{leaf}"), 1, [rows, 2], 1.0);
        for (one, other) in
            [(part("gate_proj", 2), part("up_proj", 3)), (part("gate_proj", 2), part("gate_up_proj", 2))]
        {
            assert_eq!(
                texts(vec![one, other]),
                [
                    "the adapter of `l.mlp.experts.gate_up_proj` is incomplete: gate_proj and up_proj of an expert do not go together"
                ]
            );
        }
        assert_eq!(
            texts(vec![some(0, 1), some(1, 2)]),
            ["the adapter of `l.mlp.experts.down_proj` is incomplete: expert 1 is not adapted like expert 0"]
        );
    }

    #[test]
    fn both_orders_of_b_hold_the_same_numbers() {
        let mut many = pair("l.mlp.experts.down_proj", 2, [3, 1], 0.0);
        many.experts = 4;
        many.b = (0..24).map(|index| index as f32).collect();
        let stored = rank_major(&many);
        // Row 1, rank 1, expert 2: 2 · 6 + 1 · 2 + 1.
        assert_eq!(stored[(2 + 1) * 4 + 2], 15.0);
        assert_eq!(expert_major(&stored, 4, 3, 2), many.b);
    }

    #[test]
    fn wrappers_are_told_apart_by_nesting_and_by_the_configuration() {
        let mut config = AdapterConfig::new(None, 2, 4.0, Vec::new());
        let both: BTreeSet<String> = ["l.mlp.experts".to_owned(), "l.mlp.experts.base_layer".to_owned()].into();
        let module = |path: &str, paths: &BTreeSet<String>, config: &AdapterConfig| module_of(path, paths, config);
        assert_eq!(module("l.mlp.experts", &both, &config).unwrap(), "l.mlp.experts.down_proj");
        assert_eq!(module("l.mlp.experts.base_layer", &both, &config).unwrap(), "l.mlp.experts.gate_up_proj");
        let one: BTreeSet<String> = ["l.mlp.experts".to_owned()].into();
        assert_eq!(module("l.mlp.experts", &one, &config), None);
        config.target_parameters = Some(vec!["mlp.experts.gate_up_proj".to_owned()]);
        assert_eq!(module("l.mlp.experts", &one, &config).unwrap(), "l.mlp.experts.gate_up_proj");
        for modules in
            [vec!["l.mlp.experts.down_proj", "l.mlp.experts.gate_up_proj"], vec!["l.mlp.experts.gate_up_proj"]]
        {
            let siblings: BTreeSet<&str> = modules.iter().copied().collect();
            let paths: BTreeSet<String> = modules.iter().map(|m| stored_path(m, &siblings)).collect();
            for module in &modules {
                assert_eq!(module_of(&stored_path(module, &siblings), &paths, &config).unwrap(), *module);
            }
        }
    }
}
