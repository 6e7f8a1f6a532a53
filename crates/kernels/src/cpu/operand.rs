//! Between [`burn::Tensor`]s and the slices the CPU forms work on, and back, with an own backward step on the tape.

use burn::Tensor;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::ops::{Backward, NodeGuard, OpsKind};
use burn::backend::{Autodiff, BackendTypes, Flex};
use burn::tensor::{Bytes, DType, GradientCheckpointingStrategy, Shape};
use burn_flex::{FlexTensor, Layout};

use crate::Input;
use crate::blocks::{Blocks, Weight};

/// burn-flex with the tape this crate records on.
pub(crate) type Tape = Autodiff<Flex, NoCheckpointing>;
type Taped = <Tape as BackendTypes>::FloatTensorPrimitive;

/// An f32 or bf16 tensor on burn-flex, and its place on the tape if it has one.
#[derive(Debug)]
pub(crate) struct Operand {
    data: FlexTensor,
    node: Option<NodeGuard>,
    autodiff: bool,
}

impl Operand {
    /// `None` when the tensor lives elsewhere, has another dtype or another checkpointing strategy: the caller then takes
    /// the reference form.
    pub(crate) fn of<const D: usize>(tensor: &Tensor<D>) -> Option<Self> {
        if tensor.dtype() == DType::F32 { Self::of_float(tensor) } else { None }
    }

    /// The same of an f32 or bf16 tensor, for forms written for any [`super::element::Element`].
    pub(crate) fn of_float<const D: usize>(tensor: &Tensor<D>) -> Option<Self> {
        if !matches!(tensor.dtype(), DType::F32 | DType::BF16) {
            return None;
        }
        match tensor.gradient_checkpointing_strategy() {
            None => {
                let data = tensor.clone().try_into_primitive::<Flex>().ok()?;
                Some(Self { data, node: None, autodiff: false })
            }
            Some(GradientCheckpointingStrategy::Disabled) => {
                let (data, node) = tensor.clone().try_into_primitive::<Tape>().ok()?.into_parts();
                Some(Self { data, node: tensor.is_tracked().then_some(node), autodiff: true })
            }
            Some(_) => None,
        }
    }

    /// Stands in for an operand that is absent.
    pub(crate) fn absent() -> Self {
        Self { data: from_vec(Vec::new(), [0]), node: None, autodiff: false }
    }

    /// Whether it is [`Operand::absent`], or empty.
    pub(crate) fn is_absent(&self) -> bool {
        self.data.layout().num_elements() == 0
    }

    /// Whether a gradient is wanted.
    pub(crate) fn tracked(&self) -> bool {
        self.node.is_some()
    }

    pub(crate) fn dtype(&self) -> DType {
        self.data.dtype()
    }

    /// The tensor as it lies in memory.
    pub(crate) fn data(&self) -> &FlexTensor {
        &self.data
    }

    /// Takes the tensor out, whose buffer then is that of nobody else if the caller kept none. The place on the tape stays.
    pub(crate) fn take(&mut self) -> FlexTensor {
        std::mem::replace(&mut self.data, Self::absent().data)
    }

    /// The tensor in C order: itself, or a copy when it is a strided view.
    pub(crate) fn contiguous(&self) -> FlexTensor {
        contiguous(self.data.clone())
    }

    fn into_guard(self) -> NodeGuard {
        self.node.unwrap_or_else(|| Taped::new(self.data).node())
    }
}

/// A weight of products as the CPU forms keep it.
#[derive(Clone, Debug)]
pub(crate) enum Held<const D: usize> {
    Dense(FlexTensor),
    Blocks(Blocks<D>),
}

impl<const D: usize> Held<D> {
    /// With the operand that gets its gradient, an absent one for blocks; `None` as [`Operand::of_float`].
    pub(crate) fn of(weight: &Weight<D>) -> Option<(Self, Operand)> {
        match weight {
            Weight::Dense(tensor) => {
                let operand = Operand::of_float(tensor)?;
                Some((Self::Dense(operand.data().clone()), operand))
            }
            Weight::Blocks(blocks) => Some((Self::Blocks(blocks.clone()), Operand::absent())),
        }
    }

    /// The same in C order.
    pub(crate) fn contiguous(self) -> Self {
        match self {
            Self::Dense(tensor) => Self::Dense(contiguous(tensor)),
            blocks => blocks,
        }
    }

    pub(crate) fn dims(&self) -> [usize; D] {
        match self {
            Self::Dense(tensor) => std::array::from_fn(|axis| tensor.layout().shape()[axis]),
            Self::Blocks(blocks) => blocks.dims(),
        }
    }

    /// Format of its gradient; blocks have none.
    pub(crate) fn dtype(&self) -> DType {
        match self {
            Self::Dense(tensor) => tensor.dtype(),
            Self::Blocks(_) => DType::F32,
        }
    }
}

/// The output as a tensor: on the tape with `step` when a parent is tracked, else without any record (Burn would register
/// an empty step, and a tape without a backward pass is never reclaimed).
pub(crate) fn record<const N: usize, const D: usize, S: Backward<Flex, N>>(
    step: S,
    parents: [Operand; N],
    output: FlexTensor,
    state: impl FnOnce() -> S::State,
) -> Tensor<D> {
    if !parents.iter().any(Operand::tracked) {
        let autodiff = parents.iter().any(|parent| parent.autodiff);
        let output = Tensor::from_primitive::<Flex>(output);
        return if autodiff { output.autodiff() } else { output };
    }
    let guards = parents.map(Operand::into_guard);
    let output = match step.prepare::<NoCheckpointing>(guards).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => prepared.finish(state(), output),
        OpsKind::UnTracked(prepared) => prepared.finish(output),
    };
    Tensor::from_primitive::<Tape>(output)
}

/// [`record`] of an output that `again` forms with the same bits from what the state keeps. Without a tape it is a tensor only,
/// so that nothing outlives the operation.
pub(crate) fn record_formed<const N: usize, const D: usize, S: Backward<Flex, N>>(
    step: S,
    parents: [Operand; N],
    output: FlexTensor,
    state: impl FnOnce() -> S::State,
    again: impl Fn() -> FlexTensor + Send + Sync + 'static,
) -> Input<D> {
    let taped = parents.iter().any(Operand::tracked);
    let output = record(step, parents, output, state);
    if taped { Input::formed_by(output, move || Tensor::from_primitive::<Flex>(again())) } else { output.into() }
}

/// The tensor in C order.
pub(crate) fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() { tensor } else { tensor.to_contiguous() }
}

/// Elements of a tensor in C order.
pub(crate) fn slice(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice::<f32>().expect("invariant: an f32 tensor made contiguous")
}

/// A tensor that owns `values`.
pub(crate) fn from_vec(values: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape.into()), DType::F32)
}
