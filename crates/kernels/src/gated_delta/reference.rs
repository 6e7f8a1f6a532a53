//! The gated delta rule in plain tensor operations, token by token.

use burn::Tensor;
use burn::tensor::DType;

use super::EPS;
use crate::Segments;
use crate::attention::reference::repeat_heads;

/// [`crate::gated_delta`] in plain tensor operations.
#[expect(clippy::needless_pass_by_value, reason = "the signature of the public function")]
pub fn gated_delta(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    g: Tensor<2>,
    beta: Tensor<2>,
    segments: &Segments,
) -> Tensor<3> {
    let ([_, _, key_size], [_, value_heads, value_size]) = (k.dims(), v.dims());
    let device = v.device().without_autodiff();
    let sequences: Vec<Tensor<3>> = segments
        .iter()
        .map(|(start, len)| {
            let [q, k, v] = [&q, &k, &v].map(|heads| heads.clone().narrow(0, start, len));
            let [g, beta] = [&g, &beta].map(|gate| gate.clone().narrow(0, start, len));
            let state = Tensor::zeros([value_heads, key_size, value_size], (&device, wide(v.dtype())));
            gated_delta_step(state, q, k, v, g, beta).0
        })
        .collect();
    if sequences.is_empty() { v } else { Tensor::cat(sequences, 0) }
}

/// [`crate::gated_delta_step`] in plain tensor operations.
pub fn gated_delta_step(
    state: Tensor<3>,
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    g: Tensor<2>,
    beta: Tensor<2>,
) -> (Tensor<3>, Tensor<3>) {
    let (dtype, wide) = (v.dtype(), wide(v.dtype()));
    let ([tokens, value_heads, _], [_, key_heads, key_size]) = (v.dims(), k.dims());
    let group = value_heads / key_heads;
    let scale = (key_size as f64).powf(-0.5);
    // [H, T, d], so that a token is an entry of the second axis for all heads.
    let q_HTd = repeat_heads((unit(q.cast(wide)) * scale).swap_dims(0, 1), group);
    let k_HTd = repeat_heads(unit(k.cast(wide)).swap_dims(0, 1), group);
    let v_HTd = v.cast(wide).swap_dims(0, 1);
    let of_heads = |gate: Tensor<2>| gate.cast(wide).swap_dims(0, 1).unsqueeze_dim::<3>(2);
    let (decay_HT1, beta_HT1) = (of_heads(g).exp(), of_heads(beta));

    let mut state = state.cast(wide);
    let mut outputs = Vec::with_capacity(tokens);
    for token in 0..tokens {
        let of_token = |heads: &Tensor<3>| heads.clone().narrow(1, token, 1);
        let [q_Hd1, k_Hd1] = [&q_HTd, &k_HTd].map(|heads| of_token(heads).swap_dims(1, 2));
        state = state * of_token(&decay_HT1);
        let known_H1d = (state.clone() * k_Hd1.clone()).sum_dim(1);
        let correction_H1d = (of_token(&v_HTd) - known_H1d) * of_token(&beta_HT1);
        state = state + k_Hd1 * correction_H1d;
        outputs.push((state.clone() * q_Hd1).sum_dim(1));
    }
    (Tensor::cat(outputs, 1).swap_dims(0, 1).cast(dtype), state)
}

fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// Every head vector at length 1.
fn unit(heads: Tensor<3>) -> Tensor<3> {
    let length = (heads.clone().square().sum_dim(2) + EPS).sqrt();
    heads / length
}
