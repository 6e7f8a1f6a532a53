//! Attention on a GPU: kernels that hold no scores where the device has room for their tiles, else products of blocks.

mod cells;
mod flash;
mod forward;
mod keys;
mod panel;
mod product;
mod queries;
mod steps;
mod sums;
mod tile;

use std::sync::Arc;

use burn::Tensor;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn_cubecl::tensor::CubeTensor;

use self::flash::Flash;
use self::steps::{Kernels, buffer};
use super::blockwise::{Layout, Steps};
use crate::gpu::Cube;
use crate::gpu::kept::Kept;
use crate::gpu::tensor::{dense, float_operand, primitive};
use crate::tape::record;
use crate::{Input, Segments};

/// `None` when an operand is not a tensor of a GPU, or they differ in their type.
pub(super) fn attention(
    from: [&Input<3>; 2],
    v: &Tensor<3>,
    segments: &Arc<Segments>,
    scale: f32,
    window: Option<usize>,
) -> Option<Tensor<3>> {
    attention_as(from, v, segments, scale, window, Flash::of)
}

/// The same in the form that `choose` finds, products of blocks where it finds none.
fn attention_as(
    [from_q, from_k]: [&Input<3>; 2],
    v: &Tensor<3>,
    segments: &Arc<Segments>,
    scale: f32,
    window: Option<usize>,
    choose: impl Fn(&CubeTensor, &Layout) -> Option<Flash>,
) -> Option<Tensor<3>> {
    let [q, k] = [from_q, from_k].map(Input::tensor);
    if k.dtype() != q.dtype() || v.dtype() != q.dtype() || q.dims()[0] == 0 {
        return None;
    }
    let parents = [float_operand(q)?, float_operand(k)?, float_operand(v)?];
    let (kv_heads, group, size) = (k.dims()[1], q.dims()[1] / k.dims()[1], q.dims()[2]);
    let layout = Layout { kv_heads, group, size, scale, window, segments: segments.clone() };
    let plain = parents.each_ref().map(|parent| Tensor::<3>::from_primitive::<Cube>(parent.data()));
    let (out, sums) = match choose(&parents[0].data(), &layout) {
        Some(flash) => {
            let [out, lse] = flash.forward(&layout, &parents.each_ref().map(dense));
            (Tensor::from_primitive::<Cube>(out), Sums::Rows(flash, lse))
        }
        None => {
            let (out, sums) = layout.forward::<Kernels>(plain.clone());
            (out, Sums::Blocks(sums))
        }
    };
    let saved_out = out.clone();
    let [q, k, v] = plain;
    let qk = [Kept::of(from_q, q), Kept::of(from_k, k)];
    Some(record(Step, parents, primitive(out), || Saved { layout, qk, v, out: saved_out, sums }))
}

#[derive(Debug)]
struct Step;

#[derive(Clone, Debug)]
struct Saved {
    layout: Layout,
    qk: [Kept<3>; 2],
    v: Tensor<3>,
    out: Tensor<3>,
    sums: Sums,
}

/// Log-sum-exp of the scores, and with it the form that wants it so.
#[derive(Clone, Debug)]
enum Sums {
    /// `[T, N]`.
    Rows(Flash, CubeTensor),
    /// Of each block's rows.
    Blocks(Vec<Tensor<2>>),
}

impl Backward<Cube, 3> for Step {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dout = Tensor::<3>::from_primitive::<Cube>(grads.consume::<Cube>(&ops.node));
        let Saved { layout, qk: [q, k], v, out, sums } = ops.state;
        let gradients = match sums {
            Sums::Rows(flash, lse) => {
                let delta = buffer(Kernels::row_products(&dout, &out));
                drop(out);
                flash.backward(&layout, &[q.get(), k.get(), v, dout].map(buffer), &lse, &delta)
            }
            Sums::Blocks(sums) => layout.backward::<Kernels>([q.get(), k.get(), v], &out, sums, dout).map(primitive),
        };
        for (node, gradient) in ops.parents.into_iter().zip(gradients) {
            if let Some(node) = node {
                grads.register::<Cube>(node.id, gradient);
            }
        }
    }
}

#[cfg(all(test, feature = "cpu"))]
mod tests;
