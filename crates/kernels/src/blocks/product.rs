//! `x·Wᵀ` with a weight in blocks on any device: decoded whole for the one product and given back. The tape keeps the
//! blocks' handle; the backward pass decodes again.

use std::marker::PhantomData;

use burn::Tensor;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{Autodiff, Backend, DispatchKindConversion, DispatchTensor};
use burn::tensor::GradientCheckpointingStrategy;

use super::Blocks;

/// `x·Wᵀ` in the format of `x`: `[T, in]` by `[out, in]`.
pub(crate) fn times_transposed(x: &Tensor<2>, weight: &Blocks<2>) -> Tensor<2> {
    if x.is_tracked() {
        #[cfg(feature = "cpu")]
        if let Some(y) = recorded::<burn::backend::Flex>(x, weight) {
            return y;
        }
        #[cfg(any(feature = "cuda", feature = "wgpu", feature = "vulkan"))]
        if let Some(y) = recorded::<burn::backend::Cube>(x, weight) {
            return y;
        }
        #[cfg(feature = "ndarray")]
        #[expect(deprecated, reason = "kept as a second, independent implementation")]
        if let Some(y) = recorded::<burn::backend::NdArray>(x, weight) {
            return y;
        }
    }
    let dense = weight.dense(&x.device().without_autodiff(), x.dtype());
    x.clone().matmul(dense.transpose())
}

/// `None` unless the tensor lives on `B`.
fn recorded<B: Backend>(x: &Tensor<2>, weight: &Blocks<2>) -> Option<Tensor<2>>
where
    DispatchTensor: DispatchKindConversion<B> + DispatchKindConversion<Autodiff<B, NoCheckpointing>>,
{
    if x.gradient_checkpointing_strategy() != Some(GradientCheckpointingStrategy::Disabled) {
        return None;
    }
    let node = x.clone().try_into_primitive::<Autodiff<B, NoCheckpointing>>().ok()?.node();
    let y = times_transposed(&x.clone().inner(), weight).try_into_primitive::<B>().ok()?;
    let step = Step::<B>(PhantomData);
    let y = match step.prepare::<NoCheckpointing>([node]).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => prepared.finish(weight.clone(), y),
        OpsKind::UnTracked(prepared) => prepared.finish(y),
    };
    Some(Tensor::from_primitive::<Autodiff<B, NoCheckpointing>>(y))
}

#[derive(Debug)]
struct Step<B>(PhantomData<fn() -> B>);

impl<B: Backend> Backward<B, 1> for Step<B>
where
    DispatchTensor: DispatchKindConversion<B>,
{
    type State = Blocks<2>;

    /// `dx = dy·W`.
    fn backward(self, ops: Ops<Blocks<2>, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = Tensor::<2>::from_primitive::<B>(grads.consume::<B>(&ops.node));
        let [Some(node)] = ops.parents else { return };
        let dense = ops.state.dense(&dy.device(), dy.dtype());
        let dx = dy.matmul(dense).try_into_primitive::<B>().expect("invariant: computed on the backend of `dy`");
        grads.register::<B>(node.id, dx);
    }
}
