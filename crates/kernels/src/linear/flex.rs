//! The linear map on the CPU: products on strided views, the adapter added to the base's output in place.

use burn::Tensor;
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn_flex::FlexTensor;

use super::Adapter;
use crate::Dropout;
use crate::cpu::operand::{Operand, contiguous, from_vec, record, slice};
use crate::cpu::product::{Matrix, Threads, product};
use crate::cpu::rows::{dropped, for_blocks, sum_rows};
use crate::cpu::vector;

/// `None` when an operand is not an f32 tensor on burn-flex, or a matrix with a reversed axis.
pub(super) fn linear(
    x: &Tensor<2>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    adapter: Option<&Adapter>,
) -> Option<Tensor<2>> {
    let ([tokens, _], [outputs, _]) = (x.dims(), weight.dims());
    let parents = [
        Operand::of(x)?,
        Operand::of(weight)?,
        bias.map_or_else(|| Some(Operand::absent()), Operand::of)?,
        adapter.map_or_else(|| Some(Operand::absent()), |adapter| Operand::of(&adapter.a))?,
        adapter.map_or_else(|| Some(Operand::absent()), |adapter| Operand::of(&adapter.b))?,
    ];
    let [x, weight, bias_values, a, b] = parents.each_ref().map(Operand::data);
    let (x_TI, weight_OI) = (Matrix::of(x)?, Matrix::of(weight)?);

    let mut y = vec![0.0; tokens * outputs];
    if bias.is_some() {
        let bias = contiguous(bias_values.clone());
        let bias = slice(&bias);
        for_blocks(&mut y, outputs, |_, block| {
            block.chunks_exact_mut(outputs).for_each(|row| row.copy_from_slice(bias));
        });
    }
    product(&mut y, x_TI, weight_OI.transposed(), 1.0, bias.is_some(), Threads::Pool);
    let mut low = None;
    if let Some(Adapter { scale, dropout, .. }) = adapter {
        let (a_RI, b_OR) = (Matrix::of(a)?, Matrix::of(b)?);
        let mut values = vec![0.0; tokens * a_RI.rows()];
        match dropout {
            None => product(&mut values, x_TI, a_RI.transposed(), 1.0, false, Threads::Pool),
            Some(dropout) => {
                let dropped = dropped(slice(&contiguous(x.clone())), *dropout);
                let dropped_TI = Matrix::dense(&dropped, tokens, x_TI.columns());
                product(&mut values, dropped_TI, a_RI.transposed(), 1.0, false, Threads::Pool);
            }
        }
        product(&mut y, Matrix::dense(&values, tokens, a_RI.rows()), b_OR.transposed(), *scale, true, Threads::Pool);
        low = Some(Low { values, a: a.clone(), b: b.clone(), scale: *scale, dropout: *dropout });
    }
    let needs_x = parents[1].tracked() || parents[3].tracked();
    let (x, weight) = (needs_x.then(|| x.clone()), weight.clone());
    Some(record(Step, parents, from_vec(y, [tokens, outputs]), || Saved { x, weight, low }))
}

#[derive(Debug)]
struct Step;

#[derive(Clone, Debug)]
struct Saved {
    /// Only when the weight or `A` is trained.
    x: Option<FlexTensor>,
    weight: FlexTensor,
    low: Option<Low>,
}

/// The adapter, and its input after the down projection.
#[derive(Clone, Debug)]
struct Low {
    values: Vec<f32>,
    a: FlexTensor,
    b: FlexTensor,
    scale: f32,
    dropout: Option<Dropout>,
}

impl Saved {
    fn x(&self) -> &FlexTensor {
        self.x.as_ref().expect("invariant: x is kept for a tracked weight or A")
    }
}

/// A view of a kept operand.
fn matrix(tensor: &FlexTensor) -> Matrix<'_> {
    Matrix::of(tensor).expect("invariant: the forward pass took the same matrix")
}

impl Backward<Flex, 5> for Step {
    type State = Saved;

    /// With `dl = s·dy·B`: `dx = dy·W + (dl·A) ⊙ mask`, `dW = dyᵀ·x`, `db = Σ dy`, `dA = dlᵀ·(x ⊙ mask)`,
    /// `dB = s·dyᵀ·low`; each only where wanted.
    fn backward(self, ops: Ops<Saved, 5>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let saved = &ops.state;
        let weight_OI = matrix(&saved.weight);
        let (outputs, inputs) = (weight_OI.rows(), weight_OI.columns());
        let tokens = dy.layout().shape()[0];
        let dy_TO = Matrix::dense(slice(&dy), tokens, outputs);
        let [x_node, weight_node, bias_node, a_node, b_node] = ops.parents;

        let mut dx = x_node.is_some().then(|| {
            let mut dx = vec![0.0; tokens * inputs];
            product(&mut dx, dy_TO, weight_OI, 1.0, false, Threads::Pool);
            dx
        });
        if let Some(low) = &saved.low {
            let (a_RI, b_OR) = (matrix(&low.a), matrix(&low.b));
            let rank = a_RI.rows();
            if let Some(node) = b_node {
                let mut db = vec![0.0; outputs * rank];
                let low_TR = Matrix::dense(&low.values, tokens, rank);
                product(&mut db, dy_TO.transposed(), low_TR, low.scale, false, Threads::Pool);
                grads.register::<Flex>(node.id, from_vec(db, [outputs, rank]));
            }
            if dx.is_some() || a_node.is_some() {
                let mut dlow = vec![0.0; tokens * rank];
                product(&mut dlow, dy_TO, b_OR, low.scale, false, Threads::Pool);
                let dlow_TR = Matrix::dense(&dlow, tokens, rank);
                if let Some(node) = a_node {
                    let mut da = vec![0.0; rank * inputs];
                    let dropped = low.dropout.map(|dropout| dropped(slice(&contiguous(saved.x().clone())), dropout));
                    let x_TI = match &dropped {
                        Some(dropped) => Matrix::dense(dropped, tokens, inputs),
                        None => matrix(saved.x()),
                    };
                    product(&mut da, dlow_TR.transposed(), x_TI, 1.0, false, Threads::Pool);
                    grads.register::<Flex>(node.id, from_vec(da, [rank, inputs]));
                }
                match (&mut dx, low.dropout) {
                    (None, _) => {}
                    (Some(dx), None) => product(dx, dlow_TR, a_RI, 1.0, true, Threads::Pool),
                    (Some(dx), Some(dropout)) => {
                        let mut through = vec![0.0; tokens * inputs];
                        product(&mut through, dlow_TR, a_RI, 1.0, false, Threads::Pool);
                        for_blocks(dx, 1, |first, block| {
                            vector::add_dropped(block, &through[first..first + block.len()], dropout, first as u64);
                        });
                    }
                }
            }
        }
        if let (Some(node), Some(dx)) = (x_node, dx) {
            grads.register::<Flex>(node.id, from_vec(dx, [tokens, inputs]));
        }
        if let Some(node) = weight_node {
            let mut dweight = vec![0.0; outputs * inputs];
            product(&mut dweight, dy_TO.transposed(), matrix(saved.x()), 1.0, false, Threads::Pool);
            grads.register::<Flex>(node.id, from_vec(dweight, [outputs, inputs]));
        }
        if let Some(node) = bias_node {
            grads.register::<Flex>(node.id, from_vec(sum_rows(slice(&dy), outputs), [outputs]));
        }
    }
}
