//! [`find`]: where in a file the parts of each of a model's tensors lie, whichever of its forms they have there.

use std::collections::HashSet;
use std::ops::Range;

use qwen_tune_weights::WeightError;
use qwen_tune_weights::gguf::GgufFile;

use crate::gguf::layout::{Layout, Numbers, Piece};
use crate::gguf::order::Order;
use crate::gguf::{GgufError, names};
use crate::{DecoderSpec, TensorSpec};

/// Numbers that are turned back at a time.
const BLOCK: usize = 1 << 22;

/// A part of a model's tensor in a file.
#[derive(Debug, Clone)]
pub(super) struct Place {
    piece: Piece,
    /// The file's tensor.
    pub(super) tensor: String,
    /// The row of that with which the part begins.
    first: usize,
}

impl Place {
    /// Whether it is a matrix whose numbers are the model's own.
    pub(super) fn is_matrix_as_it_is(&self) -> bool {
        self.piece.shape.len() > 1 && self.piece.numbers == Numbers::Same
    }

    /// For each column of the file, the model's; none if all lie as they do there.
    pub(super) fn columns(&self) -> Option<&[usize]> {
        self.piece.columns.as_deref()
    }

    /// Runs of rows: the first one in the file's tensor, and the model's.
    pub(super) fn rows(&self) -> impl Iterator<Item = (usize, Range<usize>)> {
        self.piece.rows.within(0..self.piece.rows.len()).map(|(at, rows)| (self.first + at, rows))
    }

    /// Reads the part and puts its numbers where the model has them.
    pub(super) fn put_back(&self, file: &GgufFile, whole: &mut [f32]) -> Result<(), WeightError> {
        let piece = &self.piece;
        if piece.shape.len() == 1 {
            let values = file.read_f32(&self.tensor)?;
            let values = values[self.first..][..piece.elements()].to_vec();
            piece.put_back(values, 0..piece.rows.len(), whole);
            return Ok(());
        }
        let rows = piece.rows.len();
        let step = (BLOCK / piece.width.max(1)).max(1);
        for start in (0..rows).step_by(step) {
            let end = rows.min(start + step);
            let values = file.read_rows_f32(&self.tensor, self.first + start..self.first + end)?;
            piece.put_back(values, start..end, whole);
        }
        Ok(())
    }
}

/// Tensors that some files hold joined: the tensors in order, and what they are together.
const JOINED: &[(&[&str], &str)] = &[
    (&["attn_q.weight", "attn_k.weight", "attn_v.weight"], "attn_qkv.weight"),
    (&["attn_q.bias", "attn_k.bias", "attn_v.bias"], "attn_qkv.bias"),
];

/// Tensors that some files hold just as checkpoints do: the model's tensor and its name there.
const AS_IN_CHECKPOINTS: &[(&str, &str)] =
    &[("experts.gate_up_proj", "ffn_gate_up_exps.weight"), ("linear_attn.in_proj_qkvz.weight", "ssm_in.weight")];

/// The places of each tensor of the layout's inventory. Everything that is missing, of another shape, or too much is
/// reported.
pub(super) fn find(file: &GgufFile, layout: &Layout, spec: &DecoderSpec) -> Result<Vec<Vec<Place>>, Vec<GgufError>> {
    let mut search = Search { file, layout, known: HashSet::new(), faults: Vec::new() };
    let found = layout.inventory.iter().enumerate().map(|(index, tensor)| search.tensor(index, tensor)).collect();
    search.known.insert(names::ROPE_FACTORS.to_owned());
    for tensor in file.tensors() {
        if !search.known.contains(&tensor.name) && !is_behind(&tensor.name, spec.layers.len()) {
            let (path, tensor) = (file.path().to_owned(), tensor.name.clone());
            search.faults.push(GgufError::UnexpectedTensor { path, tensor });
        }
    }
    if search.faults.is_empty() { Ok(found) } else { Err(search.faults) }
}

/// Whether a tensor belongs to a block behind the model's own: a predictor of further tokens.
fn is_behind(name: &str, layers: usize) -> bool {
    let block = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')?.0.parse::<usize>().ok());
    block.is_some_and(|block| block >= layers)
}

struct Search<'a> {
    file: &'a GgufFile,
    layout: &'a Layout,
    known: HashSet<String>,
    faults: Vec<GgufError>,
}

impl Search<'_> {
    fn tensor(&mut self, index: usize, tensor: &TensorSpec) -> Vec<Place> {
        let pieces: Vec<&Piece> = self.layout.pieces.iter().filter(|piece| piece.source == index).collect();
        let whole = AS_IN_CHECKPOINTS.iter().find(|(end, _)| tensor.name.ends_with(end));
        if let (Some((_, name)), Some(layer)) = (whole, tensor.layer)
            && let name = format!("blk.{layer}.{name}")
            && self.file.tensor(&name).is_some()
        {
            return self.whole(name, tensor, pieces[0]).into_iter().collect();
        }
        let found = pieces.into_iter().filter_map(|piece| self.piece(piece));
        found.collect()
    }

    fn piece(&mut self, piece: &Piece) -> Option<Place> {
        let place = Place { piece: piece.clone(), tensor: piece.name.clone(), first: 0 };
        if self.file.tensor(&piece.name).is_none()
            && let Some((name, first)) = self.joined(piece)
        {
            self.known.insert(name.clone());
            return Some(Place { tensor: name, first, ..place });
        }
        self.expect(&piece.name, &piece.shape).then_some(place)
    }

    /// The tensor that holds this one and others, if there is one of the right number of rows, and the row to begin with.
    fn joined(&self, piece: &Piece) -> Option<(String, usize)> {
        let (block, local) = piece.name.rsplit_once('.').and_then(|(stem, end)| {
            let (block, leaf) = stem.rsplit_once('.')?;
            Some((block, format!("{leaf}.{end}")))
        })?;
        let (parts, whole) = JOINED.iter().find(|(parts, _)| parts.contains(&local.as_str()))?;
        let name = format!("{block}.{whole}");
        let tensor = self.file.tensor(&name)?;
        let rows = |part: &str| {
            let name = format!("{block}.{part}");
            self.layout.pieces.iter().find(|piece| piece.name == name).map_or(0, |piece| piece.rows.len())
        };
        let before = parts.iter().take_while(|part| **part != local).map(|part| rows(part)).sum();
        let all: usize = parts.iter().map(|part| rows(part)).sum();
        let shape = if piece.shape.len() == 1 { vec![all] } else { vec![all, piece.width] };
        (tensor.shape == shape).then_some((name, before))
    }

    /// A tensor that is stored as the model has it.
    fn whole(&mut self, name: String, tensor: &TensorSpec, like: &Piece) -> Option<Place> {
        let rows = Order::all(tensor.shape.iter().product::<usize>() / like.width);
        let shape = tensor.shape.clone();
        let piece = Piece { name: name.clone(), shape, rows, columns: None, numbers: Numbers::Same, ..like.clone() };
        self.expect(&name, &tensor.shape).then_some(Place { piece, tensor: name, first: 0 })
    }

    /// Whether the file has this tensor in this shape; axes of one do not count.
    fn expect(&mut self, name: &str, shape: &[usize]) -> bool {
        self.known.insert(name.to_owned());
        let path = || self.file.path().to_owned();
        let squeezed =
            |shape: &[usize]| -> Vec<usize> { shape.iter().copied().filter(|&extent| extent != 1).collect() };
        let fault = match self.file.tensor(name) {
            None => GgufError::NoTensor { path: path(), tensor: name.to_owned(), expected: shape.to_vec() },
            Some(tensor) if squeezed(&tensor.shape) != squeezed(shape) => GgufError::WrongShape {
                path: path(),
                tensor: name.to_owned(),
                found: tensor.shape.clone(),
                expected: shape.to_vec(),
            },
            Some(_) => return true,
        };
        self.faults.push(fault);
        false
    }
}
