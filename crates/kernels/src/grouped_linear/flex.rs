//! The grouped linear map on the CPU: groups in parallel, or one after another with all threads where they are few.

use std::sync::Arc;

use burn::Tensor;
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::Groups;
use crate::cpu::operand::{Operand, contiguous, from_vec, record, slice};
use crate::cpu::product::{Matrix, Threads, product};

/// `None` when an operand is not an f32 tensor on burn-flex.
pub(super) fn grouped_linear(x: &Tensor<2>, weight: &Tensor<3>, groups: &Arc<Groups>) -> Option<Tensor<2>> {
    let parents = [Operand::of(x)?, Operand::of(weight)?];
    let [x, weight] = parents.each_ref().map(Operand::contiguous);
    let sizes = Sizes::of(&weight);
    let y = sizes.outputs_of(groups, slice(&x), slice(&weight));
    let x = parents[1].tracked().then_some(x);
    let groups = groups.clone();
    Some(record(Step, parents, from_vec(y, [groups.rows(), sizes.outputs]), || Saved { x, weight, groups }))
}

#[derive(Clone, Copy)]
struct Sizes {
    outputs: usize,
    inputs: usize,
}

impl Sizes {
    fn of(weight: &FlexTensor) -> Self {
        let shape = weight.layout().shape();
        Self { outputs: shape[1], inputs: shape[2] }
    }

    fn weight<'a>(&self, weight: &'a [f32], group: usize) -> Matrix<'a> {
        let size = self.outputs * self.inputs;
        Matrix::dense(&weight[group * size..][..size], self.outputs, self.inputs)
    }

    /// `x·Wᵀ`, group by group.
    fn outputs_of(&self, groups: &Groups, x: &[f32], weight: &[f32]) -> Vec<f32> {
        let mut y = vec![0.0; groups.rows() * self.outputs];
        for_groups(groups, &mut y, self.outputs, |group, rows, y, threads| {
            let x = Matrix::dense(&x[rows.start * self.inputs..rows.end * self.inputs], rows.len(), self.inputs);
            product(y, x, self.weight(weight, group).transposed(), 1.0, false, threads);
        });
        y
    }

    /// `dy·W`, group by group.
    fn input_gradients(&self, groups: &Groups, dy: &[f32], weight: &[f32]) -> Vec<f32> {
        let mut dx = vec![0.0; groups.rows() * self.inputs];
        for_groups(groups, &mut dx, self.inputs, |group, rows, dx, threads| {
            let dy = Matrix::dense(&dy[rows.start * self.outputs..rows.end * self.outputs], rows.len(), self.outputs);
            product(dx, dy, self.weight(weight, group), 1.0, false, threads);
        });
        dx
    }

    /// `dyᵀ·x`, group by group; zero for groups without rows.
    fn weight_gradients(&self, groups: &Groups, dy: &[f32], x: &[f32]) -> Vec<f32> {
        let size = self.outputs * self.inputs;
        let mut dweight = vec![0.0; groups.len() * size];
        let mut blocks: Vec<Option<&mut [f32]>> = dweight.chunks_exact_mut(size).map(Some).collect();
        let tasks: Vec<_> = groups.iter().map(|(group, rows)| (rows, blocks[group].take())).collect();
        tasks.into_par_iter().for_each(|(rows, block)| {
            let block = block.expect("invariant: every group comes once");
            let dy = Matrix::dense(&dy[rows.start * self.outputs..rows.end * self.outputs], rows.len(), self.outputs);
            let x = Matrix::dense(&x[rows.start * self.inputs..rows.end * self.inputs], rows.len(), self.inputs);
            product(block, dy.transposed(), x, 1.0, false, Threads::Caller);
        });
        dweight
    }
}

/// Groups with rows from which each is one thread's work: fewer are shared by all threads, one after another.
const GROUPS_IN_PARALLEL: usize = 16;

/// Calls `f(group, rows, out, threads)` with the part of `out`, `width` wide, that belongs to each group's rows.
fn for_groups(
    groups: &Groups,
    out: &mut [f32],
    width: usize,
    f: impl Fn(usize, std::ops::Range<usize>, &mut [f32], Threads) + Sync,
) {
    let mut rest = out;
    let mut tasks = Vec::with_capacity(groups.len());
    for (group, rows) in groups.iter() {
        let (here, behind) = rest.split_at_mut(rows.len() * width);
        rest = behind;
        tasks.push((group, rows, here));
    }
    if tasks.len() >= GROUPS_IN_PARALLEL {
        tasks.into_par_iter().for_each(|(group, rows, out)| f(group, rows, out, Threads::Caller));
    } else {
        tasks.into_iter().for_each(|(group, rows, out)| f(group, rows, out, Threads::Pool));
    }
}

#[derive(Debug)]
struct Step;

#[derive(Clone, Debug)]
struct Saved {
    /// Only when the weight is trained.
    x: Option<FlexTensor>,
    weight: FlexTensor,
    groups: Arc<Groups>,
}

impl Backward<Flex, 2> for Step {
    type State = Saved;

    /// `dx = dy·W`, `dW = dyᵀ·x`, in each group.
    fn backward(self, ops: Ops<Saved, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let Saved { x, weight, groups } = ops.state;
        let sizes = Sizes::of(&weight);
        let [x_node, weight_node] = ops.parents;
        if let Some(node) = x_node {
            let dx = sizes.input_gradients(&groups, slice(&dy), slice(&weight));
            grads.register::<Flex>(node.id, from_vec(dx, [groups.rows(), sizes.inputs]));
        }
        if let Some(node) = weight_node {
            let x = x.expect("invariant: x is kept for a tracked weight");
            let dweight = sizes.weight_gradients(&groups, slice(&dy), slice(&x));
            grads.register::<Flex>(node.id, from_vec(dweight, [groups.len(), sizes.outputs, sizes.inputs]));
        }
    }
}
