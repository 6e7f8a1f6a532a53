//! Which layers are mixtures of experts, and what their experts are.

use serde_json::Value;

use super::{FieldFault, Fields};
use crate::{FfnSpec, SparseSpec};

/// What families differ in.
pub(super) struct Experts {
    pub(super) renormalise: Renormalise,
    /// Whether one more expert sees every token.
    pub(super) shared: bool,
}

/// Whether the probabilities of the chosen experts are made to sum to one.
pub(super) enum Renormalise {
    /// As `norm_topk_prob` says, and this where it is absent.
    Field(bool),
    /// Without asking.
    Always,
}

/// Sparse in every layer.
pub(super) fn every_layer(fields: &Fields<'_>, experts: &Experts) -> Vec<FfnSpec> {
    vec![FfnSpec::Sparse(spec(fields, experts)); fields.size("num_hidden_layers")]
}

/// Sparse in every `decoder_sparse_step`-th layer but those of `mlp_only_layers`, which are dense.
pub(super) fn some_layers(fields: &Fields<'_>, experts: &Experts) -> Vec<FfnSpec> {
    let layers = fields.size("num_hidden_layers");
    let step = fields.size_or("decoder_sparse_step", 1);
    let dense_layers = layer_list(fields, "mlp_only_layers", layers);
    let is_sparse = |layer: usize| !dense_layers.contains(&layer) && (layer + 1).is_multiple_of(step);
    // The dense width of a model without dense layers is often stale.
    let dense = (0..layers)
        .any(|layer| !is_sparse(layer))
        .then(|| FfnSpec::Dense { inner: fields.size("intermediate_size"), bias: false });
    let sparse = FfnSpec::Sparse(spec(fields, experts));
    (0..layers)
        .map(|layer| if is_sparse(layer) { &sparse } else { dense.as_ref().unwrap_or(&sparse) }.clone())
        .collect()
}

fn spec(fields: &Fields<'_>, experts: &Experts) -> SparseSpec {
    let count = match fields.get("num_experts") {
        None if fields.get("num_local_experts").is_some() => fields.size("num_local_experts"),
        _ => fields.size("num_experts"),
    };
    let active = fields.size("num_experts_per_tok");
    if active > count && fields.was_read("num_experts") && fields.was_read("num_experts_per_tok") {
        fields.invalid("num_experts_per_tok", &Value::from(active), &format!("at most the {count} experts there are"));
    }
    SparseSpec {
        experts: count,
        active,
        inner: fields.size("moe_intermediate_size"),
        renormalise: match experts.renormalise {
            Renormalise::Field(default) => fields.flag("norm_topk_prob", default),
            Renormalise::Always => true,
        },
        shared: experts.shared.then(|| fields.size("shared_expert_intermediate_size")),
        balance: fields.get("router_aux_loss_coef").and_then(Value::as_f64).unwrap_or(0.001),
    }
}

/// A list of layer numbers.
fn layer_list(fields: &Fields<'_>, field: &'static str, layers: usize) -> Vec<usize> {
    let Some(value) = fields.get(field) else { return Vec::new() };
    let numbers = value.as_array().map(|list| list.iter().map(|n| n.as_u64().map(|n| n as usize)).collect());
    match numbers {
        Some(Some(numbers)) => numbers,
        _ => {
            fields.fault(FieldFault::Invalid {
                field: field.to_owned(),
                found: value.to_string(),
                expected: format!("a list of layer numbers below {layers}"),
            });
            Vec::new()
        }
    }
}
