//! [`write_adapter`]: a LoRA adapter as a GGUF file, for llama.cpp to put on any GGUF file of its base.
//!
//! What writing the base does to rows is done to those of B, what it does to columns to those of A; a module that becomes
//! two tensors gets two adapters with the same A.

use std::path::Path;

use qwen_tune_weights::gguf::{GgufTensor, GgufWriter, Metadata, TensorType, blocks};
use qwen_tune_weights::peft::{Adapter, LoraPair};
use qwen_tune_weights::{WeightError, Written};

use super::about::{self, About};
use super::layout::{Layout, Numbers, Piece};
use super::{Architecture, GgufError};
use crate::{ModelDir, Role, export};

/// The two factors of one tensor of the file, or of each of the experts in it.
struct Factors {
    /// Name of the base's tensor in the file.
    name: String,
    /// `[experts, rank, in]`.
    a: Vec<f32>,
    /// `[experts, out, rank]`, scaled so that the file's one alpha is right.
    b: Vec<f32>,
    /// None where the base's tensor is one matrix.
    experts: Option<usize>,
    rank: usize,
}

impl Factors {
    fn tensors(&self) -> [(GgufTensor, &[f32]); 2] {
        let named = |end: &str, matrix: [usize; 2]| {
            let shape: Vec<usize> = self.experts.into_iter().chain(matrix).collect();
            GgufTensor::new(format!("{}.{end}", self.name), shape, TensorType::F32)
        };
        let ranks = self.experts.unwrap_or(1) * self.rank;
        let (columns, rows) = (self.a.len() / ranks, self.b.len() / ranks);
        [(named("lora_a", [self.rank, columns]), &self.a), (named("lora_b", [rows, self.rank]), &self.b)]
    }
}

/// Writes an adapter as a file, which appears when it is whole and replaces one of that name. Its factors stay f32.
///
/// # Errors
/// Everything about the adapter that such a file cannot hold or that does not fit the base, before anything is written;
/// then what the system refuses.
pub fn write_adapter(
    model: &ModelDir,
    adapter: &Adapter,
    path: &Path,
    about: &About,
) -> Result<Written, Vec<GgufError>> {
    let architecture = Architecture::of(&model.spec)?;
    let layout = Layout::new(architecture, &model.spec);
    let alpha = Alpha::of(adapter);
    let mut faults: Vec<GgufError> = adapter
        .others
        .iter()
        .map(|other| GgufError::NotAnAdapter { what: format!("the whole tensor `{}`", other.info.name) })
        .collect();
    let mut found = Vec::with_capacity(adapter.pairs.len());
    for pair in &adapter.pairs {
        match factors(model, &layout, pair, &alpha) {
            Ok(several) => found.extend(several),
            Err(fault) => faults.push(fault),
        }
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    let mut keys = Metadata::new();
    about.put(&mut keys, architecture.name, "adapter", None);
    keys.push("adapter.type", "lora");
    keys.push("adapter.lora.alpha", alpha.file as f32);
    about::put_version(&mut keys, None);
    put(path, &keys, &found).map_err(|error| vec![error.into()])
}

fn put(path: &Path, keys: &Metadata, factors: &[Factors]) -> Result<Written, WeightError> {
    let tensors: Vec<(GgufTensor, &[f32])> = factors.iter().flat_map(Factors::tensors).collect();
    let mut writer = GgufWriter::create(path, keys)?;
    let plan: Vec<GgufTensor> = tensors.iter().map(|(tensor, _)| tensor.clone()).collect();
    writer.declare(&plan)?;
    for (tensor, values) in tensors {
        writer.write(&tensor.name, &blocks::encode(tensor.ty, values, tensor.row())?)?;
    }
    writer.close()
}

/// The one alpha of a file. llama.cpp multiplies `B·A` by it over the rank of each pair.
struct Alpha {
    file: f64,
}

impl Alpha {
    /// The configured one where that gives most pairs their scale as they are.
    fn of(adapter: &Adapter) -> Self {
        let config = &adapter.config;
        let file = if config.use_rslora { config.lora_alpha * (config.r as f64).sqrt() } else { config.lora_alpha };
        // Zero would mean a factor of one, whatever the rank.
        Self { file: if file == 0.0 { config.r as f64 } else { file } }
    }

    /// What B of a pair has to be multiplied by.
    fn left_over(&self, pair: &LoraPair) -> f32 {
        let factor = f64::from(pair.scale) * pair.rank as f64 / self.file;
        // Scales are kept in f32, which leaves a last place that would change every number of B.
        if (factor - 1.0).abs() < 1e-6 { 1.0 } else { factor as f32 }
    }
}

fn factors(model: &ModelDir, layout: &Layout, pair: &LoraPair, alpha: &Alpha) -> Result<Vec<Factors>, GgufError> {
    let tensor = export::check_pair(model, pair)?;
    let scale = alpha.left_over(pair);
    let experts = (tensor.role == Role::Experts).then_some(pair.experts);
    let pieces = layout.of(&tensor.name);
    Ok(pieces.map(|piece| of_piece(piece, pair, experts, scale)).collect())
}

/// Rows of B are those of all experts, one expert after another, as rows of the base's tensor are.
fn of_piece(piece: &Piece, pair: &LoraPair, experts: Option<usize>, scale: f32) -> Factors {
    debug_assert_eq!(piece.numbers, Numbers::Same, "invariant: the numbers of a matrix are kept");
    let mut a = pair.a.clone();
    piece.arrange_columns(&mut a);
    let rows = piece.rows.indices().flat_map(|row| &pair.b[row * pair.rank..][..pair.rank]);
    let b = rows.map(|value| value * scale).collect();
    Factors { name: piece.name.clone(), a, b, experts, rank: pair.rank }
}
