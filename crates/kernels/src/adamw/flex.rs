//! The update on the CPU: one pass over memory, in tasks that are cut from the concatenation of all tensors, so that many
//! small ones do not become a task each and a large one becomes several.

use burn::Tensor;
use burn::backend::Flex;
use burn::tensor::DType;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::reference::taken;
use super::{AdamW, Trained};
use crate::cpu::operand::{contiguous, slice};
use crate::cpu::rows::rows_per_task;
use crate::cpu::vector;

/// Elements that are summed in f32 before f64 takes over.
const SUMMED: usize = 4096;

/// False when a tensor is not an f32 one on burn-flex; nothing has changed then.
pub(super) fn adamw(trained: &mut [Trained<'_>], rule: &AdamW) -> bool {
    let tensors = trained.iter().flat_map(|t| [&*t.value, t.gradient, &*t.first, &*t.second]);
    if !tensors.into_iter().all(is_ours) {
        return false;
    }
    let gradients: Vec<FlexTensor> = trained.iter().map(|t| contiguous(primitive(t.gradient.clone()))).collect();
    let mut state: Vec<[FlexTensor; 3]> = trained
        .iter_mut()
        .map(|t| [&mut *t.value, &mut *t.first, &mut *t.second].map(|slot| whole(primitive(taken(slot)))))
        .collect();
    let numbers: Vec<vector::AdamW> = trained.iter().map(|t| rounded(rule, t.weight_decay)).collect();
    let mut tasks = Tasks::default();
    for ((state, gradient), numbers) in state.iter_mut().zip(&gradients).zip(&numbers) {
        let [value, first, second] = state.each_mut().map(FlexTensor::storage_mut::<f32>);
        tasks.add(Piece { value, first, second, gradient: slice(gradient), numbers });
    }
    tasks.full.into_par_iter().for_each(|pieces| {
        for Piece { value, first, second, gradient, numbers } in pieces {
            vector::adamw(value, first, second, gradient, numbers);
        }
    });
    for (slots, state) in trained.iter_mut().zip(state) {
        let [value, first, second] = state.map(Tensor::from_primitive::<Flex>);
        (*slots.value, *slots.first, *slots.second) = (value, first, second);
    }
    true
}

/// `None` when a tensor is not an f32 one on burn-flex.
pub(super) fn global_norm(gradients: &[&Tensor<1>]) -> Option<f64> {
    if !gradients.iter().all(|&g| is_ours(g)) {
        return None;
    }
    let gradients: Vec<FlexTensor> = gradients.iter().map(|&g| contiguous(primitive(g.clone()))).collect();
    let pieces: Vec<&[f32]> = gradients.iter().flat_map(|g| slice(g).chunks(SUMMED)).collect();
    // The order of the sum depends on the sizes only.
    let of_task: Vec<f64> = pieces
        .par_chunks(rows_per_task(SUMMED))
        .map(|pieces| pieces.iter().map(|piece| f64::from(vector::sum_of_squares(piece))).sum())
        .collect();
    Some(of_task.iter().sum::<f64>().sqrt())
}

fn is_ours(tensor: &Tensor<1>) -> bool {
    tensor.dtype() == DType::F32 && tensor.clone().try_into_primitive::<Flex>().is_ok()
}

fn primitive(tensor: Tensor<1>) -> FlexTensor {
    tensor.try_into_primitive::<Flex>().expect("invariant: seen to be on burn-flex")
}

/// A tensor whose buffer it fills: itself, or a copy when it is a view of something else.
fn whole(tensor: FlexTensor) -> FlexTensor {
    let elements = tensor.layout().num_elements();
    let fills = tensor.is_contiguous() && tensor.storage::<f32>().len() == elements;
    if fills { tensor } else { tensor.to_contiguous() }
}

/// The numbers of an update, computed in f64 and rounded once.
pub(crate) fn rounded(rule: &AdamW, weight_decay: f64) -> vector::AdamW {
    vector::AdamW {
        clip: rule.clip as f32,
        beta1: rule.beta1 as f32,
        rest1: (1.0 - rule.beta1) as f32,
        beta2: rule.beta2 as f32,
        rest2: (1.0 - rule.beta2) as f32,
        root_correction: rule.root_correction() as f32,
        eps: rule.eps as f32,
        kept: rule.kept(weight_decay) as f32,
        step_size: rule.step_size() as f32,
    }
}

/// A stretch of one tensor.
struct Piece<'a> {
    value: &'a mut [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
    gradient: &'a [f32],
    numbers: &'a vector::AdamW,
}

impl<'a> Piece<'a> {
    fn split(self, at: usize) -> (Self, Self) {
        let (value, value_rest) = self.value.split_at_mut(at);
        let (first, first_rest) = self.first.split_at_mut(at);
        let (second, second_rest) = self.second.split_at_mut(at);
        let (gradient, gradient_rest) = self.gradient.split_at(at);
        let numbers = self.numbers;
        (
            Self { value, first, second, gradient, numbers },
            Self { value: value_rest, first: first_rest, second: second_rest, gradient: gradient_rest, numbers },
        )
    }
}

/// Pieces of all tensors, as much of them together as one task should have.
#[derive(Default)]
struct Tasks<'a> {
    full: Vec<Vec<Piece<'a>>>,
    /// Elements that the last one still takes.
    room: usize,
}

impl<'a> Tasks<'a> {
    fn add(&mut self, mut piece: Piece<'a>) {
        while !piece.value.is_empty() {
            if self.room == 0 {
                self.full.push(Vec::new());
                self.room = rows_per_task(1);
            }
            let (now, later) = {
                let at = piece.value.len().min(self.room);
                piece.split(at)
            };
            self.room -= now.value.len();
            self.full.last_mut().expect("invariant: one with room was pushed").push(now);
            piece = later;
        }
    }
}
