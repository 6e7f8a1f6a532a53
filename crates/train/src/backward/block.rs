//! The backward of one block, on tapes of its own.
//!
//! The feed-forward part sees each token by itself, and most of what a block holds while it runs is held for that part. A
//! block that is run again can therefore take it in chunks of tokens: the residual behind the mixer is formed on one tape,
//! each chunk's forward and backward run on another that is gone before the next chunk comes, and their gradients of that
//! residual together seed the first tape. As many operations, since the part is run again in any case; losses have the same
//! bits, and only sums over tokens (gradients of what is trained in that part) are added up in another order. (The "tiled
//! MLP" of Bekman et al. 2025, Arctic Long Sequence Training, arXiv 2506.13996.)

use burn::tensor::Tensor;
use qwen_tune_kernels as kernels;
use qwen_tune_model::{Block, Context, Parameters, Pass, Routing};

use super::{Gradients, Staging};

/// A forward whose tape is there.
pub(super) struct Taped<'a> {
    /// Entry of the tape.
    pub(super) leaf: Tensor<2>,
    pub(super) y: Tensor<2>,
    /// With the leaves of what is trained.
    pub(super) pass: Pass<'a>,
    /// Decisions of its router, of one forward at most.
    pub(super) routing: Vec<Routing>,
}

/// What the backward of all blocks of a micro-batch has in common.
pub(super) struct Sweep<'a> {
    pub(super) parameters: &'a Parameters,
    pub(super) context: &'a Context,
    pub(super) staging: Staging,
    /// Gradient of the load-balancing loss by the probability of each expert, `[1, E]`.
    pub(super) slope: Option<Tensor<2>>,
}

impl<'a> Sweep<'a> {
    fn pass(&self) -> Pass<'a> {
        Pass::taped(self.parameters, self.staging.dropout).observed()
    }

    /// Adds the gradients of what is trained in a block that runs again from `x`; that of `x`.
    pub(super) fn again(
        &self,
        block: &Block,
        x: Tensor<2>,
        upstream: Tensor<2>,
        gradients: &mut Gradients,
    ) -> Option<Tensor<2>> {
        let parts = block.ffn_parts(x.dims()[0], self.staging.ffn_chunk);
        let (leaf, pass) = (input_leaf(x, true), self.pass());
        if parts.len() < 2 {
            let y = block.forward(leaf.clone(), self.context, &pass);
            let routing = pass.routing();
            return self.of_tape(Taped { leaf, y, pass, routing }, upstream, gradients);
        }
        let h = block.mix(leaf.clone(), self.context, &pass);
        let plain = h.clone().inner();
        let mut of_parts = Vec::with_capacity(parts.len());
        for rows in parts {
            let part = |of: &Tensor<2>| of.clone().narrow(0, rows.start, rows.len());
            let (leaf, pass) = (input_leaf(part(&plain), true), self.pass().from_token(rows.start));
            let y = block.feed_forward(leaf.clone(), &pass);
            let routing = pass.routing();
            let below = self.of_tape(Taped { leaf, y, pass, routing }, part(&upstream), gradients);
            of_parts.push(below.expect("invariant: the residual is part of its sum"));
        }
        drop((plain, upstream));
        let upstream = Tensor::cat(of_parts, 0);
        self.of_tape(Taped { leaf, y: h, pass, routing: Vec::new() }, upstream, gradients)
    }

    /// Adds the gradients of what is trained on a tape; that of its entry, where it was asked for.
    pub(super) fn of_tape(
        &self,
        taped: Taped<'_>,
        upstream: Tensor<2>,
        gradients: &mut Gradients,
    ) -> Option<Tensor<2>> {
        let Taped { leaf, y, pass, routing } = taped;
        let seeded = kernels::seed(y, upstream);
        let mut tape = match (&self.slope, routing.into_iter().next()) {
            (Some(slope), Some(Routing { probabilities, .. })) => {
                (seeded + (probabilities * slope.clone().autodiff()).sum()).backward()
            }
            _ => seeded.backward(),
        };
        let below = leaf.grad_remove(&mut tape);
        gradients.add_leaves(pass.into_leaves(), &mut tape);
        below
    }
}

/// A tape's entry. Where nothing below is trained its gradient is not asked for, which saves the products for it.
pub(super) fn input_leaf(x: Tensor<2>, tracked: bool) -> Tensor<2> {
    let x = x.autodiff();
    if tracked { x.require_grad() } else { x }
}
