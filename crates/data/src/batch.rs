//! What the model is fed: token, target and position of every place on one flat axis.
//!
//! There is no padding: the sequences of a micro-batch stand one after another, and every operation that mixes tokens
//! is told where they start. So packing changes the layout and nothing else.

use crate::order::Cursor;
use crate::row::{Origin, Sample};

/// The target of a token that carries no loss.
pub const IGNORE: i32 = -100;

/// One sequence of a [`Batch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequence {
    /// Index of its first token on the batch's axis.
    pub start: usize,
    /// Its tokens.
    pub len: usize,
    /// The laid-out row it stands in; only for showing the layout, sequences are separate whatever row they share.
    pub row: usize,
    /// Where it came from.
    pub origin: Origin,
}

/// One micro-batch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Batch {
    /// The tokens of all sequences.
    pub ids: Vec<u32>,
    /// `targets[t]` is `ids[t + 1]` where that token is trained and of the same sequence, else [`IGNORE`].
    pub targets: Vec<i32>,
    /// Position within the sequence, from 0.
    pub positions: Vec<u32>,
    /// In order, contiguous, covering `0..ids.len()`.
    pub sequences: Vec<Sequence>,
    /// How many targets are not [`IGNORE`].
    pub trained: usize,
    /// Laid-out rows.
    pub rows: usize,
}

impl Batch {
    /// Puts laid-out rows of samples one after another.
    #[must_use]
    pub fn from_rows(rows: &[Vec<&Sample>]) -> Self {
        let tokens = rows.iter().flatten().map(|s| s.ids.len()).sum();
        let mut batch = Self {
            ids: Vec::with_capacity(tokens),
            targets: Vec::with_capacity(tokens),
            positions: Vec::with_capacity(tokens),
            rows: rows.len(),
            ..Self::default()
        };
        for (row, samples) in rows.iter().enumerate() {
            for sample in samples {
                batch.push(sample, row);
            }
        }
        batch
    }

    /// The same sequences in batches of at most so many laid-out rows, at least one.
    #[must_use]
    pub fn split(&self, most_rows: usize) -> Vec<Self> {
        let most_rows = most_rows.max(1);
        let of = |sequences: &[Sequence]| {
            let (first, last) = (sequences[0], sequences[sequences.len() - 1]);
            let (span, row) = (first.start..last.start + last.len, first.row);
            let targets = self.targets[span.clone()].to_vec();
            Self {
                ids: self.ids[span.clone()].to_vec(),
                trained: targets.iter().filter(|&&target| target != IGNORE).count(),
                targets,
                positions: self.positions[span.clone()].to_vec(),
                sequences: sequences
                    .iter()
                    .map(|sequence| Sequence {
                        start: sequence.start - span.start,
                        row: sequence.row - row,
                        ..*sequence
                    })
                    .collect(),
                rows: last.row - row + 1,
            }
        };
        self.sequences.chunk_by(|a, b| a.row / most_rows == b.row / most_rows).map(of).collect()
    }

    fn push(&mut self, sample: &Sample, row: usize) {
        let len = sample.ids.len();
        self.sequences.push(Sequence { start: self.ids.len(), len, row, origin: sample.origin });
        self.ids.extend_from_slice(&sample.ids);
        self.positions.extend(0..len as u32);
        for next in 1..=len {
            let trained = next < len && sample.trained[next];
            self.trained += usize::from(trained);
            // A vocabulary that does not fit i32 was refused when the encoder was made.
            self.targets.push(if trained { sample.ids[next] as i32 } else { IGNORE });
        }
    }
}

/// Everything between two optimizer updates.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The laid-out data.
    pub micro_batches: Vec<Batch>,
    /// Rows of data that were used.
    pub rows: usize,
    /// Sequences made from them (more than `rows` where overlong rows were split).
    pub samples: usize,
    /// Tokens in all micro-batches.
    pub tokens: usize,
    /// Targets that carry loss, in all micro-batches.
    pub trained: usize,
    /// Rows passed over, because they were too long or had nothing to train on.
    pub dropped: usize,
    /// Rows that lost their end to `max_length`.
    pub truncated: usize,
    /// Epochs done after this step.
    pub epoch: f64,
    /// Resume point after this step.
    pub cursor: Cursor,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_batch_is_the_batches_of_its_rows() {
        let origin = |row| Origin { source: 0, file: 0, row };
        let sample = |(row, length): (u64, usize)| Sample {
            ids: (0..length as u32).map(|id| id + 10 * row as u32).collect(),
            trained: (0..length).map(|place| place > 1).collect(),
            origin: origin(row),
        };
        let samples: Vec<Sample> = [(0, 3), (1, 4), (2, 1), (3, 5), (4, 2)].map(sample).into();
        let rows = [vec![&samples[0], &samples[1]], vec![&samples[2]], vec![&samples[3]], vec![&samples[4]]];
        let whole = Batch::from_rows(&rows);
        for most_rows in [0, 1, 2, 3, 4, 9] {
            let expected: Vec<Batch> = rows.chunks(most_rows.max(1)).map(Batch::from_rows).collect();
            assert_eq!(whole.split(most_rows), expected, "{most_rows} rows");
        }
        assert_eq!(Batch::default().split(2), []);
    }
}
