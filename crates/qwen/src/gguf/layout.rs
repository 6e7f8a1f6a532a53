//! [`Layout`]: every tensor of a file and where in the model its values lie. The one description by which models are
//! written, adapters are written, and files are read back.

use std::ops::Range;

use super::arch::{Architecture, Rotation, ValueHeads};
use super::names::{self, Form};
use super::order::Order;
use crate::{
    AttentionSpec, DecoderSpec, GatedDeltaSpec, HeadSpec, MixerSpec, Role, RopeScaling, TensorSpec, inventory,
};

/// What is done to each number on its way into the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Numbers {
    Same,
    /// `x + 1`.
    PlusOne,
    /// `-exp(x)`.
    MinusExp,
}

impl Numbers {
    pub(super) fn apply(self, values: &mut [f32]) {
        match self {
            Numbers::Same => {}
            Numbers::PlusOne => values.iter_mut().for_each(|value| *value += 1.0),
            Numbers::MinusExp => values.iter_mut().for_each(|value| *value = -value.exp()),
        }
    }

    /// The other way round.
    pub(super) fn undo(self, values: &mut [f32]) {
        match self {
            Numbers::Same => {}
            Numbers::PlusOne => values.iter_mut().for_each(|value| *value -= 1.0),
            Numbers::MinusExp => values.iter_mut().for_each(|value| *value = (-*value).ln()),
        }
    }
}

/// A tensor of the file: rows and columns of one of the model's, seen as a matrix over its last axis. A tensor of one
/// axis is seen as one column.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    /// Name in the file.
    pub(super) name: String,
    /// Shape in the file, outermost axis first.
    pub(super) shape: Vec<usize>,
    /// The model's tensor: its place in the inventory.
    pub(super) source: usize,
    /// Columns of the model's tensor.
    pub(super) width: usize,
    /// The rows it takes.
    pub(super) rows: Order,
    /// For each of its columns, the one it takes; none if all lie as they did.
    pub(super) columns: Option<Vec<usize>>,
    pub(super) numbers: Numbers,
}

impl Piece {
    /// Number of elements.
    pub(super) fn elements(&self) -> usize {
        self.rows.len() * self.width
    }

    /// Puts the columns of whole rows where the file has them.
    pub(super) fn arrange_columns(&self, rows: &mut [f32]) {
        let Some(columns) = &self.columns else { return };
        let mut row = vec![0.0; self.width];
        for values in rows.chunks_mut(self.width) {
            row.copy_from_slice(values);
            for (value, &column) in values.iter_mut().zip(columns) {
                *value = row[column];
            }
        }
    }

    /// Puts numbers of the file where the model has them: `values` are the rows `rows` of the file's tensor.
    pub(super) fn put_back(&self, mut values: Vec<f32>, rows: Range<usize>, whole: &mut [f32]) {
        self.numbers.undo(&mut values);
        if let Some(columns) = &self.columns {
            let mut row = vec![0.0; self.width];
            for values in values.chunks_mut(self.width) {
                for (value, &column) in values.iter().zip(columns) {
                    row[column] = *value;
                }
                values.copy_from_slice(&row);
            }
        }
        let width = self.width;
        for (at, run) in self.rows.within(rows) {
            let count = run.len() * width;
            whole[run.start * width..][..count].copy_from_slice(&values[at * width..][..count]);
        }
    }
}

/// All tensors of a file.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    /// The model's tensors.
    pub(super) inventory: Vec<TensorSpec>,
    /// The file's, in the order of the inventory.
    pub(super) pieces: Vec<Piece>,
    /// What the frequencies of pairs are divided by, where a file says so.
    pub(super) rope_factors: Option<Vec<f32>>,
}

impl Layout {
    pub(super) fn new(architecture: &Architecture, spec: &DecoderSpec) -> Self {
        let inventory = inventory(spec);
        let mut pieces = Vec::with_capacity(inventory.len());
        for (source, tensor) in inventory.iter().enumerate() {
            let found = self::pieces(architecture, spec, source, tensor);
            if tensor.role == Role::Embedding && spec.head == HeadSpec::Tied && architecture.needs_output {
                pieces.extend(found.iter().map(|piece| Piece { name: names::OUTPUT.to_owned(), ..piece.clone() }));
            }
            pieces.extend(found);
        }
        let rope_factors = rope_factors(architecture, spec);
        Self { inventory, pieces, rope_factors }
    }

    /// The tensors of the file that a tensor of the model becomes.
    pub(super) fn of(&self, tensor: &str) -> impl Iterator<Item = &Piece> {
        let source = self.inventory.iter().position(|known| known.name == tensor);
        self.pieces.iter().filter(move |piece| Some(piece.source) == source)
    }
}

/// What a file says of Llama 3's scaling: what it divides the frequency of each pair by.
pub(super) fn rope_factors(architecture: &Architecture, spec: &DecoderSpec) -> Option<Vec<f32>> {
    let is_scaled = matches!(spec.rope.origin.scaling, Some(RopeScaling::Llama3 { .. }));
    (architecture.rope_factors && is_scaled).then(|| {
        let plain = spec.rope.origin.unscaled(spec.rope.rotary_dim);
        plain.zip(&spec.rope.inv_freq).map(|(plain, scaled)| plain / scaled).collect()
    })
}

fn pieces(architecture: &Architecture, spec: &DecoderSpec, source: usize, tensor: &TensorSpec) -> Vec<Piece> {
    let entry = names::of(&tensor.name).expect("invariant: every tensor of an inventory has an entry");
    let (width, rows) = match tensor.shape[..] {
        [only] => (1, only),
        [.., last] => (last, tensor.shape.iter().product::<usize>() / last),
        [] => unreachable!("invariant: no tensor of a model is a scalar"),
    };
    let arranged = Arrangement { architecture, spec, tensor, rows }.of(entry.form);
    let place = |name: &str| {
        let renamed = architecture.renamed.iter().find(|(old, _)| *old == name).map_or(name, |(_, new)| new);
        tensor.layer.map_or_else(|| renamed.to_owned(), |layer| format!("blk.{layer}.{renamed}"))
    };
    let piece = |(name, (rows, columns, numbers)): (&&str, Arranged)| Piece {
        name: place(name),
        shape: shape(tensor, rows.len(), width),
        source,
        width,
        rows,
        columns,
        numbers,
    };
    entry.file.iter().zip(arranged).map(piece).collect()
}

/// The shape in the file: axes of one vanish, and a matrix may have fewer rows.
fn shape(tensor: &TensorSpec, rows: usize, width: usize) -> Vec<usize> {
    match tensor.role {
        Role::Experts => vec![tensor.shape[0], rows / tensor.shape[0], width],
        Role::SharedGate => vec![width],
        _ if tensor.shape.len() == 1 => vec![rows],
        _ => vec![rows, width],
    }
}

type Arranged = (Order, Option<Vec<usize>>, Numbers);

/// Finds out how a tensor's values lie in the file.
struct Arrangement<'a> {
    architecture: &'a Architecture,
    spec: &'a DecoderSpec,
    tensor: &'a TensorSpec,
    rows: usize,
}

impl Arrangement<'_> {
    fn of(&self, form: Form) -> Vec<Arranged> {
        let rows = |order| vec![(order, None, Numbers::Same)];
        match form {
            Form::Plain => rows(Order::all(self.rows)),
            Form::Norm => {
                let numbers = if self.zero_centred() { Numbers::PlusOne } else { Numbers::Same };
                vec![(Order::all(self.rows), None, numbers)]
            }
            Form::Queries => rows(self.rotated(self.attention().heads)),
            Form::Keys => rows(self.rotated(self.attention().kv_heads)),
            Form::GroupedRows => {
                let delta = self.delta();
                let values = delta.value_heads / delta.key_heads * delta.value_dim;
                let sizes = [delta.key_dim, delta.key_dim, values, values];
                let taken = |kinds| (Order::ungrouped(delta.key_heads, &sizes, kinds), None, Numbers::Same);
                vec![taken(0..3), taken(3..4)]
            }
            Form::MixedRows => rows(self.dealt(2 * self.delta().keys(), self.delta().value_dim)),
            Form::ValueRows => rows(self.dealt(0, self.delta().value_dim)),
            Form::HeadRows => rows(self.dealt(0, 1)),
            Form::DecayLogs => vec![(self.dealt(0, 1), None, Numbers::MinusExp)],
            Form::ValueColumns => {
                let columns = self.dealt(0, self.delta().value_dim);
                let columns = (!columns.is_plain()).then(|| columns.indices().collect());
                vec![(Order::all(self.rows), columns, Numbers::Same)]
            }
            Form::GateUpRows => {
                let experts = self.tensor.shape[0];
                let half = self.rows / experts / 2;
                let side =
                    |side: usize| (Order::ungrouped(experts, &[half, half], side..side + 1), None, Numbers::Same);
                vec![side(0), side(1)]
            }
        }
    }

    fn mixer(&self) -> &MixerSpec {
        let layer = self.tensor.layer.expect("invariant: mixers belong to a layer");
        &self.spec.layers[layer].mixer
    }

    fn attention(&self) -> &AttentionSpec {
        match self.mixer() {
            MixerSpec::Attention(attention) => attention,
            MixerSpec::GatedDelta(_) => unreachable!("invariant: heads of queries and keys are those of attention"),
        }
    }

    fn delta(&self) -> &GatedDeltaSpec {
        match self.mixer() {
            MixerSpec::GatedDelta(delta) => delta,
            MixerSpec::Attention(_) => unreachable!("invariant: value heads are those of a recurrence"),
        }
    }

    fn zero_centred(&self) -> bool {
        if self.tensor.role == Role::HeadNorm {
            return self.attention().qk_norm.is_some_and(|norm| norm.zero_centred);
        }
        self.spec.norm.zero_centred
    }

    fn rotated(&self, heads: usize) -> Order {
        match self.architecture.rotation {
            Rotation::Halves => Order::all(self.rows),
            Rotation::Neighbours => Order::paired(heads, self.rows / heads),
        }
    }

    /// Value heads of `width` behind `before` other rows.
    fn dealt(&self, before: usize, width: usize) -> Order {
        let delta = self.delta();
        match self.architecture.value_heads {
            ValueHeads::Grouped => Order::all(before + delta.value_heads * width),
            ValueHeads::Dealt => Order::dealt(before, delta.key_heads, delta.value_heads / delta.key_heads, width),
        }
    }
}
