//! [`Weights`]: the stored tensors of a model, in files of either kind.

use std::borrow::Cow;

use qwen_tune_weights::{Checkpoint, Layout, MappedBytes, ShardInfo, TensorInfo, TensorSource, WeightError};

use crate::gguf::GgufModel;

/// Where the tensors of a model come from. Those of a GGUF file have the names and the form they have in checkpoints.
#[derive(Debug)]
pub enum Weights {
    /// Safetensors files.
    Safetensors(Checkpoint),
    /// A GGUF file, or several joined, and the one file that would hold the same as safetensors.
    Gguf(Box<GgufModel>, Layout),
}

impl Weights {
    pub(super) fn gguf(model: GgufModel) -> Self {
        let layout = Layout::single(model.tensors());
        Weights::Gguf(Box::new(model), layout)
    }

    /// Files and index as a [`qwen_tune_weights::ShardedWriter`] needs them to write the same tensors again.
    pub fn layout(&self) -> &Layout {
        match self {
            Weights::Safetensors(checkpoint) => checkpoint.layout(),
            Weights::Gguf(_, layout) => layout,
        }
    }

    /// The files of that layout.
    pub fn shards(&self) -> &[ShardInfo] {
        &self.layout().shards
    }

    fn source(&self) -> &dyn TensorSource {
        match self {
            Weights::Safetensors(checkpoint) => checkpoint,
            Weights::Gguf(model, _) => model.as_ref(),
        }
    }
}

impl TensorSource for Weights {
    fn tensors(&self) -> &[TensorInfo] {
        self.source().tensors()
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.source().info(name)
    }

    fn read(&self, name: &str) -> Result<Cow<'_, [u8]>, WeightError> {
        self.source().read(name)
    }

    fn mapped(&self, name: &str) -> Option<MappedBytes> {
        self.source().mapped(name)
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightError> {
        self.source().read_f32(name)
    }

    fn read_elements_f32(&self, name: &str, first: usize, values: &mut [f32]) -> Result<(), WeightError> {
        self.source().read_elements_f32(name, first, values)
    }

    fn release(&self, name: &str) {
        self.source().release(name);
    }
}
