//! How much the input channels of linear layers count, for formats that round a weight the more exactly the more its input
//! does ([`qwen_tune_kernels::Nf4::quantise_for`]).
//!
//! It is a property of the base alone: mean squares of what the same tokens every time make of the model as it is stored. So
//! a run, its resumption, an evaluation of its adapter and its export have the same quantised base, and nothing is kept beside
//! it. The tokens are drawn evenly from the vocabulary: what a language model has large it has with any tokens, and rows of
//! one's own data buy little beyond that (PERFORMANCE.md, "Quantised bases").

use std::collections::BTreeMap;

use burn::tensor::{DType, Device, Tensor};
use qwen_tune_qwen::ModelDir;
use qwen_tune_qwen::memory::Offload;

use crate::build::{BuildError, mix};
use crate::config::Quantize;
use crate::decoder::{Decoder, ModelPart};
use crate::frozen::Storage;
use crate::packed::weighs;
use crate::parameters::Pass;
use crate::training::Training;

/// Sequences that are taken through the model.
const SEQUENCES: usize = 4;
/// Tokens of each. The first sees nothing before it, which is where activations are largest.
const LENGTH: usize = 128;

/// Mean squares of input channels, by the name of the weight that they meet.
#[derive(Debug, Clone, Default)]
pub struct Importance {
    channels: BTreeMap<String, Vec<f32>>,
}

impl Importance {
    /// Of all linear layers of a checkpoint, where a tensor of it is quantised to a format that asks for it; else of none.
    /// Blocks are loaded one at a time, as they are stored, and wait in host memory but for the matrix in use.
    ///
    /// # Errors
    /// If a tensor cannot be read or does not fit.
    pub fn measure(model: &ModelDir, device: &Device, storage: Storage) -> Result<Self, BuildError> {
        if !model.inventory.iter().any(|tensor| weighs(tensor, storage.quantize)) {
            return Ok(Self::default());
        }
        let storage = Storage { quantize: Quantize::None, offload: Offload::Weights, ..storage };
        let tokens = (SEQUENCES * LENGTH) as u32;
        let drawn = (0..tokens).map(|i| (mix(u64::from(i)) % model.spec.vocab_size as u64) as u32).collect();
        let mut part = ModelPart { blocks: Vec::new(), vocabulary: Some(drawn) };
        let load = |part: &ModelPart| Decoder::load_part(model, part, &Training::Nothing, device, storage);
        let (bottom, parameters) = load(&part)?;
        let pass = Pass::plain(&parameters).weighing();
        let places: Vec<u32> = (0..tokens).collect();
        let mut x = bottom.embed(&places, &pass);
        let sequences: Vec<(usize, usize)> = (0..SEQUENCES).map(|i| (i * LENGTH, LENGTH)).collect();
        let positions: Vec<u32> = places.iter().map(|place| place % LENGTH as u32).collect();
        let context = bottom.context(&sequences, &positions);
        part.vocabulary = Some(vec![0]);
        for block in 0..model.spec.layers.len() {
            part.blocks = vec![block];
            let (decoder, _) = load(&part)?;
            x = decoder.blocks()[0].forward(x, &context, &pass);
            model
                .inventory
                .iter()
                .filter(|tensor| tensor.layer == Some(block))
                .for_each(|tensor| model.release(tensor));
        }
        Ok(pass.importance())
    }

    /// Of the channels that a weight meets, `[in]`.
    #[must_use]
    pub fn of(&self, weight: &str) -> Option<&[f32]> {
        self.channels.get(weight).map(Vec::as_slice)
    }

    /// Notes the inputs `[tokens, in]` of these weights, each of which meets any once.
    pub(crate) fn note<'w>(&mut self, weights: impl IntoIterator<Item = &'w str>, x: &Tensor<2>) {
        let squares = mean_squares(x);
        self.channels.extend(weights.into_iter().map(|weight| (weight.to_owned(), squares.clone())));
    }
}

/// Mean square of each channel, `[tokens, in]` to `[in]`; zeros of no tokens.
fn mean_squares(x: &Tensor<2>) -> Vec<f32> {
    let [tokens, width] = x.dims();
    if tokens == 0 {
        return vec![0.0; width];
    }
    let x = x.clone().cast(DType::F32);
    let mean = (x.clone() * x).mean_dim(0).into_data();
    mean.try_to_vec().expect("invariant: f32")
}
