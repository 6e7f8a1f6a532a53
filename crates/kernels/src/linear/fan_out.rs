//! Where several maps of one input meet in the backward pass: their gradients of the input are one sum of products, formed
//! when the last of them has said what comes from above.

use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

use burn::Tensor;
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn_flex::FlexTensor;

use super::backward::Low;
use super::flex::{matrix, weight_matrix};
use crate::cpu::element::Element;
use crate::cpu::operand::{Held, Operand, record};
use crate::cpu::product::{Left, Matrix, Number, Term, Threads, new_product, new_sum_of_products, product};
use crate::cpu::rows::for_blocks;
use crate::cpu::vector;

/// What the maps of one input have for its gradient so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Pending(Arc<Mutex<Vec<Part>>>);

/// One map's part of the gradient: `dy·W + (dl·A) ⊙ mask`.
#[derive(Debug)]
pub(super) struct Part {
    /// Place among the maps: parts are summed in this order, whoever comes first.
    pub(super) index: usize,
    pub(super) upstream: Upstream,
    pub(super) weight: Held<2>,
    /// The adapter and `dl = s·dy·B`, `[T, r]`.
    pub(super) through: Option<(Low, Vec<f32>)>,
}

/// The gradient of a map's output.
#[derive(Debug)]
pub(super) enum Upstream {
    Packed(Left),
    /// A few rows, which products take as they are.
    Rows(FlexTensor),
}

impl Pending {
    pub(super) fn push(&self, part: Part) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(part);
    }

    fn take(&self) -> Vec<Part> {
        let mut parts = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        parts.sort_by_key(|part| part.index);
        parts
    }
}

/// `x` as the maps take it: the same tensor, behind a step of its own on the tape.
pub(super) fn fan_out<E: Element + Number>(x: Operand, pending: &Pending) -> Tensor<2> {
    let data = x.data().clone();
    record(FanOut::<E>(PhantomData), [x], data.clone(), || Saved {
        x: [data.layout().shape()[0], data.layout().shape()[1]],
        pending: pending.clone(),
    })
}

#[derive(Debug)]
struct FanOut<E>(PhantomData<E>);

#[derive(Clone, Debug)]
struct Saved {
    /// Shape of the input.
    x: [usize; 2],
    pending: Pending,
}

impl<E: Element + Number> Backward<Flex, 1> for FanOut<E> {
    type State = Saved;

    /// No map has registered a gradient with Burn: they are in [`Pending`].
    fn backward(self, ops: Ops<Saved, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let Saved { x, pending } = ops.state;
        let parts = pending.take();
        let [Some(node)] = ops.parents else { return };
        let dx: Vec<E> = terms(&parts).unwrap_or_else(|| E::rounded(step_by_step::<E>(&parts, x)));
        grads.register::<Flex>(node.id, E::tensor(dx, x));
    }
}

/// All parts in one pass over the gradient; `None` where one of them is not a plain product.
fn terms<E: Number>(parts: &[Part]) -> Option<Vec<E>> {
    let mut packed = Vec::new();
    for Part { upstream, through, .. } in parts {
        let Upstream::Packed(left) = upstream else { return None };
        packed.push(match through {
            None => None,
            Some((Low { dropout: Some(_), .. }, _)) => return None,
            Some((low, dlow)) => {
                let rank = matrix(&low.a).rows();
                let dlow = Matrix::dense(dlow, dlow.len() / rank, rank);
                Some(Left::pack(dlow, 1.0, left.precision(), Threads::Pool))
            }
        });
    }
    let mut terms = Vec::with_capacity(2 * parts.len());
    for (part, dlow) in parts.iter().zip(&packed) {
        if let Upstream::Packed(left) = &part.upstream {
            terms.push(Term { left, right: weight_matrix(&part.weight).beside::<E>() });
        }
        if let (Some(left), Some((low, _))) = (dlow, &part.through) {
            terms.push(Term { left, right: matrix(&low.a) });
        }
    }
    Some(new_sum_of_products(&terms, None, 1.0, Threads::Pool))
}

/// Part by part, in f32.
fn step_by_step<E: Number>(parts: &[Part], [tokens, inputs]: [usize; 2]) -> Vec<f32> {
    let mut dx = vec![0.0; tokens * inputs];
    for Part { upstream, weight, through, .. } in parts {
        match upstream {
            Upstream::Packed(left) => {
                let here: Vec<f32> = new_sum_of_products(
                    &[Term { left, right: weight_matrix(weight).beside::<E>() }],
                    None,
                    1.0,
                    Threads::Pool,
                );
                for_blocks(&mut dx, 1, |first, block| {
                    vector::accumulate_scaled(block, &here[first..first + block.len()], 1.0);
                });
            }
            Upstream::Rows(dy) => {
                product(&mut dx, matrix(dy), weight_matrix(weight).beside::<E>(), 1.0, true, Threads::Pool);
            }
        }
        let Some((low, dlow)) = through else { continue };
        let (a, dlow) = (matrix(&low.a), Matrix::dense(dlow, tokens, matrix(&low.a).rows()));
        match low.dropout {
            None => product(&mut dx, dlow, a, 1.0, true, Threads::Pool),
            Some(dropout) => {
                let change: Vec<f32> = new_product(dlow, a, 1.0, Threads::Pool);
                for_blocks(&mut dx, 1, |first, block| {
                    vector::add_dropped(block, &change[first..first + block.len()], dropout, first as u64);
                });
            }
        }
    }
    dx
}
