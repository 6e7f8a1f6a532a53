//! Linear maps on the CPU: the input packed once for all maps and all down projections, base, bias and adapter summed while
//! a tile of the output is in registers.

use std::sync::Arc;

use burn::Tensor;
use burn_flex::FlexTensor;

use super::backward::{Low, Saved, Step};
use super::fan_out::{Pending, fan_out};
use super::{Adapter, Projection};
use crate::Input;
use crate::cpu::element::{Element, by_element};
use crate::cpu::kept::Kept;
use crate::cpu::operand::{Held, Operand, contiguous, record};
use crate::cpu::product::{
    Elements, Left, Matrix, Number, Precision, Term, Threads, few_rows, finished_product, new_sum_of_products, product,
};
use crate::cpu::rows::dropped;

/// `None` when an operand is not an f32 or bf16 tensor on burn-flex, or a matrix with a reversed axis.
pub(super) fn projections<const N: usize>(input: &Input<2>, maps: &[Projection; N]) -> Option<[Tensor<2>; N]> {
    let x = input.tensor();
    let weights: Vec<(Held<2>, Operand)> = maps.iter().map(|map| Held::of(&map.weight)).collect::<Option<_>>()?;
    let (weights, trained): (Vec<_>, Vec<_>) = weights.into_iter().unzip();
    let operands: Vec<[Operand; 5]> =
        maps.iter().zip(trained).map(|(map, weight)| operands(x, weight, map)).collect::<Option<_>>()?;
    let matrices = [0, 1, 3, 4];
    let fit = |of_map: &[Operand; 5]| {
        matrices.iter().all(|&at| of_map[at].is_absent() || Matrix::of(of_map[at].data()).is_some())
    };
    if !operands.iter().all(fit) {
        return None;
    }
    let operand = Operand::of_float(x)?;
    let kept = Kept::of(input, operand.data().clone());
    let outputs = by_element!(x.dtype(), E => forward::<E>(operand, &kept, operands, weights, maps));
    Some(outputs.try_into().expect("invariant: one output a map"))
}

/// x, weight, bias, A, B.
fn operands(x: &Tensor<2>, weight: Operand, map: &Projection) -> Option<[Operand; 5]> {
    let absent = || Some(Operand::absent());
    let adapter = map.adapter.as_ref();
    Some([
        Operand::of_float(x)?,
        weight,
        map.bias.as_ref().map_or_else(absent, Operand::of_float)?,
        adapter.map_or_else(absent, |adapter| Operand::of_float(&adapter.a))?,
        adapter.map_or_else(absent, |adapter| Operand::of_float(&adapter.b))?,
    ])
}

fn forward<E: Element + Number>(
    input: Operand,
    kept: &Kept,
    operands: Vec<[Operand; 5]>,
    weights: Vec<Held<2>>,
    maps: &[Projection],
) -> Vec<Tensor<2>> {
    let x = input.data().clone();
    let x_TI = matrix(&x);
    let precision = Precision::of(&[x_TI]);
    // A few rows are multiplied with weights as they lie; see `product`.
    let left = (!few_rows(x_TI.rows())).then(|| Left::pack(x_TI, 1.0, precision, Threads::Pool));
    let lows = lows(&x, left.as_ref(), &operands, maps);
    let pending = Pending::default();
    let fan = input.tracked().then(|| fan_out::<E>(input, &pending));
    let maps = operands.into_iter().zip(weights).zip(lows).enumerate();
    let outputs = maps.map(|(index, ((mut parents, weight), low))| {
        if let Some(fan) = &fan {
            parents[0] = Operand::of_float(fan).expect("invariant: made of such an operand");
        }
        let bias = contiguous(parents[2].data().clone());
        let bias_dtype = bias.dtype();
        let bias =
            (!parents[2].is_absent()).then(|| Elements::of(&bias).expect("invariant: checked with the operands"));
        let y: Vec<E> = output(x_TI, left.as_ref(), &weight, bias, low.as_ref());
        let y = E::tensor(y, [x_TI.rows(), weight.dims()[0]]);
        // Only the gradients of the weight and of A read it.
        let x = (parents[1].tracked() || parents[3].tracked()).then(|| kept.clone());
        let pending = pending.clone();
        record(Step::<E>::default(), parents, y, || Saved { x, weight, bias: bias_dtype, low, index, pending })
    });
    outputs.collect()
}

/// A view of an operand.
pub(super) fn matrix(tensor: &FlexTensor) -> Matrix<'_> {
    Matrix::of(tensor).expect("invariant: checked before anything was computed")
}

/// A view of a weight.
pub(super) fn weight_matrix(weight: &Held<2>) -> Matrix<'_> {
    Matrix::of_held(weight).expect("invariant: checked before anything was computed")
}

/// `x·Wᵀ + b + s·low·Bᵀ`, rounded once.
fn output<E: Element + Number>(
    x: Matrix,
    left: Option<&Left>,
    weight: &Held<2>,
    bias: Option<Elements>,
    low: Option<&Low>,
) -> Vec<E> {
    let weight_IO = weight_matrix(weight).beside::<E>().transposed();
    let Some(left) = left else {
        return finished_product(x, weight_IO, bias, |y| {
            if let Some(low) = low {
                product(y, low.matrix(), matrix(&low.b).transposed(), low.scale, true, Threads::Pool);
            }
        });
    };
    let base = Term { left, right: weight_IO };
    match low {
        None => new_sum_of_products(&[base], bias, 1.0, Threads::Pool),
        Some(low) => {
            let packed = Left::pack(low.matrix(), low.scale, left.precision(), Threads::Pool);
            let update = Term { left: &packed, right: matrix(&low.b).transposed() };
            new_sum_of_products(&[base, update], bias, 1.0, Threads::Pool)
        }
    }
}

/// The adapters' inputs after their down projections: in one product for all that see `x` as it is.
fn lows(x: &FlexTensor, left: Option<&Left>, operands: &[[Operand; 5]], maps: &[Projection]) -> Vec<Option<Low>> {
    let (x_TI, tokens) = (matrix(x), matrix(x).rows());
    let plain = |map: &Projection| map.adapter.as_ref().is_some_and(|adapter| adapter.dropout.is_none());
    let stacked: Vec<&FlexTensor> =
        operands.iter().zip(maps).filter(|(_, map)| plain(map)).map(|(operands, _)| operands[3].data()).collect();
    let width: usize = stacked.iter().map(|a| matrix(a).rows()).sum();
    let shared = match stacked.as_slice() {
        [] => Arc::new(Vec::new()),
        [one] => Arc::new(down(x_TI, left, matrix(one))),
        several => {
            // Side by side they fill whole vectors, which the rank of one rarely does.
            let all: Vec<f32> =
                several.iter().flat_map(|a| crate::cpu::element::wide(&contiguous((*a).clone()))).collect();
            Arc::new(down(x_TI, left, Matrix::dense(&all, width, x_TI.columns())))
        }
    };
    let mut first = 0;
    operands
        .iter()
        .zip(maps)
        .map(|(operands, map)| {
            let Adapter { scale, dropout, .. } = *map.adapter.as_ref()?;
            let (a, b) = (operands[3].data().clone(), operands[4].data().clone());
            let rank = matrix(&a).rows();
            let (values, at, stride) = match dropout {
                None => {
                    first += rank;
                    (shared.clone(), first - rank, width)
                }
                Some(dropout) => {
                    let dropped = dropped(&crate::cpu::element::wide(&contiguous(x.clone())), dropout);
                    let dropped = Matrix::dense(&dropped, tokens, x_TI.columns());
                    let precision = Precision::of(&[x_TI]);
                    let left = left.map(|_| Left::pack(dropped, 1.0, precision, Threads::Pool));
                    (Arc::new(down(dropped, left.as_ref(), matrix(&a))), 0, rank)
                }
            };
            Some(Low { values, at, stride, tokens, a, b, scale, dropout })
        })
        .collect()
}

/// `x·Aᵀ` in f32.
fn down(x: Matrix, left: Option<&Left>, a: Matrix) -> Vec<f32> {
    match left {
        Some(left) => new_sum_of_products(&[Term { left, right: a.transposed() }], None, 1.0, Threads::Pool),
        None => finished_product(x, a.transposed(), None, |_| {}),
    }
}
