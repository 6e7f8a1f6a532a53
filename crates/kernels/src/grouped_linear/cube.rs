//! The grouped linear map on a GPU: one batched product for all groups, each with as many rows as most of them have, and one
//! product each for what the largest have beyond that.
//!
//! A product a group would be hundreds of launches; padding every group to the largest one would multiply mostly zeros. With
//! [`HEADROOM`] the batch wastes a fifth of its operations, and only groups far above the mean get products of their own.

use std::ops::Range;
use std::sync::Arc;

use burn::Tensor;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::Groups;
use crate::gpu::dropout::dropped;
use crate::gpu::gather::gather_rows;
use crate::gpu::kept::{Held, Kept, weight_operand};
use crate::gpu::places::words;
use crate::gpu::product::{product, wide_product};
use crate::gpu::tensor::{dense, float_operand, primitive};
use crate::gpu::{Cube, Operand};
use crate::tape::record;
use crate::{Adapter, Dropout, Input, Weight};

/// Rows of a group in the batch, over the mean of all groups.
const HEADROOM: f64 = 1.25;
/// The batch's rows a group are a multiple of this.
const STEP: usize = 16;

/// `None` when an operand is not a tensor of a GPU.
pub(super) fn grouped_linear(
    input: &Input<2>,
    weight: &Weight<3>,
    groups: &Arc<Groups>,
    adapter: Option<&Adapter<3>>,
) -> Option<Tensor<2>> {
    let x = input.tensor();
    let constant = || float_operand(&x.clone().inner());
    let (a, b) = match adapter {
        Some(adapter) => (float_operand(&adapter.a)?, float_operand(&adapter.b)?),
        None => (constant()?, constant()?),
    };
    let first = float_operand(x)?;
    let (blocks, trained) = weight_operand(weight)?;
    let parents = [first, trained.map_or_else(|| constant(), Some)?, a, b];
    let [_, weight_dtype, a_dtype, b_dtype] = parents.each_ref().map(|parent| parent.data().dtype);
    let (x_RI, dtype) = (dense(&parents[0]), x.dtype());
    let cast = |operand: &Operand| Tensor::<3>::from_primitive::<Cube>(operand.data()).cast(dtype);
    let weight = blocks.map_or_else(|| Held::Dense(cast(&parents[1])), Held::Blocks);
    let outputs = weight.dims()[1];
    let batches = Batches::new(groups, &x_RI);
    let update = adapter.map(|adapter| Update {
        a: cast(&parents[2]),
        b: cast(&parents[3]),
        scale: adapter.scale,
        dropout: adapter.dropout,
    });
    let map = Map { weight, update, batches };
    let keeps_x = parents[1].tracked() || parents[2].tracked();
    let (y, lows) = map.forward(&x_RI, outputs);
    let dtypes = [weight_dtype, a_dtype, b_dtype];
    let kept = || Kept::of(input, Tensor::from_primitive::<Cube>(x_RI));
    Some(record(Step, parents, y, || Saved { x: keeps_x.then(kept), map, lows, dtypes }))
}

/// Some groups, one after another, and the rows each brings to a product.
#[derive(Clone, Debug)]
struct Batch {
    groups: Range<usize>,
    /// Rows of each group, counted with those that are filled up with zeros.
    capacity: usize,
    /// Row of `x` for each, or none; `[groups·capacity]`.
    rows: CubeTensor,
}

/// How all rows are brought into products, and back.
#[derive(Clone, Debug)]
struct Batches {
    batches: Vec<Batch>,
    /// Where each row is among those of all batches; `[R]`.
    places: CubeTensor,
}

impl Batches {
    fn new(groups: &Groups, device: &CubeTensor) -> Self {
        let mean = groups.rows() as f64 / groups.len().max(1) as f64;
        let capacity = ((mean * HEADROOM).ceil() as usize).next_multiple_of(STEP);
        let (mut places, mut next, mut batches) = (vec![0; groups.rows()], 0, Vec::new());
        let mut batch = |of: Range<usize>, capacity: usize, first: usize| {
            let mut rows = vec![u32::MAX; of.len() * capacity];
            for (at, group) in of.clone().enumerate() {
                let all = groups.bounds[group]..groups.bounds[group + 1];
                for (place, row) in all.skip(first).take(capacity).enumerate() {
                    rows[at * capacity + place] = row as u32;
                    places[row] = (next + at * capacity + place) as u32;
                }
            }
            next += rows.len();
            batches.push(Batch { groups: of, capacity, rows: words(&rows, device) });
        };
        if groups.rows() > 0 {
            batch(0..groups.len(), capacity, 0);
        }
        for (group, rows) in groups.iter().filter(|(_, rows)| rows.len() > capacity) {
            batch(group..group + 1, rows.len() - capacity, capacity);
        }
        Self { batches, places: words(&places, device) }
    }

    /// The rows of `x` of a batch, `[groups, capacity, W]`.
    fn gather(batch: &Batch, x: &CubeTensor) -> Tensor<3> {
        let rows = Tensor::<2>::from_primitive::<Cube>(gather_rows(x, &batch.rows));
        let width = rows.dims()[1];
        rows.reshape([batch.groups.len(), batch.capacity, width])
    }

    /// What [`Batches::gather`] has of every batch, in the order of `x`.
    fn gather_back(&self, parts: Vec<Tensor<3>>) -> CubeTensor {
        let flat = |part: Tensor<3>| {
            let [groups, capacity, width] = part.dims();
            part.reshape([groups * capacity, width])
        };
        let mut parts: Vec<Tensor<2>> = parts.into_iter().map(flat).collect();
        let all = if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(parts, 0) };
        gather_rows(&buffer(all), &self.places)
    }
}

fn buffer<const D: usize>(tensor: Tensor<D>) -> CubeTensor {
    dense(&Operand::constant(primitive(tensor)))
}

/// A in `[G, r, in]` and B in `[G, out, r]`, in the type of `x`.
#[derive(Clone, Debug)]
struct Update {
    a: Tensor<3>,
    b: Tensor<3>,
    scale: f32,
    dropout: Option<Dropout>,
}

impl Update {
    /// What the down projections see of `x`.
    fn input(&self, x: &CubeTensor) -> CubeTensor {
        self.dropout.map_or_else(|| x.clone(), |dropout| dropped(x, dropout))
    }
}

#[derive(Clone, Debug)]
struct Map {
    /// `[G, out, in]`, in the type of `x`.
    weight: Held<3>,
    update: Option<Update>,
    batches: Batches,
}

/// The matrices of a batch's groups.
fn of_batch(matrices: &Tensor<3>, batch: &Batch) -> Tensor<3> {
    matrices.clone().narrow(0, batch.groups.start, batch.groups.len())
}

fn transposed(matrices: Tensor<3>) -> Tensor<3> {
    matrices.swap_dims(1, 2)
}

impl Map {
    /// The result, and of each batch the rows after the down projection.
    fn forward(&self, x: &CubeTensor, width: usize) -> (CubeTensor, Vec<Tensor<3>>) {
        let (mut outputs, mut lows) = (Vec::new(), Vec::new());
        let weight = self.weight.beside(&Tensor::<2>::from_primitive::<Cube>(x.clone()));
        let input = self.update.as_ref().map(|update| update.input(x));
        for batch in &self.batches.batches {
            let rows = Batches::gather(batch, x);
            let mut y = product(rows.clone(), transposed(of_batch(&weight, batch)));
            if let (Some(update), Some(input)) = (&self.update, &input) {
                let rows = if update.dropout.is_some() { Batches::gather(batch, input) } else { rows };
                let low = product(rows, transposed(of_batch(&update.a, batch)));
                y = y + product(low.clone(), transposed(of_batch(&update.b, batch))) * update.scale;
                lows.push(low);
            }
            outputs.push(y);
        }
        if outputs.is_empty() {
            return (crate::gpu::tensor::empty(x, [0, width], x.dtype), lows);
        }
        (self.batches.gather_back(outputs), lows)
    }
}

#[derive(Debug)]
struct Step;

#[derive(Clone, Debug)]
struct Saved {
    /// Only when the weight or A is trained.
    x: Option<Kept<2>>,
    map: Map,
    /// Of each batch `drop(x)·Aᵀ`.
    lows: Vec<Tensor<3>>,
    /// Types of the gradients of weight, A and B.
    dtypes: [DType; 3],
}

impl Saved {
    fn x(&self) -> CubeTensor {
        buffer(self.x.as_ref().expect("invariant: x is kept for a tracked weight or A").get())
    }
}

/// `sum[groups] += part`, of the groups of a batch.
fn add_groups(sum: &mut Tensor<3>, batch: &Batch, part: Tensor<3>) {
    let [_, rows, columns] = part.dims();
    let there = of_batch(sum, batch) + part;
    *sum = sum.clone().slice_assign([batch.groups.clone(), 0..rows, 0..columns], there);
}

impl Backward<Cube, 4> for Step {
    type State = Saved;

    /// Of each group, with `dl = s·dy·B`: `dx = dy·W + (dl·A) ⊙ mask`, `dW = dyᵀ·x`, `dA = dlᵀ·(x ⊙ mask)`,
    /// `dB = s·dyᵀ·low`; each only where wanted.
    fn backward(self, ops: Ops<Saved, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = dense(&Operand::constant(grads.consume::<Cube>(&ops.node)));
        let (saved, [x_node, weight_node, a_node, b_node]) = (&ops.state, ops.parents);
        let Map { weight, update, batches } = &saved.map;
        let weight = &weight.beside(&Tensor::<2>::from_primitive::<Cube>(dy.clone()));
        let sum = |wanted: bool, like: &Tensor<3>| {
            wanted.then(|| Tensor::<3>::zeros(like.dims(), (&like.device(), DType::F32)))
        };
        let mut dweight = sum(weight_node.is_some(), weight);
        let mut da = update.as_ref().and_then(|update| sum(a_node.is_some(), &update.a));
        let mut db = update.as_ref().and_then(|update| sum(b_node.is_some(), &update.b));
        let input = update.as_ref().filter(|_| da.is_some()).map(|update| update.input(&saved.x()));
        let (mut bases, mut changes) = (Vec::new(), Vec::new());
        for (index, batch) in batches.batches.iter().enumerate() {
            let dy = Batches::gather(batch, &dy);
            if x_node.is_some() {
                bases.push(product(dy.clone(), of_batch(weight, batch)));
            }
            if let Some(dweight) = &mut dweight {
                add_groups(dweight, batch, wide_product(transposed(dy.clone()), Batches::gather(batch, &saved.x())));
            }
            let Some(update) = update else { continue };
            if let Some(db) = &mut db {
                let part = wide_product(transposed(dy.clone()), saved.lows[index].clone());
                add_groups(db, batch, part * update.scale);
            }
            if x_node.is_none() && da.is_none() {
                continue;
            }
            let dlow = product(dy, of_batch(&update.b, batch)) * update.scale;
            if let (Some(da), Some(input)) = (&mut da, &input) {
                add_groups(da, batch, wide_product(transposed(dlow.clone()), Batches::gather(batch, input)));
            }
            if x_node.is_some() {
                changes.push(product(dlow, of_batch(&update.a, batch)));
            }
        }
        if let Some(node) = x_node {
            grads.register::<Cube>(node.id, saved.input_gradient(&dy, bases, changes));
        }
        let [weight_dtype, a_dtype, b_dtype] = saved.dtypes;
        let of_nodes = [(weight_node, dweight, weight_dtype), (a_node, da, a_dtype), (b_node, db, b_dtype)];
        for (node, gradient, dtype) in of_nodes {
            if let (Some(node), Some(gradient)) = (node, gradient) {
                grads.register::<Cube>(node.id, primitive(gradient.cast(dtype)));
            }
        }
    }
}

impl Saved {
    fn input_gradient(&self, dy: &CubeTensor, bases: Vec<Tensor<3>>, changes: Vec<Tensor<3>>) -> CubeTensor {
        let Map { weight, update, batches } = &self.map;
        if bases.is_empty() {
            return crate::gpu::tensor::empty(dy, [0, weight.dims()[2]], dy.dtype);
        }
        match update.as_ref().and_then(|update| update.dropout) {
            Some(dropout) => {
                let base = Tensor::<2>::from_primitive::<Cube>(batches.gather_back(bases));
                let change = dropped(&batches.gather_back(changes), dropout);
                buffer(base + Tensor::from_primitive::<Cube>(change))
            }
            None if changes.is_empty() => batches.gather_back(bases),
            None => batches.gather_back(bases.into_iter().zip(changes).map(|(base, change)| base + change).collect()),
        }
    }
}
