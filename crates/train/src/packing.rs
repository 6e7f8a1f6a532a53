//! Rows that share a forward against each of them alone: what the laid-out batch promises, seen on a user's own rows.
//!
//! Only as much of the model runs as shows a leak: one block of each kind between embedding and head, on some hundred
//! tokens, and a softmax over some thousand of the vocabulary's tokens, the rows' own among them. So the largest models
//! are looked at in seconds and in the memory of a few blocks.

use std::collections::BTreeSet;

use burn::tensor::{DType, Device};
use qwen_tune_data::{Batch, IGNORE, Origin, Packing, Sample, pack};
use qwen_tune_model::{BuildError, Decoder, ModelPart, Pass, Training};
use qwen_tune_qwen::spec::MixerSpec;
use qwen_tune_qwen::{DecoderSpec, ModelDir, TensorSpec};

use crate::eval::batch_logps;

/// Tokens of the vocabulary that take part, at least; all of a small one.
const VOCABULARY: usize = 4096;
/// Tokens of a row at most: no multiple of the tokens that a kernel takes together, so that rows begin anywhere in those.
const ROW: usize = 100;

/// How far apart the log-probabilities of trained tokens may be by rounding: in recurrences behind a norm of nearly nothing
/// much is made of little.
#[must_use]
pub fn packing_tolerance(spec: &DecoderSpec) -> f32 {
    let recurrent = spec.layers.iter().any(|layer| matches!(layer.mixer, MixerSpec::GatedDelta(_)));
    if recurrent { 1e-3 } else { 1e-4 }
}

/// What was seen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PackingDifference {
    /// Rows that shared a forward.
    pub rows: usize,
    /// Their trained tokens.
    pub tokens: usize,
    /// Largest difference of a trained token's log-probability, in nats; not a number if one of them is none.
    pub largest: f32,
}

/// A comparison about to be made.
pub struct PackingProof<'a> {
    model: &'a ModelDir,
    part: ModelPart,
    samples: Vec<Sample>,
}

impl<'a> PackingProof<'a> {
    /// Takes rows of at most `tokens` tokens in all, and of each row no more than its last trained tokens and what stands
    /// right before them.
    ///
    /// # Errors
    /// As the rows.
    pub fn new<E>(
        model: &'a ModelDir,
        samples: impl IntoIterator<Item = Result<Sample, E>>,
        tokens: usize,
    ) -> Result<Self, E> {
        let mut taken: Vec<Sample> = Vec::new();
        let mut room = tokens;
        for sample in samples {
            let Some(end) = last_trained(&sample?, room.min(ROW)) else { continue };
            room -= end.ids.len();
            taken.push(end);
            if room < 2 {
                break;
            }
        }
        let vocabulary = vocabulary(&taken, model.spec.vocab_size);
        let place = |id: &u32| vocabulary.binary_search(id).expect("invariant: the rows' own tokens take part") as u32;
        for (row, sample) in taken.iter_mut().enumerate() {
            sample.ids = sample.ids.iter().map(place).collect();
            sample.origin = Origin { source: 0, file: 0, row: row as u64 };
        }
        let mut blocks: Vec<usize> = model.spec.alike().iter().map(|kind| kind[0]).collect();
        blocks.sort_unstable();
        Ok(Self { model, part: ModelPart { blocks, vocabulary: Some(vocabulary) }, samples: taken })
    }

    /// Rows that are compared; there is nothing to see in fewer than two.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.samples.len()
    }

    /// Bytes of the weights that are brought into memory, and of the largest of them a second time while it is read.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let in_part = |tensor: &&TensorSpec| tensor.layer.is_some_and(|layer| self.part.blocks.contains(&layer));
        let sizes = || self.model.inventory.iter().filter(in_part).map(TensorSpec::elements);
        let rows = self.part.vocabulary.as_ref().map_or(0, Vec::len) * self.model.spec.hidden_size;
        (sizes().sum::<u64>() + sizes().max().unwrap_or(0) + 2 * rows as u64) * 4
    }

    /// Runs the rows as training lays them out, then each alone, in f32.
    ///
    /// # Errors
    /// If the weights cannot be loaded.
    pub fn run(
        &self,
        training: &Training,
        packing: Packing,
        max_length: usize,
        device: &Device,
    ) -> Result<PackingDifference, BuildError> {
        let (decoder, parameters) = Decoder::load_part(self.model, &self.part, training, device, DType::F32)?;
        let pass = Pass::plain(&parameters);
        let packed = pack::lay_out(&self.samples, packing, max_length, usize::MAX);
        let differences = packed.iter().map(|batch| {
            let rows: Vec<&Sample> =
                batch.sequences.iter().map(|sequence| &self.samples[sequence.origin.row as usize]).collect();
            packing_difference(&decoder, &pass, batch, &rows)
        });
        let none = PackingDifference { rows: 0, tokens: 0, largest: 0.0 };
        Ok(differences.fold(none, |sum, one| PackingDifference {
            rows: sum.rows + one.rows,
            tokens: sum.tokens + one.tokens,
            largest: larger(sum.largest, one.largest),
        }))
    }
}

/// Holds a batch against the rows it was laid out from, in its order.
#[must_use]
pub fn packing_difference(decoder: &Decoder, pass: &Pass<'_>, packed: &Batch, rows: &[&Sample]) -> PackingDifference {
    let together = batch_logps(decoder, pass, packed, &packed.targets);
    let mut first = 0;
    let mut seen = PackingDifference { rows: rows.len(), tokens: 0, largest: 0.0 };
    for &row in rows {
        let alone = Batch::from_rows(&[vec![row]]);
        let logps = batch_logps(decoder, pass, &alone, &alone.targets);
        let both = logps.iter().zip(&together[first..]).zip(&alone.targets);
        for ((alone, together), _) in both.filter(|(_, target)| **target != IGNORE) {
            seen.largest = larger(seen.largest, (alone - together).abs());
        }
        seen.tokens += alone.trained;
        first += row.ids.len();
    }
    seen
}

/// The last `most` tokens of a row up to its last trained one; nothing where none is trained.
fn last_trained(sample: &Sample, most: usize) -> Option<Sample> {
    // The first token has no prediction.
    let end = sample.trained.iter().skip(1).rposition(|trained| *trained)? + 2;
    let range = end.saturating_sub(most)..end;
    let mut trained = sample.trained[range.clone()].to_vec();
    trained[0] = false;
    Some(Sample { ids: sample.ids[range].to_vec(), trained, origin: sample.origin })
}

/// The larger of two, or whichever is no number.
fn larger(a: f32, b: f32) -> f32 {
    if a.is_nan() || a > b { a } else { b }
}

/// The rows' own tokens, then others evenly until there are enough; ascending.
fn vocabulary(samples: &[Sample], size: usize) -> Vec<u32> {
    let mut ids: BTreeSet<u32> = samples.iter().flat_map(|sample| sample.ids.iter().copied()).collect();
    let wanted = VOCABULARY.min(size);
    ids.extend((0..wanted).map(|i| (i * size / wanted) as u32));
    ids.into_iter().collect()
}
