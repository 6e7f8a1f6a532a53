//! Linear maps on a GPU: one product with each weight, one with all down projections, and for each map one pass in which
//! bias and up projection join the base.
//!
//! Of `N` maps of one input, `T` tokens, 16-bit numbers: forwards `2·T·in·Σout` operations in `N` products, `2·T·in·Σr` in one;
//! beside the products' own bytes each output is read and written once more (`4·T·out`). Backwards `2·T·in·Σout` again for the
//! input's gradient, whose parts are summed in one pass, and `4·T·r·(in + out)` a map for A and B. The products bound it.

use std::sync::{Arc, Mutex, PoisonError};

use burn::Tensor;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::{Adapter, Projection};
use crate::gpu::combine::{LowRank, MOST_RANK, combine};
use crate::gpu::dropout::dropped as masked;
use crate::gpu::kept::{Held, Kept, weight_operand};
use crate::gpu::pack::pack;
use crate::gpu::product::{product, wide_product};
use crate::gpu::tensor::{dense, empty, float_operand, primitive};
use crate::gpu::{Cube, Operand};
use crate::tape::record;
use crate::{Dropout, Input, Weight};

/// `None` when an operand is not a tensor of a GPU.
pub(super) fn projections<const N: usize>(x: &Input<2>, maps: &[Projection; N]) -> Option<[Tensor<2>; N]> {
    let input = float_operand(x.tensor())?;
    let operands: Vec<[Option<Operand>; 4]> = maps.iter().map(operands).collect::<Option<_>>()?;
    let outputs = forward(x, input, operands, maps);
    Some(outputs.try_into().expect("invariant: one output a map"))
}

/// Weight, bias, A, B.
fn operands(map: &Projection) -> Option<[Option<Operand>; 4]> {
    let bias = match &map.bias {
        Some(bias) => Some(float_operand(bias)?),
        None => None,
    };
    let (a, b) = match &map.adapter {
        Some(adapter) => (Some(float_operand(&adapter.a)?), Some(float_operand(&adapter.b)?)),
        None => (None, None),
    };
    let (_, weight) = weight_operand(&map.weight)?;
    Some([weight, bias, a, b])
}

fn forward(
    from: &Input<2>,
    input: Operand,
    operands: Vec<[Option<Operand>; 4]>,
    maps: &[Projection],
) -> Vec<Tensor<2>> {
    let x = from.tensor();
    let (x_TI, dtype) = (plain::<2>(&input), x.dtype());
    let kept = Kept::of(from, x_TI.clone());
    let lows = lows(&x_TI, &operands, maps);
    let pending = Pending::default();
    let fan = input.tracked().then(|| fan_out(input, &pending));
    let outputs = operands.into_iter().zip(lows).enumerate().map(|(index, (operands, low))| {
        let weight = match (&operands[0], &maps[index].weight) {
            (Some(weight), _) => Held::Dense(plain_as::<2>(dtype)(weight)),
            (None, Weight::Blocks(blocks)) => Held::Blocks(blocks.clone()),
            (None, Weight::Dense(_)) => unreachable!("invariant: a dense weight is an operand"),
        };
        let bias = operands[1].as_ref().map(plain_as::<1>(dtype));
        let y = output(&x_TI, weight.beside(&x_TI), bias, low.as_ref());
        let absent = || Operand::constant(primitive(x_TI.clone()));
        let x_parent = float_operand(fan.as_ref().unwrap_or(x)).expect("invariant: `x` is such an operand");
        let dtypes =
            operands.each_ref().map(|operand| operand.as_ref().map_or(DType::F32, |operand| operand.data().dtype));
        let [weight_parent, bias_parent, a_parent, b_parent] = operands.map(|operand| operand.unwrap_or_else(absent));
        let x = (weight_parent.tracked() || a_parent.tracked()).then(|| kept.clone());
        let parents = [x_parent, weight_parent, bias_parent, a_parent, b_parent];
        let pending = pending.clone();
        record(Step, parents, y, || Saved { x, weight, dtypes, low, index, pending })
    });
    outputs.collect()
}

/// The operand as it is, without a tape.
fn plain<const D: usize>(operand: &Operand) -> Tensor<D> {
    Tensor::from_primitive::<Cube>(operand.data())
}

/// The same in `dtype`: two types are never multiplied with each other.
fn plain_as<const D: usize>(dtype: DType) -> impl Fn(&Operand) -> Tensor<D> {
    move |operand| plain::<D>(operand).cast(dtype)
}

/// Dense, as kernels read it.
fn buffer<const D: usize>(tensor: Tensor<D>) -> CubeTensor {
    dense(&Operand::constant(primitive(tensor)))
}

/// `x·Wᵀ + b + s·low·Bᵀ`.
fn output(x_TI: &Tensor<2>, weight_OI: Tensor<2>, bias: Option<Tensor<1>>, low: Option<&Low>) -> CubeTensor {
    let base = product(x_TI.clone(), weight_OI.transpose());
    if bias.is_none() && low.is_none() {
        return primitive(base);
    }
    let (mut terms, bias) = (vec![buffer(base)], bias.map(buffer));
    let update = low.and_then(|low| low.update(&mut terms));
    combine(&terms, bias.as_ref(), update.as_ref())
}

/// The adapter, and its input after the down projection; in the type of `x`.
#[derive(Clone, Debug)]
struct Low {
    /// `[T, Σr]`: what all maps of one input share.
    values: Tensor<2>,
    /// Their down projections, one below another, `[Σr, in]`.
    down: Tensor<2>,
    /// First column of `values` and row of `down` that is this map's.
    first: usize,
    /// `Bᵀ`, `[r, out]`.
    up: Tensor<2>,
    scale: f32,
    dropout: Option<Dropout>,
}

impl Low {
    fn rank(&self) -> usize {
        self.up.dims()[0]
    }

    /// This map's columns.
    fn own(&self) -> Tensor<2> {
        self.values.clone().narrow(1, self.first, self.rank())
    }

    /// This map's A.
    fn a(&self) -> Tensor<2> {
        self.down.clone().narrow(0, self.first, self.rank())
    }

    /// What the map adds to the base, for [`combine`], or where it takes no such rank, as a term of its own.
    fn update(&self, terms: &mut Vec<CubeTensor>) -> Option<LowRank> {
        if self.rank() <= MOST_RANK {
            let (left, right) = (buffer(self.values.clone()), buffer(self.up.clone()));
            return Some(LowRank { left, column: self.first, right, scale: self.scale });
        }
        terms.push(buffer(product(self.own(), self.up.clone()) * self.scale));
        None
    }
}

/// The adapters' inputs after their down projections: in one product for all that see `x` as it is.
fn lows(x_TI: &Tensor<2>, operands: &[[Option<Operand>; 4]], maps: &[Projection]) -> Vec<Option<Low>> {
    let of_adapter = |([_, _, a, b], map): (&[Option<Operand>; 4], &Projection)| {
        let Adapter { scale, dropout, .. } = *map.adapter.as_ref()?;
        Some((dense(a.as_ref()?), dense(b.as_ref()?), scale, dropout))
    };
    let adapters: Vec<_> = operands.iter().zip(maps).map(of_adapter).collect();
    let plain: Vec<&CubeTensor> =
        adapters.iter().flatten().filter(|(.., dropout)| dropout.is_none()).map(|(a, ..)| a).collect();
    let shared = (!plain.is_empty()).then(|| {
        let down = stacked(&plain, x_TI);
        (product(x_TI.clone(), down.clone().transpose()), down)
    });
    let mut next = 0;
    let of_map = |adapter| {
        let (a, b, scale, dropout): (CubeTensor, CubeTensor, f32, Option<Dropout>) = adapter?;
        let (out, rank) = (b.meta.shape()[0], b.meta.shape()[1]);
        let up = empty(&b, [rank, out], x_TI.dtype());
        pack(&b, &up, 0, true);
        let up = Tensor::from_primitive::<Cube>(up);
        let (values, down, first) = match dropout {
            None => {
                next += rank;
                let (values, down) = shared.clone()?;
                (values, down, next - rank)
            }
            Some(dropout) => {
                let down = stacked(&[&a], x_TI);
                (product(dropped(x_TI, dropout), down.clone().transpose()), down, 0)
            }
        };
        Some(Low { values, down, first, up, scale, dropout })
    };
    adapters.into_iter().map(of_map).collect()
}

/// Matrices of one width, one below another, in the type of `x`.
fn stacked(matrices: &[&CubeTensor], x_TI: &Tensor<2>) -> Tensor<2> {
    let rows = matrices.iter().map(|matrix| matrix.meta.shape()[0]).sum();
    let (all, mut first) = (empty(matrices[0], [rows, x_TI.dims()[1]], x_TI.dtype()), 0);
    for matrix in matrices {
        pack(matrix, &all, first, false);
        first += matrix.meta.shape()[0];
    }
    Tensor::from_primitive::<Cube>(all)
}

/// `x ⊙ mask`.
fn dropped(x: &Tensor<2>, dropout: Dropout) -> Tensor<2> {
    Tensor::from_primitive::<Cube>(masked(&buffer(x.clone()), dropout))
}

#[derive(Debug)]
struct Step;

#[derive(Clone, Debug)]
struct Saved {
    /// Only when the weight or `A` is trained.
    x: Option<Kept<2>>,
    /// In the type of `x`.
    weight: Held<2>,
    /// Types of weight, bias, A and B: those of their gradients.
    dtypes: [DType; 4],
    low: Option<Low>,
    /// Place among the maps of one input.
    index: usize,
    /// Where the input's gradient is formed.
    pending: Pending,
}

impl Saved {
    fn x(&self) -> Tensor<2> {
        self.x.as_ref().expect("invariant: x is kept for a tracked weight or A").get()
    }
}

impl Backward<Cube, 5> for Step {
    type State = Saved;

    /// With `dl = s·dy·B`: `dx = Σ dy·W + (dl·A) ⊙ mask` over all maps of the input, `dW = dyᵀ·x`, `db = Σ dy`,
    /// `dA = dlᵀ·(x ⊙ mask)`, `dB = s·dyᵀ·low`; each only where wanted.
    fn backward(self, ops: Ops<Saved, 5>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy_TO = Tensor::<2>::from_primitive::<Cube>(grads.consume::<Cube>(&ops.node));
        let saved = ops.state;
        let [x_node, weight_node, bias_node, a_node, b_node] = ops.parents;
        let [weight_dtype, bias_dtype, a_dtype, b_dtype] = saved.dtypes;
        let dlow = saved.low.as_ref().filter(|_| x_node.is_some() || a_node.is_some()).map(|low| {
            let dlow = product(dy_TO.clone(), low.up.clone().transpose());
            if low.scale == 1.0 { dlow } else { dlow * low.scale }
        });
        if let Some(low) = &saved.low {
            if let Some(node) = b_node {
                let db = wide_product(dy_TO.clone().transpose(), low.own()) * low.scale;
                grads.register::<Cube>(node.id, primitive(db.cast(b_dtype)));
            }
            if let (Some(node), Some(dlow)) = (a_node, &dlow) {
                let x = low.dropout.map_or_else(|| saved.x(), |dropout| dropped(&saved.x(), dropout));
                let da = wide_product(dlow.clone().transpose(), x);
                grads.register::<Cube>(node.id, primitive(da.cast(a_dtype)));
            }
        }
        if let Some(node) = weight_node {
            let dweight = wide_product(dy_TO.clone().transpose(), saved.x());
            grads.register::<Cube>(node.id, primitive(dweight.cast(weight_dtype)));
        }
        if let Some(node) = bias_node {
            let db = dy_TO.clone().cast(DType::F32).sum_dim(0).squeeze_dim::<1>(0);
            grads.register::<Cube>(node.id, primitive(db.cast(bias_dtype)));
        }
        if x_node.is_some() {
            let through = saved.low.zip(dlow);
            let weight_OI = saved.weight.beside(&dy_TO);
            saved.pending.push(Part { index: saved.index, base: product(dy_TO, weight_OI), through });
        }
    }
}

/// What the maps of one input have for its gradient so far.
#[derive(Clone, Debug, Default)]
struct Pending(Arc<Mutex<Vec<Part>>>);

/// One map's part of the gradient: `dy·W + (dl·A) ⊙ mask`.
#[derive(Debug)]
struct Part {
    /// Place among the maps: parts are summed in this order, whoever comes first.
    index: usize,
    /// `dy·W`.
    base: Tensor<2>,
    /// The adapter and `dl`.
    through: Option<(Low, Tensor<2>)>,
}

impl Pending {
    fn push(&self, part: Part) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(part);
    }

    fn take(&self) -> Vec<Part> {
        let mut parts = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        parts.sort_by_key(|part| part.index);
        parts
    }
}

/// `x` as the maps take it: the same tensor, behind a step of its own on the tape.
fn fan_out(x: Operand, pending: &Pending) -> Tensor<2> {
    let data = x.data();
    record(FanOut, [x], data, || pending.clone())
}

#[derive(Debug)]
struct FanOut;

impl Backward<Cube, 1> for FanOut {
    type State = Pending;

    /// No map has registered a gradient with Burn: they are in [`Pending`].
    fn backward(self, ops: Ops<Pending, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let parts = ops.state.take();
        let [Some(node)] = ops.parents else { return };
        grads.register::<Cube>(node.id, input_gradient(parts));
    }
}

/// All parts in one pass over the gradient, or two where there are more than three.
fn input_gradient(parts: Vec<Part>) -> CubeTensor {
    let (mut terms, mut dlows, mut downs) = (Vec::new(), Vec::new(), Vec::<Low>::new());
    for Part { base, through, .. } in parts {
        terms.push(buffer(base));
        match through {
            Some((low, dlow)) if low.dropout.is_some() || low.rank() > MOST_RANK => {
                let change = product(dlow, low.a());
                terms.push(buffer(low.dropout.map_or_else(|| change.clone(), |dropout| dropped(&change, dropout))));
            }
            Some((low, dlow)) => {
                dlows.push(dlow);
                downs.push(low);
            }
            None => {}
        }
    }
    let update = downs.first().map(|first| {
        // Where every map takes part, their A's are one below another already.
        let all = downs.iter().map(Low::rank).sum::<usize>() == first.down.dims()[0];
        let down = if all { first.down.clone() } else { joined(downs.iter().map(Low::a).collect(), 0) };
        LowRank { left: buffer(joined(dlows, 1)), column: 0, right: buffer(down), scale: 1.0 }
    });
    while terms.len() > 3 {
        let first: Vec<CubeTensor> = terms.drain(..3).collect();
        terms.insert(0, combine(&first, None, None));
    }
    if terms.len() == 1 && update.is_none() {
        return terms.remove(0);
    }
    combine(&terms, None, update.as_ref())
}

/// Matrices side by side along an axis.
fn joined(mut matrices: Vec<Tensor<2>>, axis: usize) -> Tensor<2> {
    if matrices.len() == 1 { matrices.remove(0) } else { Tensor::cat(matrices, axis) }
}
