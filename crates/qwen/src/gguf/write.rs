//! [`write()`]: a model, with what was learnt merged into it, as GGUF files of several quantisations in one pass.
//!
//! Blocks of rows are read, merged in f32, put in the file's order, and stored once for each file, so that memory stays
//! near one block whatever the model's size, and no file is made from another one's rounded numbers.

use std::path::{Path, PathBuf};

use qwen_tune_weights::WeightError;
use qwen_tune_weights::gguf::{GgufFile, GgufTensor, GgufWriter, Metadata, TensorType, blocks};
use rayon::prelude::*;

use super::about::{self, About};
use super::layout::{Layout, Piece};
use super::tokenizer::Tokenizer;
use super::types::{self, Facts, Quant};
use super::{Architecture, GgufError, arch, metadata, names};
use crate::export::{Change, MergedRows, merged_rows};
use crate::{ModelDir, TensorSpec};

/// Numbers merged before they are stored: 64 MiB of them.
const BLOCK: usize = 1 << 24;
/// Rows that one thread merges at a time.
const ROWS: usize = 16;
/// The largest number of 16 bits in the format of that name.
const F16_MAX: f32 = 65504.0;

/// What to write.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// File names begin with this: `NAME-Q4_K_M.gguf`.
    pub name: String,
    /// One file each.
    pub quants: Vec<Quant>,
    /// What a file says of the model.
    pub about: About,
    /// A model of more bytes is divided into files of at most so many.
    pub shard_bytes: u64,
}

/// A model that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenGguf {
    /// How its weights are stored.
    pub quant: Quant,
    /// The files, in order; one unless it was divided.
    pub files: Vec<PathBuf>,
    /// Tensors in them.
    pub tensors: usize,
    /// Bytes of their data.
    pub bytes: u64,
}

/// What was written, and what people should know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The models, in the order asked for.
    pub models: Vec<WrittenGguf>,
    /// Sentences for people.
    pub warnings: Vec<String>,
}

/// The name of the file of a quantisation.
pub fn file_name(name: &str, quant: Quant) -> String {
    format!("{name}-{quant}.gguf")
}

/// Writes a model into a directory that exists; files appear when all are whole. Files of the same names are replaced.
///
/// # Errors
/// Everything about the model that GGUF files cannot say, and everything of the change that does not fit, before anything
/// is written; then what the system refuses.
pub fn write(
    model: &ModelDir,
    change: Option<Change<'_>>,
    directory: &Path,
    options: &WriteOptions,
) -> Result<Report, Vec<GgufError>> {
    let (architecture, tokenizer) = match (Architecture::of(&model.spec), Tokenizer::read(model)) {
        (Ok(architecture), Ok(tokenizer)) => (architecture, tokenizer),
        (architecture, tokenizer) => {
            return Err(architecture.err().into_iter().chain(tokenizer.err()).flatten().collect());
        }
    };
    let layout = Layout::new(architecture, &model.spec);
    let mut warnings = arch::warnings(&model.spec);
    warnings.extend(tokenizer.warnings.iter().cloned());
    merged_rows(model, change, |rows| {
        let one = |error: WeightError| vec![GgufError::from(error)];
        let mut outputs = Vec::with_capacity(options.quants.len());
        for &quant in &options.quants {
            let keys = keys(model, architecture, &tokenizer, &options.about, quant);
            let plan = plan(&layout, model, architecture, quant);
            outputs.push(Output::begin(directory, options, quant, &keys, plan).map_err(one)?);
        }
        if let Some(factors) = &layout.rope_factors {
            outputs
                .iter_mut()
                .try_for_each(|output| output.put(names::ROPE_FACTORS, factors, factors.len()))
                .map_err(one)?;
        }
        for piece in &layout.pieces {
            write_piece(rows, &layout, piece, &mut outputs).map_err(|error| vec![error])?;
        }
        warnings.extend(outputs.iter().filter_map(Output::warning));
        let models = outputs.into_iter().map(Output::close).collect::<Result<_, _>>().map_err(one)?;
        Ok(Report { models, warnings })
    })
}

/// Opens a model that [`write()`] has written and holds its keys, its tensors' names, shapes and types, and their order
/// against what they have to be.
///
/// # Errors
/// If it cannot be opened, and with everything that differs.
pub fn examine(model: &ModelDir, written: &WrittenGguf, options: &WriteOptions) -> Result<(), Vec<GgufError>> {
    let architecture = Architecture::of(&model.spec)?;
    let tokenizer = Tokenizer::read(model)?;
    let path = written.files.first().expect("invariant: a model has a file");
    let file = GgufFile::open(path).map_err(|error| vec![error.into()])?;
    let differs = |what: String| GgufError::Differs { path: path.clone(), what };
    let mut faults = Vec::new();
    let expected = keys(model, architecture, &tokenizer, &options.about, written.quant);
    for (key, value) in expected.iter() {
        match file.metadata().get(key) {
            Some(found) if found == value => {}
            Some(_) => faults.push(differs(format!("`{key}` has another value"))),
            None => faults.push(differs(format!("`{key}` is missing"))),
        }
    }
    let more = file.metadata().iter().filter(|(key, _)| expected.get(key).is_none());
    faults.extend(more.map(|(key, _)| differs(format!("`{key}` was not written by this program"))));
    let plan = plan(&Layout::new(architecture, &model.spec), model, architecture, written.quant);
    for (index, tensor) in plan.iter().enumerate() {
        match file.tensors().get(index) {
            Some(found) if found == tensor => {}
            Some(found) => faults.push(differs(format!(
                "tensor {index} is `{}` {:?} as {}, not `{}` {:?} as {}",
                found.name,
                found.shape,
                found.ty.name(),
                tensor.name,
                tensor.shape,
                tensor.ty.name()
            ))),
            None => faults.push(differs(format!("`{}` is missing", tensor.name))),
        }
    }
    if file.tensors().len() > plan.len() {
        faults.push(differs(format!("it has {} tensors, not {}", file.tensors().len(), plan.len())));
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

fn keys(model: &ModelDir, architecture: &Architecture, tokenizer: &Tokenizer, about: &About, quant: Quant) -> Metadata {
    let mut keys = Metadata::new();
    let size = about::size_label(&model.inventory, model.spec.sparse().map(|sparse| sparse.experts));
    about.put(&mut keys, architecture.name, "model", Some(&size));
    metadata::put(&mut keys, architecture, &model.spec, &model.config);
    tokenizer.put(&mut keys);
    about::put_version(&mut keys, Some(quant.file_type()));
    keys
}

/// The tensors of a file.
fn plan(layout: &Layout, model: &ModelDir, architecture: &Architecture, quant: Quant) -> Vec<GgufTensor> {
    let factors = layout.rope_factors.iter().map(|factors| (names::ROPE_FACTORS.to_owned(), vec![factors.len()]));
    let pieces = layout.pieces.iter().map(|piece| (piece.name.clone(), piece.shape.clone()));
    let facts = Facts {
        layers: model.spec.layers.len(),
        experts: model.spec.sparse().map_or(0, |sparse| sparse.experts),
        sharing: model.spec.attention().map_or(1, |attention| attention.heads / attention.kv_heads),
        seventy_billion: (architecture.seventy_billion)(&model.spec),
    };
    types::choose(quant, facts, &factors.chain(pieces).collect::<Vec<_>>())
}

fn write_piece(rows: &MergedRows<'_>, layout: &Layout, piece: &Piece, outputs: &mut [Output]) -> Result<(), GgufError> {
    let tensor = &layout.inventory[piece.source];
    // A list of numbers is one row of the file.
    let row = if piece.shape.len() == 1 { piece.elements() } else { piece.width };
    let count = (BLOCK / piece.width.max(1)).max(1);
    let count = if piece.shape.len() == 1 { piece.rows.len() } else { count };
    let mut values = Vec::new();
    rows.prepare(tensor)?;
    for start in (0..piece.rows.len()).step_by(count) {
        let end = piece.rows.len().min(start + count);
        values.resize((end - start) * piece.width, 0.0);
        read_rows(rows, tensor, piece, start, &mut values)?;
        if values.par_iter().any(|value| !value.is_finite()) {
            return Err(GgufError::NotFinite { tensor: tensor.name.clone() });
        }
        outputs.iter_mut().try_for_each(|output| output.put(&piece.name, &values, row))?;
        rows.release(tensor);
    }
    Ok(())
}

/// Rows of a file's tensor, from `first` on, as the file has them.
fn read_rows(
    source: &MergedRows<'_>,
    tensor: &TensorSpec,
    piece: &Piece,
    first: usize,
    values: &mut [f32],
) -> Result<(), WeightError> {
    let width = piece.width;
    values.par_chunks_mut(ROWS * width).enumerate().try_for_each(|(chunk, values)| {
        let start = first + chunk * ROWS;
        for (at, run) in piece.rows.within(start..start + values.len() / width) {
            source.read(tensor, run.start * width, &mut values[at * width..][..run.len() * width])?;
        }
        piece.arrange_columns(values);
        piece.numbers.apply(values);
        Ok(())
    })
}

/// A file being written.
struct Output {
    quant: Quant,
    writer: GgufWriter,
    plan: Vec<GgufTensor>,
    /// The tensor that is due.
    next: usize,
    /// Bytes of it that were written.
    written: usize,
    buffer: Vec<u8>,
    /// Tensors with numbers that its type makes infinite.
    overflown: Vec<String>,
}

impl Output {
    fn begin(
        directory: &Path,
        options: &WriteOptions,
        quant: Quant,
        keys: &Metadata,
        plan: Vec<GgufTensor>,
    ) -> Result<Self, WeightError> {
        let path = directory.join(file_name(&options.name, quant));
        let mut writer = GgufWriter::split(&path, keys, options.shard_bytes)?;
        writer.declare(&plan)?;
        Ok(Self { quant, writer, plan, next: 0, written: 0, buffer: Vec::new(), overflown: Vec::new() })
    }

    /// Stores some whole rows of the tensor that is due.
    fn put(&mut self, name: &str, values: &[f32], row: usize) -> Result<(), WeightError> {
        let tensor = &self.plan[self.next];
        let bytes = values.len() / tensor.ty.block() * tensor.ty.block_bytes();
        self.buffer.resize(bytes, 0);
        blocks::encode_into(tensor.ty, values, row, &mut self.buffer)?;
        if tensor.ty == TensorType::F16
            && self.overflown.last().map(String::as_str) != Some(name)
            && values.par_iter().any(|value| value.abs() > F16_MAX)
        {
            self.overflown.push(name.to_owned());
        }
        self.writer.write_part(name, &self.buffer)?;
        self.written += bytes;
        if Some(self.written) == tensor.bytes() {
            self.next += 1;
            self.written = 0;
        }
        Ok(())
    }

    fn warning(&self) -> Option<String> {
        let first = self.overflown.first()?;
        Some(format!(
            "{} tensor(s) of the {} file, such as `{first}`, hold numbers beyond {F16_MAX}, which F16 makes infinite; write BF16 instead",
            self.overflown.len(),
            self.quant
        ))
    }

    fn close(self) -> Result<WrittenGguf, WeightError> {
        let written = self.writer.close()?;
        Ok(WrittenGguf { quant: self.quant, files: written.files, tensors: written.tensors, bytes: written.bytes })
    }
}
