use qwen_tune_weights::gguf::TensorType::{self, *};

use crate::gguf::Quant;
use crate::gguf::types::{Facts, choose};

/// The tensors of a model of so many layers whose rows are all of this length.
fn tensors(layers: usize, row: usize, output: bool, experts: usize) -> Vec<(String, Vec<usize>)> {
    let mut list = vec![("token_embd.weight".to_owned(), vec![64, row]), ("output_norm.weight".to_owned(), vec![row])];
    if output {
        list.push(("output.weight".to_owned(), vec![64, row]));
    }
    for layer in 0..layers {
        let mut push = |name: &str, shape: &[usize]| list.push((format!("blk.{layer}.{name}"), shape.to_vec()));
        push("attn_norm.weight", &[row]);
        for name in ["attn_q", "attn_k", "attn_v", "attn_output"] {
            push(&format!("{name}.weight"), &[row, row]);
        }
        push("attn_q.bias", &[row]);
        if experts == 0 {
            ["ffn_gate", "ffn_up", "ffn_down"].iter().for_each(|name| push(&format!("{name}.weight"), &[row, row]));
        } else {
            push("ffn_gate_inp.weight", &[experts, row]);
            for name in ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"] {
                push(&format!("{name}.weight"), &[experts, row, row]);
            }
            push("ffn_down_shexp.weight", &[row, row]);
        }
    }
    // In no order that the choice could lean on.
    list.reverse();
    list
}

fn facts(layers: usize, experts: usize) -> Facts {
    Facts { layers, experts, sharing: 1, seventy_billion: false }
}

fn chosen(quant: Quant, facts: Facts, tensors: &[(String, Vec<usize>)]) -> impl Fn(&str) -> TensorType + use<> {
    let chosen = choose(quant, facts, tensors);
    move |name| chosen.iter().find(|tensor| tensor.name == name).unwrap().ty
}

/// The layers whose tensor of this name has this type.
fn layers(of: &impl Fn(&str) -> TensorType, count: usize, name: &str, ty: TensorType) -> Vec<usize> {
    (0..count).filter(|layer| of(&format!("blk.{layer}.{name}.weight")) == ty).collect()
}

#[test]
fn small_and_medium_files_spend_bits_on_values_and_down_projections() {
    let list = tensors(16, 256, true, 0);
    let of = chosen(Quant::Q4_K_M, facts(16, 0), &list);
    // 16/8 = 2: the first two, from 14 on, and every third from 2 on: 4, 7, 10, 13.
    let more = [0, 1, 4, 7, 10, 13, 14, 15];
    assert_eq!(layers(&of, 16, "attn_v", Q6_K), more);
    assert_eq!(layers(&of, 16, "ffn_down", Q6_K), more);
    assert_eq!(layers(&of, 16, "attn_v", Q4_K).len() + more.len(), 16);
    assert_eq!(layers(&of, 16, "attn_q", Q4_K).len(), 16);
    assert_eq!([of("output.weight"), of("token_embd.weight")], [Q6_K, Q4_K]);
    assert_eq!([of("output_norm.weight"), of("blk.3.attn_norm.weight"), of("blk.3.attn_q.bias")], [F32; 3]);

    let of = chosen(Quant::Q4_K_S, facts(16, 0), &list);
    assert_eq!(layers(&of, 16, "attn_v", Q5_K), [0, 1, 2, 3]);
    assert_eq!(layers(&of, 16, "ffn_down", Q5_K), [0, 1]);
    let of = chosen(Quant::Q5_K_M, facts(16, 0), &list);
    assert_eq!(layers(&of, 16, "attn_v", Q6_K), more);
    let of = chosen(Quant::Q5_K_S, facts(16, 0), &list);
    assert_eq!(layers(&of, 16, "attn_v", Q5_K).len(), 16);
}

#[test]
fn a_tied_embedding_is_an_output() {
    for (quant, ty) in [(Quant::Q4_K_M, Q6_K), (Quant::Q4_0, Q6_K), (Quant::Q8_0, Q8_0), (Quant::BF16, BF16)] {
        assert_eq!(chosen(quant, facts(2, 0), &tensors(2, 256, false, 0))("token_embd.weight"), ty);
    }
    assert_eq!(chosen(Quant::Q4_0, facts(2, 0), &tensors(2, 256, true, 0))("token_embd.weight"), Q4_0);
}

#[test]
fn rows_that_blocks_do_not_divide_get_smaller_blocks() {
    let types = |quant, row| {
        let of = chosen(quant, facts(1, 0), &tensors(1, row, true, 0));
        ["blk.0.attn_q.weight", "blk.0.attn_v.weight", "output.weight"].map(of)
    };
    assert_eq!(types(Quant::Q4_K_M, 320), [Q5_0, Q8_0, Q8_0]);
    assert_eq!(types(Quant::Q5_K_S, 320), [Q5_1, Q5_1, Q8_0]);
    assert_eq!(types(Quant::Q6_K, 320), [Q8_0, Q8_0, Q8_0]);
    assert_eq!(types(Quant::Q4_0, 320), [Q4_0, Q4_0, Q8_0]);
    assert_eq!(types(Quant::Q4_K_M, 40), [F16; 3]);
    assert_eq!(types(Quant::Q8_0, 40), [F16; 3]);
    assert_eq!(types(Quant::Q4_1, 40), [F16; 3]);
    assert_eq!(types(Quant::F32, 40), [F32; 3]);
}

#[test]
fn experts_count_by_block_and_eight_of_them_are_mixtral() {
    let of = chosen(Quant::Q4_K_M, facts(16, 4), &tensors(16, 256, true, 4));
    for name in ["ffn_down_exps", "ffn_down_shexp"] {
        assert_eq!(layers(&of, 16, name, Q6_K), [0, 1, 4, 7, 10, 13, 14, 15]);
    }
    assert_eq!(of("blk.0.ffn_gate_inp.weight"), F32);
    let of = chosen(Quant::Q4_K_M, facts(2, 8), &tensors(2, 256, true, 8));
    let names = ["attn_v", "attn_k", "attn_output", "attn_q"].map(|name| format!("blk.1.{name}.weight"));
    assert_eq!(names.each_ref().map(|name| of(name)), [Q8_0, Q8_0, Q5_K, Q4_K]);
    let of = chosen(Quant::Q6_K, facts(2, 8), &tensors(2, 256, true, 8));
    assert_eq!(names.map(|name| of(&name)), [Q8_0, Q8_0, Q6_K, Q6_K]);
}

#[test]
fn values_of_the_largest_dense_models_never_get_four_bits() {
    let facts = Facts { layers: 16, experts: 0, sharing: 8, seventy_billion: true };
    let of = chosen(Quant::Q4_K_M, facts, &tensors(16, 256, true, 0));
    assert!(layers(&of, 16, "attn_v", Q4_K).is_empty());
    assert_eq!(layers(&of, 16, "attn_v", Q5_K).len(), 8);
}

#[test]
fn one_row_is_a_list_of_numbers() {
    let list =
        [("blk.0.ssm_beta.weight".to_owned(), vec![1, 256]), ("blk.0.ssm_conv1d.weight".to_owned(), vec![64, 256])];
    assert!(choose(Quant::Q8_0, facts(1, 0), &list).iter().all(|tensor| tensor.ty == F32));
}

#[test]
fn names_are_read_in_either_case_and_near_ones_suggested() {
    assert_eq!("q4_k_m".parse::<Quant>().unwrap(), Quant::Q4_K_M);
    for quant in Quant::all() {
        assert_eq!(quant.to_string().parse::<Quant>().unwrap(), quant);
    }
    let error = "q4_km".parse::<Quant>().unwrap_err().to_string();
    assert!(error.starts_with("unknown quantisation `q4_km`, did you mean `Q4_K_M`?; known: `F32`, `F16`"), "{error}");
}

#[test]
fn non_linear_files_spend_bits_on_shared_values_and_the_first_down_projections() {
    let list = tensors(16, 256, true, 0);
    let of = chosen(Quant::IQ4_NL, facts(16, 0), &list);
    assert_eq!([of("output.weight"), of("token_embd.weight"), of("blk.3.attn_v.weight")], [Q6_K, IQ4_NL, IQ4_NL]);
    assert_eq!(layers(&of, 16, "ffn_down", Q5_K), [0, 1]);
    let shared = chosen(Quant::IQ4_NL, Facts { sharing: 4, ..facts(16, 0) }, &list);
    assert_eq!(layers(&shared, 16, "attn_v", Q5_K).len(), 16);
    let mixture = chosen(Quant::IQ4_NL, facts(2, 8), &tensors(2, 256, true, 8));
    assert_eq!(
        ["attn_v", "attn_k", "attn_output"].map(|name| mixture(&format!("blk.0.{name}.weight"))),
        [Q8_0, Q8_0, Q5_K]
    );
}

#[test]
fn only_routed_experts_get_four_bits_in_files_for_mixtures() {
    let of = chosen(Quant::MXFP4_MOE, facts(2, 4), &tensors(2, 256, true, 4));
    let names = ["ffn_gate_exps", "ffn_down_exps", "ffn_down_shexp", "attn_q", "ffn_gate_inp"];
    assert_eq!(names.map(|name| of(&format!("blk.0.{name}.weight"))), [MXFP4, MXFP4, Q8_0, Q8_0, F32]);
    assert_eq!([of("output.weight"), of("token_embd.weight")], [Q8_0, Q8_0]);
    let dense = chosen(Quant::MXFP4_MOE, facts(1, 0), &tensors(1, 40, false, 0));
    assert_eq!(dense("blk.0.attn_q.weight"), F16);
}
