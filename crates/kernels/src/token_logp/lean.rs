//! The chunked head on any backend with an own backward step: logits are formed again instead of kept.

use burn::Tensor;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{Autodiff, Backend, DispatchKindConversion, DispatchTensor};
use burn::tensor::GradientCheckpointingStrategy;

use super::{HeadLoss, reference};
use crate::Weight;

/// `None` unless a tensor is tracked and both live on `B`.
pub(super) fn token_logp<B: Backend>(h: &Tensor<2>, head: &Weight<2>, targets: &[i32]) -> Option<Tensor<1>>
where
    DispatchTensor: DispatchKindConversion<B> + DispatchKindConversion<Autodiff<B, NoCheckpointing>>,
{
    // Blocks have no place on a tape; an empty tensor stands in for them.
    let no_head = Tensor::zeros([0, 0], &h.device().without_autodiff());
    let parents = match head {
        Weight::Dense(head) => [h, head],
        Weight::Blocks(_) => [h, &no_head],
    };
    let foreign = |tensor: &&Tensor<2>| {
        tensor.gradient_checkpointing_strategy().is_some_and(|kind| kind != GradientCheckpointingStrategy::Disabled)
    };
    if parents.iter().any(foreign) || !parents.iter().any(|tensor| tensor.is_tracked()) {
        return None;
    }
    let (plain_h, plain_head) = (h.clone().inner(), head.clone().inner());
    let dense = plain_head.clone().beside(&plain_h.device(), plain_h.dtype());
    let logp = reference::token_logp(plain_h.clone(), dense, targets).try_into_primitive::<B>().ok()?;
    let taped = |tensor: &Tensor<2>| {
        let taped = tensor.clone().autodiff().try_into_primitive::<Autodiff<B, NoCheckpointing>>().ok()?;
        Some(taped.node())
    };
    let guards = [taped(parents[0])?, taped(parents[1])?];
    let (h, head) = (plain_h, plain_head);
    let step = Step { _backend: std::marker::PhantomData::<fn() -> B> };
    let logp = match step.prepare::<NoCheckpointing>(guards).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => prepared.finish(Saved { h, head, targets: targets.to_vec() }, logp),
        OpsKind::UnTracked(prepared) => prepared.finish(logp),
    };
    Some(Tensor::from_primitive::<Autodiff<B, NoCheckpointing>>(logp))
}

#[derive(Debug)]
struct Step<B> {
    _backend: std::marker::PhantomData<fn() -> B>,
}

#[derive(Clone, Debug)]
struct Saved {
    h: Tensor<2>,
    head: Weight<2>,
    targets: Vec<i32>,
}

impl<B: Backend> Backward<B, 2> for Step<B>
where
    DispatchTensor: DispatchKindConversion<B>,
{
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let upstream = Tensor::<1>::from_primitive::<B>(grads.consume::<B>(&ops.node));
        let Saved { h, head, targets } = ops.state;
        let [h_node, head_node] = ops.parents;
        let head = head.beside(&h.device(), h.dtype());
        // The loss -Σ w·logp has the wanted gradient for w = -upstream.
        let HeadLoss { dh, dhead, .. } = reference::weighted(h, head, &targets, upstream.neg(), head_node.is_some());
        for (node, gradient) in [(h_node, Some(dh)), (head_node, dhead)] {
            if let (Some(node), Some(gradient)) = (node, gradient) {
                let gradient = gradient.try_into_primitive::<B>().expect("invariant: computed on the backend of `h`");
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}
