//! The grouped linear map on the CPU: groups in parallel, or one after another with all threads where they are few. A
//! group's terms are summed in f32 and rounded once.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use burn::Tensor;
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::Groups;
use crate::cpu::element::{Element, by_element, narrowed, wide};
use crate::cpu::kept::Kept;
use crate::cpu::operand::{Held, Operand, contiguous, record};
use crate::cpu::product::{Elements, Matrix, Number, Threads, new_product, product};
use crate::cpu::rows::dropped;
use crate::cpu::vector;
use crate::{Adapter, Dropout, Input, Weight};

/// `None` when an operand is not an f32 or bf16 tensor on burn-flex.
pub(super) fn grouped_linear(
    input: &Input<2>,
    weight: &Weight<3>,
    groups: &Arc<Groups>,
    adapter: Option<&Adapter<3>>,
) -> Option<Tensor<2>> {
    let x = input.tensor();
    let absent = || Some(Operand::absent());
    let (held, trained) = Held::of(weight)?;
    let parents = [
        Operand::of_float(x)?,
        trained,
        adapter.map_or_else(absent, |adapter| Operand::of_float(&adapter.a))?,
        adapter.map_or_else(absent, |adapter| Operand::of_float(&adapter.b))?,
    ];
    Some(by_element!(x.dtype(), E => forward::<E>(parents, input, held.contiguous(), groups, adapter)))
}

fn forward<E: Element + Number>(
    parents: [Operand; 4],
    input: &Input<2>,
    weight: Held<3>,
    groups: &Arc<Groups>,
    adapter: Option<&Adapter<3>>,
) -> Tensor<2> {
    let [x, a, b] = [&parents[0], &parents[2], &parents[3]].map(Operand::contiguous);
    let map = Stack::of_held(&weight);
    let rows = Rows::of(&x);
    let low = adapter.map(|&Adapter { scale, dropout, .. }| {
        let dropped = dropout.map(|dropout| dropped(&wide(&x), dropout));
        let input = dropped.as_deref().map_or(rows, |values| Rows::dense(values, map.columns));
        let down = Stack::of(&a);
        let values = for_groups(groups, down.rows, |group, rows, out: &mut [f32], threads| {
            product(out, input.part(rows), down.matrix(group).transposed(), 1.0, false, threads);
        });
        Low { values, a: a.clone(), b: b.clone(), scale, dropout }
    });
    let y = for_groups(groups, map.rows, |group, of_group, out: &mut [E], threads| {
        E::write(out, &mut Vec::new(), |out| {
            product(
                &mut *out,
                rows.part(of_group.clone()),
                map.matrix(group).beside::<E>().transposed(),
                1.0,
                false,
                threads,
            );
            if let Some(low) = &low {
                let up = Stack::of(&low.b).matrix(group).transposed();
                product(out, low.rows().part(of_group), up, low.scale, true, threads);
            }
        });
    });
    let y = E::tensor(y, [groups.rows(), map.rows]);
    let x = (parents[1].tracked() || parents[2].tracked()).then(|| Kept::of(input, x));
    let groups = groups.clone();
    record(Step::<E>(PhantomData), parents, y, || Saved { x, weight, low, groups })
}

/// One matrix `[rows, columns]` a group.
#[derive(Clone, Copy)]
struct Stack<'a> {
    elements: Elements<'a>,
    rows: usize,
    columns: usize,
}

impl<'a> Stack<'a> {
    fn of(tensor: &'a FlexTensor) -> Self {
        let shape = tensor.layout().shape();
        Self { elements: dense(tensor), rows: shape[1], columns: shape[2] }
    }

    fn of_held(weight: &'a Held<3>) -> Self {
        match weight {
            Held::Dense(tensor) => Self::of(tensor),
            Held::Blocks(blocks) => {
                let [_, rows, columns] = blocks.dims();
                Self { elements: Elements::Blocks(&**blocks.packed(), blocks.first()), rows, columns }
            }
        }
    }

    fn matrix(&self, group: usize) -> Matrix<'a> {
        let elements = self.elements.from(group * self.rows * self.columns);
        Matrix::first_of(elements, self.rows, self.columns)
    }
}

/// Rows of all groups, one after another.
#[derive(Clone, Copy)]
struct Rows<'a> {
    elements: Elements<'a>,
    width: usize,
}

impl<'a> Rows<'a> {
    fn of(tensor: &'a FlexTensor) -> Self {
        Self { elements: dense(tensor), width: tensor.layout().shape()[1] }
    }

    fn dense(values: &'a [f32], width: usize) -> Self {
        Self { elements: Elements::F32(values), width }
    }

    fn part(&self, rows: Range<usize>) -> Matrix<'a> {
        Matrix::first_of(self.elements.from(rows.start * self.width), rows.len(), self.width)
    }
}

fn dense(tensor: &FlexTensor) -> Elements<'_> {
    Elements::of(tensor).expect("invariant: checked with the operands").from(tensor.layout().start_offset())
}

/// `scale · dyᵀ·x`, group by group; zero for groups without rows.
fn outer(groups: &Groups, dy: Rows, x: Rows, scale: f32) -> Vec<f32> {
    let size = dy.width * x.width;
    let mut sums = vec![0.0; groups.len() * size];
    let mut blocks: Vec<Option<&mut [f32]>> = sums.chunks_exact_mut(size).map(Some).collect();
    let tasks: Vec<_> = groups.iter().map(|(group, rows)| (rows, blocks[group].take())).collect();
    tasks.into_par_iter().for_each(|(rows, block)| {
        let block = block.expect("invariant: every group comes once");
        product(block, dy.part(rows.clone()).transposed(), x.part(rows), scale, false, Threads::Caller);
    });
    sums
}

/// Groups with rows from which each is one thread's work: fewer are shared by all threads, one after another.
const GROUPS_IN_PARALLEL: usize = 16;

/// An output `width` wide, of which `f(group, rows, out, threads)` writes the part that belongs to a group's rows.
fn for_groups<T: Copy + Default + Send>(
    groups: &Groups,
    width: usize,
    f: impl Fn(usize, Range<usize>, &mut [T], Threads) + Sync,
) -> Vec<T> {
    let mut out = vec![T::default(); groups.rows() * width];
    let mut rest = out.as_mut_slice();
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
    out
}

#[derive(Debug)]
struct Step<E>(PhantomData<E>);

#[derive(Clone, Debug)]
struct Saved {
    /// Only when the weight or `A` is trained.
    x: Option<Kept>,
    weight: Held<3>,
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

impl Low {
    fn rows(&self) -> Rows<'_> {
        Rows::dense(&self.values, Stack::of(&self.a).rows)
    }
}

impl Saved {
    fn x(&self) -> &FlexTensor {
        self.x.as_ref().expect("invariant: x is kept for a tracked weight or A").get()
    }
}

impl<E: Element + Number> Backward<Flex, 4> for Step<E> {
    type State = Saved;

    /// In each group, with `dl = s·dy·B`: `dx = dy·W + (dl·A) ⊙ mask`, `dW = dyᵀ·x`, `dA = dlᵀ·(x ⊙ mask)`,
    /// `dB = s·dyᵀ·low`; each only where wanted.
    fn backward(self, ops: Ops<Saved, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let dy = Rows::of(&dy);
        let saved = &ops.state;
        let groups = &*saved.groups;
        let weight = Stack::of_held(&saved.weight);
        let (outputs, inputs) = (weight.rows, weight.columns);
        let [x_node, weight_node, a_node, b_node] = ops.parents;

        let dlow = saved.low.as_ref().filter(|_| x_node.is_some() || a_node.is_some()).map(|low| {
            let up = Stack::of(&low.b);
            for_groups(groups, up.columns, |group, rows, out: &mut [f32], threads| {
                product(out, dy.part(rows), up.matrix(group), low.scale, false, threads);
            })
        });
        let through = saved.low.as_ref().zip(dlow.as_deref());
        if let Some(node) = x_node {
            let dx = for_groups(groups, inputs, |group, rows, out: &mut [E], threads| {
                E::write(out, &mut Vec::new(), |out| {
                    product(&mut *out, dy.part(rows.clone()), weight.matrix(group).beside::<E>(), 1.0, false, threads);
                    let Some((low, dlow)) = through else { return };
                    let a = Stack::of(&low.a);
                    let dlow = Rows::dense(dlow, a.rows).part(rows.clone());
                    match low.dropout {
                        None => product(out, dlow, a.matrix(group), 1.0, true, threads),
                        Some(dropout) => {
                            let change: Vec<f32> = new_product(dlow, a.matrix(group), 1.0, threads);
                            vector::add_dropped(out, &change, dropout, (rows.start * inputs) as u64);
                        }
                    }
                });
            });
            grads.register::<Flex>(node.id, E::tensor(dx, [groups.rows(), inputs]));
        }
        if let (Some(node), Some((low, dlow))) = (a_node, through) {
            let rank = Stack::of(&low.a).rows;
            let dropped = low.dropout.map(|dropout| dropped(&wide(saved.x()), dropout));
            let input = dropped.as_deref().map_or_else(|| Rows::of(saved.x()), |values| Rows::dense(values, inputs));
            let da = outer(groups, Rows::dense(dlow, rank), input, 1.0);
            grads.register::<Flex>(node.id, narrowed(da, [groups.len(), rank, inputs], low.a.dtype()));
        }
        if let (Some(node), Some(low)) = (b_node, &saved.low) {
            let db = outer(groups, dy, low.rows(), low.scale);
            let rank = Stack::of(&low.a).rows;
            grads.register::<Flex>(node.id, narrowed(db, [groups.len(), outputs, rank], low.b.dtype()));
        }
        if let Some(node) = weight_node {
            let dweight = outer(groups, dy, Rows::of(saved.x()), 1.0);
            grads.register::<Flex>(node.id, narrowed(dweight, [groups.len(), outputs, inputs], saved.weight.dtype()));
        }
    }
}
