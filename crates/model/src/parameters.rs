//! What is trained, apart from the modules that use it: modules hold a [`Weight`], which is either a frozen tensor or a
//! slot in [`Parameters`]. So the optimizer, the checkpoint and the staged backward see one list, the model itself never
//! changes, and the same forward serves with and without a tape.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::tensor::{DType, Device, Tensor, TensorData};
use qwen_tune_kernels as kernels;

use crate::sparse::Routing;

/// One trainable tensor.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Name in files: `layers.0.self_attn.q_proj.lora_A.weight`, or the inventory's name of a base tensor.
    pub name: String,
    /// Shape in files.
    pub shape: Vec<usize>,
    /// Values, flat in row-major order: f32, or bf16 where a [`crate::FullPlan`] says so.
    pub value: Tensor<1>,
    /// Whether weight decay applies: matrices yes, norms and biases no.
    pub decays: bool,
}

impl Parameter {
    /// Gives it other values.
    ///
    /// # Panics
    /// If they do not fill its shape.
    pub fn set(&mut self, values: Vec<f32>) {
        let count = self.shape.iter().product::<usize>();
        assert_eq!(values.len(), count, "invariant: values fill the shape of `{}`", self.name);
        self.value = Tensor::from_data(TensorData::new(values, [count]), (&self.value.device(), self.value.dtype()));
    }
}

/// All trainable tensors of a run, in the order in which the model was built.
#[derive(Debug, Clone, Default)]
pub struct Parameters {
    entries: Vec<Parameter>,
}

impl Parameters {
    /// Adds a tensor in f32 and returns its slot.
    pub fn push(&mut self, name: String, shape: &[usize], values: Vec<f32>, device: &Device) -> usize {
        self.push_as(DType::F32, name, shape, values, device)
    }

    /// Adds a tensor in this number format and returns its slot.
    pub fn push_as(&mut self, dtype: DType, name: String, shape: &[usize], values: Vec<f32>, device: &Device) -> usize {
        assert_eq!(values.len(), shape.iter().product::<usize>(), "invariant: values fill the shape of `{name}`");
        let value = Tensor::from_data(TensorData::new(values, [shape.iter().product::<usize>()]), (device, dtype));
        self.entries.push(Parameter { name, shape: shape.to_vec(), value, decays: shape.len() > 1 });
        self.entries.len() - 1
    }

    /// In slot order.
    pub fn iter(&self) -> std::slice::Iter<'_, Parameter> {
        self.entries.iter()
    }

    /// In slot order.
    pub fn iter_mut(&mut self) -> std::slice::IterMut<'_, Parameter> {
        self.entries.iter_mut()
    }

    /// Number of tensors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is trained.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Number of trained values.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.entries.iter().map(|p| p.shape.iter().product::<usize>()).sum()
    }
}

impl std::ops::Index<usize> for Parameters {
    type Output = Parameter;
    fn index(&self, slot: usize) -> &Parameter {
        &self.entries[slot]
    }
}

/// A tensor of the model.
#[expect(clippy::large_enum_variant, reason = "some hundreds of them exist, and all are used at every forward")]
#[derive(Debug, Clone)]
pub enum Weight<const D: usize> {
    /// Never changes; shared by all uses.
    Frozen(Tensor<D>),
    /// Lives in [`Parameters`].
    Trained {
        /// Its slot.
        slot: usize,
        /// Its shape.
        shape: [usize; D],
    },
}

impl<const D: usize> Weight<D> {
    /// Whether gradients flow into it.
    #[must_use]
    pub fn is_trained(&self) -> bool {
        matches!(self, Self::Trained { .. })
    }
}

/// A weight of products: a matrix, or one of each expert.
#[expect(clippy::large_enum_variant, reason = "some hundreds of them exist, and all are used at every forward")]
#[derive(Debug, Clone)]
pub enum Matrix<const D: usize> {
    /// As numbers.
    Dense(Weight<D>),
    /// Frozen, in blocks of few bits.
    Packed(kernels::Blocks<D>),
}

impl<const D: usize> Matrix<D> {
    /// Whether gradients flow into it.
    #[must_use]
    pub fn is_trained(&self) -> bool {
        self.slot().is_some()
    }

    /// Its place in [`Parameters`], if it is trained.
    #[must_use]
    pub fn slot(&self) -> Option<usize> {
        match self {
            Self::Dense(Weight::Trained { slot, .. }) => Some(*slot),
            _ => None,
        }
    }
}

/// One use of the model: with which values, with or without a tape, with or without adapters.
#[derive(Clone)]
pub struct Pass<'a> {
    parameters: &'a Parameters,
    tape: Option<Arc<Mutex<BTreeMap<usize, Tensor<1>>>>>,
    routing: Option<Arc<Mutex<Vec<Routing>>>>,
    /// Adapters take part; off gives the base model.
    pub adapters: bool,
    /// Key of this step's dropout masks; `None` drops nothing.
    pub dropout: Option<u64>,
    /// Tokens that go through a feed-forward part together where there is no tape, at most; `None` takes all.
    pub ffn_chunk: Option<usize>,
    /// Place in the batch of the first token it sees.
    pub(crate) first_token: usize,
}

impl<'a> Pass<'a> {
    /// Evaluation and generation: no tape, no dropout.
    #[must_use]
    pub fn plain(parameters: &'a Parameters) -> Self {
        Self { parameters, tape: None, routing: None, adapters: true, dropout: None, ffn_chunk: None, first_token: 0 }
    }

    /// The forward of training without a tape: same masks as [`Pass::taped`] with the same key.
    #[must_use]
    pub fn untaped(parameters: &'a Parameters, dropout: Option<u64>) -> Self {
        Self { dropout, ..Self::plain(parameters) }
    }

    /// Trainable tensors become leaves of an autodiff tape.
    #[must_use]
    pub fn taped(parameters: &'a Parameters, dropout: Option<u64>) -> Self {
        Self { tape: Some(Arc::default()), dropout, ..Self::plain(parameters) }
    }

    /// The base model: adapters off.
    #[must_use]
    pub fn without_adapters(mut self) -> Self {
        self.adapters = false;
        self
    }

    /// No more tokens than this at a time where there is no tape: [`Pass::ffn_chunk`].
    #[must_use]
    pub fn in_chunks(mut self, ffn_chunk: Option<usize>) -> Self {
        self.ffn_chunk = ffn_chunk;
        self
    }

    /// The same pass, with its tape and its notes, for tokens of the batch from this one on: dropout masks are functions
    /// of a token's place.
    #[must_use]
    pub fn from_token(&self, first: usize) -> Self {
        Self { first_token: first, ..self.clone() }
    }

    pub(crate) fn is_taped(&self) -> bool {
        self.tape.is_some()
    }

    /// Routers note what they decide, for [`Pass::routing`].
    #[must_use]
    pub fn observed(mut self) -> Self {
        self.routing = Some(Arc::default());
        self
    }

    /// Notes a router's decision, if anyone asked.
    pub(crate) fn observe(&self, routing: impl FnOnce() -> Routing) {
        if let Some(noted) = &self.routing {
            locked(noted).push(routing());
        }
    }

    /// What the routers of an observed pass decided, in the order in which they ran; noted no longer.
    #[must_use]
    pub fn routing(&self) -> Vec<Routing> {
        self.routing.as_ref().map(|noted| std::mem::take(&mut *locked(noted))).unwrap_or_default()
    }

    /// The weight of products for this pass; blocks stay blocks.
    #[must_use]
    pub fn matrix<const D: usize>(&self, matrix: &Matrix<D>) -> kernels::Weight<D> {
        match matrix {
            Matrix::Dense(weight) => self.get(weight).into(),
            Matrix::Packed(blocks) => blocks.clone().into(),
        }
    }

    /// The tensor of `weight` for this pass. A slot used twice under one tape is one leaf, so its gradients add up.
    #[must_use]
    pub fn get<const D: usize>(&self, weight: &Weight<D>) -> Tensor<D> {
        match weight {
            Weight::Frozen(tensor) => tensor.clone(),
            Weight::Trained { slot, shape } => {
                let value = || self.parameters[*slot].value.clone();
                let flat = match &self.tape {
                    None => value(),
                    Some(tape) => {
                        locked(tape).entry(*slot).or_insert_with(|| value().autodiff().require_grad()).clone()
                    }
                };
                flat.reshape(*shape)
            }
        }
    }

    /// The leaves that this pass made, by slot.
    #[must_use]
    pub fn into_leaves(self) -> BTreeMap<usize, Tensor<1>> {
        self.tape.map(|tape| std::mem::take(&mut *locked(&tape))).unwrap_or_default()
    }
}

/// What it holds: nothing leaves it half changed, so a thread that panicked spoiled nothing.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
