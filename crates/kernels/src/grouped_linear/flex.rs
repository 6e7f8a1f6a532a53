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
use crate::cpu::rows::{dropped, for_blocks};
use crate::cpu::vector;
use crate::{Adapter, Dropout};

/// `None` when an operand is not an f32 tensor on burn-flex.
pub(super) fn grouped_linear(
    x: &Tensor<2>,
    weight: &Tensor<3>,
    groups: &Arc<Groups>,
    adapter: Option<&Adapter<3>>,
) -> Option<Tensor<2>> {
    let absent = || Some(Operand::absent());
    let parents = [
        Operand::of(x)?,
        Operand::of(weight)?,
        adapter.map_or_else(absent, |adapter| Operand::of(&adapter.a))?,
        adapter.map_or_else(absent, |adapter| Operand::of(&adapter.b))?,
    ];
    let [x, weight, a, b] = parents.each_ref().map(Operand::contiguous);
    let map = Stack::of(&weight);
    let mut y = map.times(groups, slice(&x));
    let low = adapter.map(|&Adapter { scale, dropout, .. }| {
        let dropped = dropout.map(|dropout| dropped(slice(&x), dropout));
        let values = Stack::of(&a).times(groups, dropped.as_deref().unwrap_or(slice(&x)));
        Stack::of(&b).apply(groups, &mut y, &values, Side::Transposed, scale, true);
        Low { values, a: a.clone(), b: b.clone(), scale, dropout }
    });
    let y = from_vec(y, [groups.rows(), map.rows]);
    let x = (parents[1].tracked() || parents[2].tracked()).then(|| x.clone());
    let groups = groups.clone();
    Some(record(Step, parents, y, || Saved { x, weight, low, groups }))
}

/// One matrix `[rows, columns]` a group.
#[derive(Clone, Copy)]
struct Stack<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
}

/// Whether rows are multiplied with a group's matrix or with its transpose.
#[derive(Clone, Copy)]
enum Side {
    Plain,
    Transposed,
}

impl<'a> Stack<'a> {
    fn of(tensor: &'a FlexTensor) -> Self {
        let shape = tensor.layout().shape();
        Self { data: slice(tensor), rows: shape[1], columns: shape[2] }
    }

    fn matrix(&self, group: usize) -> Matrix<'a> {
        let size = self.rows * self.columns;
        Matrix::dense(&self.data[group * size..][..size], self.rows, self.columns)
    }

    /// `x·Wᵀ`, group by group.
    fn times(&self, groups: &Groups, x: &[f32]) -> Vec<f32> {
        let mut y = vec![0.0; groups.rows() * self.rows];
        self.apply(groups, &mut y, x, Side::Transposed, 1.0, false);
        y
    }

    /// `out = scale · x·W` or `scale · x·Wᵀ`, or that added to `out`, group by group.
    fn apply(&self, groups: &Groups, out: &mut [f32], x: &[f32], side: Side, scale: f32, add: bool) {
        let (width, inputs) = match side {
            Side::Plain => (self.columns, self.rows),
            Side::Transposed => (self.rows, self.columns),
        };
        for_groups(groups, out, width, |group, rows, out, threads| {
            let x = Matrix::dense(&x[rows.start * inputs..rows.end * inputs], rows.len(), inputs);
            let w = match side {
                Side::Plain => self.matrix(group),
                Side::Transposed => self.matrix(group).transposed(),
            };
            product(out, x, w, scale, add, threads);
        });
    }
}

/// `scale · dyᵀ·x`, group by group; zero for groups without rows.
fn outer(groups: &Groups, dy: &[f32], outputs: usize, x: &[f32], inputs: usize, scale: f32) -> Vec<f32> {
    let size = outputs * inputs;
    let mut sums = vec![0.0; groups.len() * size];
    let mut blocks: Vec<Option<&mut [f32]>> = sums.chunks_exact_mut(size).map(Some).collect();
    let tasks: Vec<_> = groups.iter().map(|(group, rows)| (rows, blocks[group].take())).collect();
    tasks.into_par_iter().for_each(|(rows, block)| {
        let block = block.expect("invariant: every group comes once");
        let dy = Matrix::dense(&dy[rows.start * outputs..rows.end * outputs], rows.len(), outputs);
        let x = Matrix::dense(&x[rows.start * inputs..rows.end * inputs], rows.len(), inputs);
        product(block, dy.transposed(), x, scale, false, Threads::Caller);
    });
    sums
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
    /// Only when the weight or `A` is trained.
    x: Option<FlexTensor>,
    weight: FlexTensor,
    low: Option<Low>,
    groups: Arc<Groups>,
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
    fn x(&self) -> &[f32] {
        slice(self.x.as_ref().expect("invariant: x is kept for a tracked weight or A"))
    }
}

impl Backward<Flex, 4> for Step {
    type State = Saved;

    /// In each group, with `dl = s·dy·B`: `dx = dy·W + (dl·A) ⊙ mask`, `dW = dyᵀ·x`, `dA = dlᵀ·(x ⊙ mask)`,
    /// `dB = s·dyᵀ·low`; each only where wanted.
    fn backward(self, ops: Ops<Saved, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let dy = slice(&dy);
        let saved = &ops.state;
        let groups = &*saved.groups;
        let weight = Stack::of(&saved.weight);
        let (outputs, inputs) = (weight.rows, weight.columns);
        let [x_node, weight_node, a_node, b_node] = ops.parents;

        let mut dx = x_node.is_some().then(|| {
            let mut dx = vec![0.0; groups.rows() * inputs];
            weight.apply(groups, &mut dx, dy, Side::Plain, 1.0, false);
            dx
        });
        if let Some(low) = &saved.low {
            let (a, b) = (Stack::of(&low.a), Stack::of(&low.b));
            let rank = a.rows;
            if let Some(node) = b_node {
                let db = outer(groups, dy, outputs, &low.values, rank, low.scale);
                grads.register::<Flex>(node.id, from_vec(db, [groups.len(), outputs, rank]));
            }
            if dx.is_some() || a_node.is_some() {
                let mut dlow = vec![0.0; groups.rows() * rank];
                b.apply(groups, &mut dlow, dy, Side::Plain, low.scale, false);
                if let Some(node) = a_node {
                    let dropped = low.dropout.map(|dropout| dropped(saved.x(), dropout));
                    let da = outer(groups, &dlow, rank, dropped.as_deref().unwrap_or(saved.x()), inputs, 1.0);
                    grads.register::<Flex>(node.id, from_vec(da, [groups.len(), rank, inputs]));
                }
                match (&mut dx, low.dropout) {
                    (None, _) => {}
                    (Some(dx), None) => a.apply(groups, dx, &dlow, Side::Plain, 1.0, true),
                    (Some(dx), Some(dropout)) => {
                        let mut through = vec![0.0; dx.len()];
                        a.apply(groups, &mut through, &dlow, Side::Plain, 1.0, false);
                        for_blocks(dx, 1, |first, block| {
                            vector::add_dropped(block, &through[first..first + block.len()], dropout, first as u64);
                        });
                    }
                }
            }
        }
        if let (Some(node), Some(dx)) = (x_node, dx) {
            grads.register::<Flex>(node.id, from_vec(dx, [groups.rows(), inputs]));
        }
        if let Some(node) = weight_node {
            let dweight = outer(groups, dy, outputs, saved.x(), inputs, 1.0);
            grads.register::<Flex>(node.id, from_vec(dweight, [groups.len(), outputs, inputs]));
        }
    }
}
