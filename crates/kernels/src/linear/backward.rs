//! Gradients of a linear map with an adapter.

use std::marker::PhantomData;
use std::sync::Arc;

use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::DType;
use burn_flex::FlexTensor;

use super::fan_out::{Part, Pending, Upstream};
use super::flex::{matrix, weight_matrix};
use crate::Dropout;
use crate::cpu::element::{Element, narrowed, wide};
use crate::cpu::kept::Kept;
use crate::cpu::operand::{Held, contiguous};
use crate::cpu::product::{
    Left, Matrix, Number, Precision, Term, Threads, few_rows, new_product, new_sum_of_products, new_transposed_product,
};
use crate::cpu::rows::{dropped, sum_rows};

#[derive(Debug)]
pub(super) struct Step<E>(PhantomData<E>);

impl<E> Default for Step<E> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

#[derive(Clone, Debug)]
pub(super) struct Saved {
    /// Only when the weight or `A` is trained.
    pub(super) x: Option<Kept>,
    pub(super) weight: Held<2>,
    /// Format of the bias.
    pub(super) bias: DType,
    pub(super) low: Option<Low>,
    /// Place among the maps of one input.
    pub(super) index: usize,
    /// Where the input's gradient is formed.
    pub(super) pending: Pending,
}

/// The adapter, and its input after the down projection.
#[derive(Clone, Debug)]
pub(super) struct Low {
    /// `[T, r]`: columns of what all maps of one input share.
    pub(super) values: Arc<Vec<f32>>,
    /// First element, and elements between rows.
    pub(super) at: usize,
    pub(super) stride: usize,
    pub(super) tokens: usize,
    pub(super) a: FlexTensor,
    pub(super) b: FlexTensor,
    pub(super) scale: f32,
    pub(super) dropout: Option<Dropout>,
}

impl Low {
    pub(super) fn matrix(&self) -> Matrix<'_> {
        let values = self.values.get(self.at..).unwrap_or_default();
        Matrix::strided(values, self.tokens, matrix(&self.a).rows(), self.stride)
    }
}

impl Saved {
    fn x(&self) -> &FlexTensor {
        self.x.as_ref().expect("invariant: x is kept for a tracked weight or A").get()
    }
}

impl<E: Element + Number> Backward<Flex, 5> for Step<E> {
    type State = Saved;

    /// With `dl = s·dy·B`: `dx = Σ dy·W + (dl·A) ⊙ mask` over all maps of the input, `dW = dyᵀ·x`, `db = Σ dy`, `dA = dlᵀ·(x ⊙ mask)`,
    /// `dB = s·dyᵀ·low`; each only where wanted.
    fn backward(self, ops: Ops<Saved, 5>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let saved = &ops.state;
        let (dy_TO, weight_OI) = (matrix(&dy), weight_matrix(&saved.weight));
        let (outputs, inputs, tokens) = (weight_OI.rows(), weight_OI.columns(), dy_TO.rows());
        let [x_node, weight_node, bias_node, a_node, b_node] = ops.parents;

        let precision = Precision::of(&[dy_TO]);
        let left =
            x_node.as_ref().filter(|_| !few_rows(tokens)).map(|_| Left::pack(dy_TO, 1.0, precision, Threads::Pool));
        let dlow = saved.low.as_ref().filter(|_| x_node.is_some() || a_node.is_some()).map(|low| match &left {
            Some(left) => new_sum_of_products(&[Term { left, right: matrix(&low.b) }], None, low.scale, Threads::Pool),
            None => new_product(dy_TO, matrix(&low.b), low.scale, Threads::Pool),
        });
        if let Some(low) = &saved.low {
            let rank = matrix(&low.a).rows();
            if let Some(node) = b_node {
                // Transposed, because a rank does not fill the vectors that columns run in.
                let db = new_transposed_product(low.matrix().transposed(), dy_TO, low.scale, Threads::Pool);
                grads.register::<Flex>(node.id, narrowed(db, [outputs, rank], low.b.dtype()));
            }
            if let (Some(node), Some(dlow)) = (a_node, &dlow) {
                let dlow_RT = Matrix::dense(dlow, tokens, rank).transposed();
                let dropped = low.dropout.map(|dropout| dropped(&wide(&contiguous(saved.x().clone())), dropout));
                let x_TI = match &dropped {
                    Some(dropped) => Matrix::dense(dropped, tokens, inputs),
                    None => matrix(saved.x()),
                };
                let da = new_product(dlow_RT, x_TI, 1.0, Threads::Pool);
                grads.register::<Flex>(node.id, narrowed(da, [rank, inputs], low.a.dtype()));
            }
        }
        if let Some(node) = weight_node {
            let dweight = new_product(dy_TO.transposed(), matrix(saved.x()), 1.0, Threads::Pool);
            grads.register::<Flex>(node.id, narrowed(dweight, [outputs, inputs], saved.weight.dtype()));
        }
        if let Some(node) = bias_node {
            let db = sum_rows(E::slice(&dy), outputs);
            grads.register::<Flex>(node.id, narrowed(db, [outputs], saved.bias));
        }
        if x_node.is_some() {
            let upstream = left.map_or_else(|| Upstream::Rows(dy.clone()), Upstream::Packed);
            let through = saved.low.clone().zip(dlow);
            saved.pending.push(Part { index: saved.index, upstream, weight: saved.weight.clone(), through });
        }
    }
}
