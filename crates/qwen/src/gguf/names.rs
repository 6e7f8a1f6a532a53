//! [`TENSORS`]: what each tensor of the inventory is called in a GGUF file, and how its values are arranged there.
//!
//! Names: `gguf-py/gguf/constants.py` of llama.cpp.

/// How the values of a tensor become those of the file's tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// As they are.
    Plain,
    /// A norm's weights, stored whole where the checkpoint stores them less one.
    Norm,
    /// Rows of query heads.
    Queries,
    /// Rows of key heads.
    Keys,
    /// Rows grouped by key head: q, k, then v and z of its value heads.
    GroupedRows,
    /// Rows of all q and k, then of value heads.
    MixedRows,
    /// Rows of value heads, a head's channels together.
    ValueRows,
    /// One row for each value head.
    HeadRows,
    /// One logarithm of a decay for each value head.
    DecayLogs,
    /// Columns of value heads.
    ValueColumns,
    /// For each expert, rows of the gate, then as many of the up projection.
    GateUpRows,
}

/// A tensor of the inventory and what it is in the file.
pub(super) struct Entry {
    /// Name in the inventory, for tensors of layers without `layers.N.`.
    pub(super) tensor: &'static str,
    /// Names in the file, for tensors of layers without `blk.N.`; an architecture may call them otherwise.
    pub(super) file: &'static [&'static str],
    pub(super) form: Form,
}

const fn entry(tensor: &'static str, file: &'static [&'static str], form: Form) -> Entry {
    Entry { tensor, file, form }
}

/// The embedding, in the file.
pub(super) const TOKEN_EMBEDDING: &str = "token_embd.weight";
/// The head, in the file.
pub(super) const OUTPUT: &str = "output.weight";
/// What pair i's frequency is divided by, in the file.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Every tensor there can be.
pub(super) const TENSORS: &[Entry] = &[
    entry("embed_tokens.weight", &[TOKEN_EMBEDDING], Form::Plain),
    entry("norm.weight", &["output_norm.weight"], Form::Norm),
    entry("lm_head.weight", &[OUTPUT], Form::Plain),
    entry("input_layernorm.weight", &["attn_norm.weight"], Form::Norm),
    entry("post_attention_layernorm.weight", &["ffn_norm.weight"], Form::Norm),
    entry("self_attn.q_proj.weight", &["attn_q.weight"], Form::Queries),
    entry("self_attn.q_proj.bias", &["attn_q.bias"], Form::Queries),
    entry("self_attn.k_proj.weight", &["attn_k.weight"], Form::Keys),
    entry("self_attn.k_proj.bias", &["attn_k.bias"], Form::Keys),
    entry("self_attn.v_proj.weight", &["attn_v.weight"], Form::Plain),
    entry("self_attn.v_proj.bias", &["attn_v.bias"], Form::Plain),
    entry("self_attn.o_proj.weight", &["attn_output.weight"], Form::Plain),
    entry("self_attn.o_proj.bias", &["attn_output.bias"], Form::Plain),
    entry("self_attn.q_norm.weight", &["attn_q_norm.weight"], Form::Norm),
    entry("self_attn.k_norm.weight", &["attn_k_norm.weight"], Form::Norm),
    entry("linear_attn.in_proj_qkvz.weight", &["attn_qkv.weight", "attn_gate.weight"], Form::GroupedRows),
    entry("linear_attn.in_proj_ba.weight", &["ssm_ba.weight"], Form::Plain),
    entry("linear_attn.in_proj_qkv.weight", &["attn_qkv.weight"], Form::MixedRows),
    entry("linear_attn.in_proj_z.weight", &["attn_gate.weight"], Form::ValueRows),
    entry("linear_attn.in_proj_b.weight", &["ssm_beta.weight"], Form::HeadRows),
    entry("linear_attn.in_proj_a.weight", &["ssm_alpha.weight"], Form::HeadRows),
    entry("linear_attn.conv1d.weight", &["ssm_conv1d.weight"], Form::MixedRows),
    entry("linear_attn.A_log", &["ssm_a"], Form::DecayLogs),
    entry("linear_attn.dt_bias", &["ssm_dt.bias"], Form::HeadRows),
    entry("linear_attn.norm.weight", &["ssm_norm.weight"], Form::Plain),
    entry("linear_attn.out_proj.weight", &["ssm_out.weight"], Form::ValueColumns),
    entry("mlp.gate_proj.weight", &["ffn_gate.weight"], Form::Plain),
    entry("mlp.gate_proj.bias", &["ffn_gate.bias"], Form::Plain),
    entry("mlp.up_proj.weight", &["ffn_up.weight"], Form::Plain),
    entry("mlp.up_proj.bias", &["ffn_up.bias"], Form::Plain),
    entry("mlp.down_proj.weight", &["ffn_down.weight"], Form::Plain),
    entry("mlp.down_proj.bias", &["ffn_down.bias"], Form::Plain),
    entry("mlp.gate.weight", &["ffn_gate_inp.weight"], Form::Plain),
    entry("mlp.experts.gate_up_proj", &["ffn_gate_exps.weight", "ffn_up_exps.weight"], Form::GateUpRows),
    entry("mlp.experts.down_proj", &["ffn_down_exps.weight"], Form::Plain),
    entry("mlp.shared_expert.gate_proj.weight", &["ffn_gate_shexp.weight"], Form::Plain),
    entry("mlp.shared_expert.up_proj.weight", &["ffn_up_shexp.weight"], Form::Plain),
    entry("mlp.shared_expert.down_proj.weight", &["ffn_down_shexp.weight"], Form::Plain),
    entry("mlp.shared_expert_gate.weight", &["ffn_gate_inp_shexp.weight"], Form::Plain),
];

/// The entry of a tensor of the inventory.
pub(super) fn of(tensor: &str) -> Option<&'static Entry> {
    let local = match tensor.strip_prefix("layers.") {
        Some(rest) => rest.split_once('.').map_or(rest, |(_, local)| local),
        None => tensor,
    };
    TENSORS.iter().find(|entry| entry.tensor == local)
}
