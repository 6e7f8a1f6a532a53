//! Between [`burn::Tensor`]s and the tensors of a backend, and back, with an own backward step on Burn's tape.

use burn::Tensor;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::ops::{Backward, NodeGuard, OpsKind};
use burn::backend::{Autodiff, Backend, BackendTypes, DispatchKindConversion, DispatchTensor};
use burn::tensor::GradientCheckpointingStrategy;

type Primitive<B> = <B as BackendTypes>::FloatTensorPrimitive;
type Taped<B> = <Autodiff<B, NoCheckpointing> as BackendTypes>::FloatTensorPrimitive;

/// A tensor on `B`, and its place on the tape if it has one.
#[derive(Debug)]
pub(crate) struct Operand<B: Backend> {
    data: Primitive<B>,
    node: Option<NodeGuard>,
    autodiff: bool,
}

impl<B: Backend> Operand<B> {
    /// A constant: stands in for an operand that is absent.
    pub(crate) fn constant(data: Primitive<B>) -> Self {
        Self { data, node: None, autodiff: false }
    }

    /// Whether a gradient is wanted.
    pub(crate) fn tracked(&self) -> bool {
        self.node.is_some()
    }

    /// A handle of the tensor, as it lies in memory.
    pub(crate) fn data(&self) -> Primitive<B> {
        self.data.clone()
    }

    /// The tensor itself without its place on the tape, if nothing tracks it.
    fn into_guard(self) -> NodeGuard {
        self.node.unwrap_or_else(|| Taped::<B>::new(self.data).node())
    }
}

impl<B: Backend> Operand<B>
where
    DispatchTensor: DispatchKindConversion<B> + DispatchKindConversion<Autodiff<B, NoCheckpointing>>,
{
    /// `None` when the tensor lives elsewhere or has another checkpointing strategy: the caller then takes another form.
    pub(crate) fn of<const D: usize>(tensor: &Tensor<D>) -> Option<Self> {
        match tensor.gradient_checkpointing_strategy() {
            None => {
                let data = tensor.clone().try_into_primitive::<B>().ok()?;
                Some(Self { data, node: None, autodiff: false })
            }
            Some(GradientCheckpointingStrategy::Disabled) => {
                let taped = tensor.clone().try_into_primitive::<Autodiff<B, NoCheckpointing>>().ok()?;
                let (data, node) = taped.into_parts();
                Some(Self { data, node: tensor.is_tracked().then_some(node), autodiff: true })
            }
            Some(_) => None,
        }
    }
}

/// The output as a tensor: on the tape with `step` when a parent is tracked, else without any record (Burn would register
/// an empty step, and a tape without a backward pass is never reclaimed).
pub(crate) fn record<B: Backend, const N: usize, const D: usize, S: Backward<B, N>>(
    step: S,
    parents: [Operand<B>; N],
    output: Primitive<B>,
    state: impl FnOnce() -> S::State,
) -> Tensor<D>
where
    DispatchTensor: DispatchKindConversion<B> + DispatchKindConversion<Autodiff<B, NoCheckpointing>>,
{
    if !parents.iter().any(Operand::tracked) {
        let autodiff = parents.iter().any(|parent| parent.autodiff);
        let output = Tensor::from_primitive::<B>(output);
        return if autodiff { output.autodiff() } else { output };
    }
    let guards = parents.map(Operand::into_guard);
    let output = match step.prepare::<NoCheckpointing>(guards).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => prepared.finish(state(), output),
        OpsKind::UnTracked(prepared) => prepared.finish(output),
    };
    Tensor::from_primitive::<Autodiff<B, NoCheckpointing>>(output)
}
