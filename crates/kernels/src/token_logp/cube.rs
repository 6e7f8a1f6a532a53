//! The chunked head on a GPU: the product with the head, then one kernel that makes of each row of logits its target's
//! log-probability and, where wanted, its gradient.
//!
//! A chunk of `C` tokens costs `2·C·V·D` operations forwards and as many for `dh`. Its logits are written in f32 by the
//! product, read twice by the kernel (the second time in part from the cache), and their gradients written and read in 16 bits:
//! about 16 bytes each beside `4·D` operations, so that the products bound it from `D` = 1500 on, on an H200.

use burn::Tensor;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::{DType, Device, IndexingUpdateOp, Int, TensorData};
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::{HeadLoss, chunk_tokens, trained_rows};
use crate::Weight;
use crate::gpu::float::{largest, sum};
use crate::gpu::group::{Group, row, row_max, row_sum};
use crate::gpu::places::words;
use crate::gpu::product::{product, wide_product};
use crate::gpu::tensor::{dense, elem, empty, float_operand, primitive, vector_size};
use crate::gpu::{Cube, Operand};
use crate::tape::record;

/// `None` when a tensor is not one of a GPU.
pub(super) fn token_logp(h: &Tensor<2>, head: &Weight<2>, targets: &[i32]) -> Option<Tensor<1>> {
    let input = float_operand(h)?;
    let parents = [input, float_operand(&head.clone().beside(&h.device(), h.dtype()))?];
    let [h, head] = parents.each_ref().map(|parent| Tensor::<2>::from_primitive::<Cube>(parent.data()));
    let pass = Pass { head: head.cast(h.dtype()), h, head_dtype: parents[1].data().dtype, targets: targets.to_vec() };
    let logp = pass.run(None, false).logp;
    Some(record(Step, parents, primitive(logp), || pass))
}

/// As [`token_logp`]; `wants_head` says whether the head's gradient is formed.
pub(super) fn head_loss(
    h: &Tensor<2>,
    head: &Weight<2>,
    targets: &[i32],
    weights: &[f32],
    wants_head: bool,
) -> Option<HeadLoss> {
    let input = float_operand(h)?;
    let [h, head] = [input, float_operand(&head.clone().beside(&h.device(), h.dtype()))?];
    let (head_dtype, h) = (head.data().dtype, Tensor::<2>::from_primitive::<Cube>(h.data()));
    let head = Tensor::<2>::from_primitive::<Cube>(head.data()).cast(h.dtype());
    let weights = TensorData::new(weights.to_vec(), [weights.len()]);
    let weights = Tensor::<1>::from_data(weights, (&h.device(), DType::F32));
    Some(Pass { h, head, head_dtype, targets: targets.to_vec() }.run(Some(weights), wants_head))
}

/// CUDA gives at most a quarter of its memory at once.
const AT_ONCE: u64 = 4;

/// As [`super::own_memory`].
pub(super) fn own_memory(device: &Device) -> Option<u64> {
    let any = Tensor::<1>::zeros([1], &device.clone().without_autodiff()).try_into_primitive::<Cube>().ok()?;
    Some(any.client.properties().memory.max_page_size.saturating_mul(AT_ONCE))
}

/// Plain tensors, both in the type of `h`.
#[derive(Clone, Debug)]
struct Pass {
    h: Tensor<2>,
    head: Tensor<2>,
    /// Type of the head as given, and of its gradient.
    head_dtype: DType,
    targets: Vec<i32>,
}

impl Pass {
    /// Log-probabilities, and with `weights` (one a token) the gradients of `-Σ weights·logp`.
    fn run(&self, weights: Option<Tensor<1>>, wants_head: bool) -> HeadLoss {
        let (device, dtype, [tokens, _]) = (self.h.device(), self.h.dtype(), self.h.dims());
        let (rows, targets) = trained_rows(&self.targets);
        let chunk = chunk_tokens(rows.len(), self.head.dims()[0], &device);
        let logp = primitive(Tensor::<1>::zeros([tokens], (&device, DType::F32)));
        let mut dh = self.h.zeros_like();
        let mut dhead = wants_head.then(|| Tensor::<2>::zeros(self.head.dims(), (&device, DType::F32)));
        let weights = weights.map(primitive);
        for (rows, targets) in rows.chunks(chunk).zip(targets.chunks(chunk)) {
            let indices: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
            let indices = Tensor::<1, Int>::from_data(TensorData::new(indices, [rows.len()]), &device);
            let h_CD = self.h.clone().select(0, indices.clone());
            let logits_CV = wide_product(h_CD.clone(), self.head.clone().transpose());
            let chunk = Chunk::new(rows, targets, primitive(logits_CV));
            let Some(weights) = &weights else {
                chunk.log_probabilities(&logp);
                continue;
            };
            let dlogits_CV = Tensor::<2>::from_primitive::<Cube>(chunk.gradients(weights, &logp, dtype));
            dh = dh.select_assign(0, indices, product(dlogits_CV.clone(), self.head.clone()), IndexingUpdateOp::Add);
            dhead = dhead.map(|dhead| dhead + wide_product(dlogits_CV.transpose(), h_CD));
        }
        let logp = Tensor::from_primitive::<Cube>(logp);
        HeadLoss { logp, dh, dhead: dhead.map(|dhead| dhead.cast(self.head_dtype)) }
    }
}

#[derive(Debug)]
struct Step;

impl Backward<Cube, 2> for Step {
    type State = Pass;

    /// The loss `-Σ w·logp` has the wanted gradient for `w = -upstream`.
    fn backward(self, ops: Ops<Pass, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let upstream = Tensor::<1>::from_primitive::<Cube>(grads.consume::<Cube>(&ops.node));
        let [h_node, head_node] = ops.parents;
        let HeadLoss { dh, dhead, .. } = ops.state.run(Some(upstream.neg()), head_node.is_some());
        for (node, gradient) in [(h_node, Some(dh)), (head_node, dhead)] {
            if let (Some(node), Some(gradient)) = (node, gradient) {
                grads.register::<Cube>(node.id, primitive(gradient));
            }
        }
    }
}

/// Some tokens with a target and their logits, `[C, V]` in f32.
struct Chunk {
    /// Their rows of `h`, then their targets: `[2·C]`.
    places: CubeTensor,
    logits: CubeTensor,
}

impl Chunk {
    fn new(rows: &[usize], targets: &[usize], logits: CubeTensor) -> Self {
        let places: Vec<u32> = rows.iter().chain(targets).map(|&place| place as u32).collect();
        let logits = dense(&Operand::constant(logits));
        Self { places: words(&places, &logits), logits }
    }

    /// Writes each row's log-probability into `logp`, `[T]`.
    fn log_probabilities(&self, logp: &CubeTensor) {
        self.launch(None, logp, &self.logits);
    }

    /// The same, and returns `weights[row]·(softmax - onehot)` in `dtype`.
    fn gradients(&self, weights: &CubeTensor, logp: &CubeTensor, dtype: DType) -> CubeTensor {
        let gradients = empty(&self.logits, self.logits.meta.shape().clone(), dtype);
        self.launch(Some(weights), logp, &gradients);
        gradients
    }

    fn launch(&self, weights: Option<&CubeTensor>, logp: &CubeTensor, gradients: &CubeTensor) {
        let [rows, vocabulary] = [self.logits.meta.shape()[0], self.logits.meta.shape()[1]];
        let vector = vector_size(&self.logits, &[DType::F32], &[vocabulary]);
        let group = Group::of(&self.logits, vocabulary / vector);
        let (count, dim) = group.launch(&self.logits, rows);
        // SAFETY: the kernel reads and writes rows below `rows`, and of `logp` and `weights` the tokens that have a target.
        #[expect(unsafe_code, reason = "a launch without checks of every index")]
        unsafe {
            log_softmax::launch_unchecked(
                &self.logits.client,
                count,
                dim,
                vector,
                self.logits.clone().into_buffer_arg(),
                self.places.clone().into_buffer_arg(),
                weights.unwrap_or(logp).clone().into_buffer_arg(),
                logp.clone().into_buffer_arg(),
                gradients.clone().into_buffer_arg(),
                rows,
                vocabulary / vector,
                weights.is_some(),
                group,
                elem(gradients.dtype),
            );
        }
    }
}

/// Maximum and sum of a row in one pass: a unit keeps the sum of `exp(x - m)` beside its own maximum `m`, and corrects it
/// where the maximum rises (Milakov and Gimelshein, 2018).
#[cube(launch_unchecked)]
fn log_softmax<E: Float, N: Size>(
    logits: &[Vector<f32, N>],
    places: &[u32],
    weights: &[f32],
    logp: &mut [f32],
    gradients: &mut [Vector<E, N>],
    rows: usize,
    width: usize,
    #[comptime] wants_gradients: bool,
    #[comptime] group: Group,
    #[define(E)] _dtype: ElemType,
) {
    let row = row(group);
    let inside = row < rows;
    let first = row * width;
    let end = select(inside, width, 0usize);
    let step = comptime!(group.units as usize);
    let mut highest = f32::new(-1e30);
    let mut total = 0.0f32;
    let mut at = UNIT_POS_X as usize;
    while at < end {
        let values = logits[first + at];
        let raised = max(highest, largest::<N>(values));
        total = total * (highest - raised).exp() + sum::<N>((values - Vector::new(raised)).exp());
        highest = raised;
        at += step;
    }
    let top = row_max(highest, group);
    let lse = top + row_sum(total * (highest - top).exp(), group).ln();
    let token = places[select(inside, row, 0usize)] as usize;
    let target = places[select(inside, rows + row, 0usize)] as usize;
    if comptime!(wants_gradients) {
        let weight = weights[token];
        let mut at = UNIT_POS_X as usize;
        while at < end {
            let mut share = (logits[first + at] - Vector::new(lse)).exp() * Vector::new(weight);
            #[unroll]
            for part in 0..N::value() {
                let hit = at * N::value() + part == target;
                share.insert(part, share.extract(part) - select(hit, weight, 0.0f32));
            }
            gradients[first + at] = Vector::cast_from(share);
            at += step;
        }
    }
    if inside && UNIT_POS_X == 0u32 {
        let score = logits[first + target / N::value()].extract_dynamic(target % N::value());
        logp[token] = score - lse;
    }
}
