//! Which layers of a hybrid mix by softmax attention and which by a gated delta rule, and what both are.

use serde_json::Value;

use super::{FieldFault, Fields, HeadDefaults, heads, norm};
use crate::{AttentionSpec, GatedDeltaSpec, MixerSpec, NormSpec, Projections};

const FULL: &str = "full_attention";
const LINEAR: &str = "linear_attention";

/// The mixer of every layer: as `layer_types` lists them, else attention in every `full_attention_interval`-th.
pub(super) fn mixers(fields: &Fields<'_>, projections: Projections, bias: bool) -> Vec<MixerSpec> {
    if !fields.flag("attn_output_gate", true) {
        fields.unsupported("attn_output_gate", &Value::from(false), "attention of this family is gated");
    }
    let attention = MixerSpec::Attention(AttentionSpec {
        qkv_bias: bias,
        output_bias: bias,
        qk_norm: Some(NormSpec { zero_centred: true, ..norm(fields) }),
        output_gate: true,
        ..heads(fields, &HeadDefaults { kv_heads: None, head_dim: Some(256) })
    });
    let (key_heads, value_heads) = (fields.size("linear_num_key_heads"), fields.size("linear_num_value_heads"));
    fields.expect_multiple(("linear_num_value_heads", value_heads), ("linear_num_key_heads", key_heads));
    let delta = MixerSpec::GatedDelta(GatedDeltaSpec {
        key_heads,
        value_heads,
        key_dim: fields.size("linear_key_head_dim"),
        value_dim: fields.size("linear_value_head_dim"),
        kernel: fields.size_or("linear_conv_kernel_dim", 4),
        projections,
        norm_eps: norm(fields).eps,
    });
    let layers = fields.size("num_hidden_layers");
    let full = match fields.get("layer_types") {
        Some(value) => listed(fields, value, layers),
        None => {
            let interval = fields.size_or("full_attention_interval", 4);
            (0..layers).map(|layer| (layer + 1).is_multiple_of(interval)).collect()
        }
    };
    full.into_iter().map(|full| if full { attention.clone() } else { delta.clone() }).collect()
}

fn listed(fields: &Fields<'_>, value: &Value, layers: usize) -> Vec<bool> {
    let Some(names) = value.as_array() else {
        fields.invalid("layer_types", value, "a list of names");
        return vec![true; layers];
    };
    if names.len() != layers {
        if fields.was_read("num_hidden_layers") {
            fields.fault(FieldFault::WrongCount { field: "layer_types", found: names.len(), expected: layers });
        }
        return vec![true; layers];
    }
    let is_full = |(index, name): (usize, &Value)| match name.as_str() {
        Some(FULL) => true,
        Some(LINEAR) => false,
        _ => {
            let expected = format!("`{FULL}` and `{LINEAR}` are");
            fields.unsupported(&format!("layer_types[{index}]"), name, expected);
            true
        }
    };
    names.iter().enumerate().map(is_full).collect()
}
